"""RT-DETR in recipes: it learns, teaches detectors of places and is taught, and is handed on as weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from limbeck.detection.assembly import build_detection_distiller
from limbeck.detection.models import build_detector
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs.export import export
from limbeck.runs.inspection import evaluate
from limbeck.runs.run import run

transformers = pytest.importorskip("transformers", reason="RT-DETR is that of transformers, an extra")
NAME = "rtdetr-32/transformers/r18vd"

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def queries(alone: Recipe) -> Recipe:
    return alone.changed({"student": NAME, "epochs": 25, "lr": 1e-3, "clip": 1.0, "warmup_epochs": 1.0})


@pytest.fixture(scope="session")
def teacher(queries: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an RT-DETR that was trained alone."""
    folder = tmp_path_factory.mktemp("queries") / "teacher"
    run(queries, folder)
    return folder


def test_it_learns(teacher: Path):
    summary = json.loads((teacher / "summary.json").read_text())
    assert summary["best"]["ap"] > 0.05  # an untrained one has less than 0.001
    assert evaluate(teacher) == pytest.approx(summary["last"], abs=1e-9)


@pytest.mark.parametrize("student", ["fcos-32/timm/resnet18", NAME])
def test_its_features_teach(alone: Recipe, teacher: Path, tmp_path: Path, student: str):
    """The levels of equal stride, whatever the heads are; the teacher runs without its decoder and stays as it is."""
    before = (teacher / "student.safetensors").read_bytes()
    own: dict[str, Any] = {"student": student, "teacher": NAME, "teacher_weights": str(teacher), "method": "projector"}
    recipe = alone.changed({**own, "epochs": 1, "train_limit": 16, "clip": 1.0, "lr": 1e-3})
    summary = run(recipe, tmp_path / "run")
    assert summary["teacher"]["ap50"] > 0.1
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    parts = next(record["parts"] for record in records if record["kind"] == "step")
    assert set(parts) == {"task", "feature-s8", "feature-s16", "feature-s32"}
    assert (teacher / "student.safetensors").read_bytes() == before
    assert evaluate(tmp_path / "run") == pytest.approx(summary["last"], abs=1e-9)


def test_queries_cannot_be_compared_one_by_one(alone: Recipe, teacher: Path):
    recipe = alone.changed({"student": NAME, "teacher": NAME, "teacher_weights": str(teacher), "method": "kd"})
    student, other = (build_detector(NAME, num_classes=2, size=64) for _ in range(2))
    with pytest.raises(UserError, match=r"the heads of rtdetr-32/transformers/r18vd and .* cannot be compared"):
        build_detection_distiller(recipe, student, other)


def test_it_is_handed_on_as_weights_of_transformers_own_model(teacher: Path):
    written = export(teacher, format="safetensors")
    assert written.parity == 0
    config = build_detector(NAME, num_classes=2, size=64).module.plain.config
    transformers.RTDetrForObjectDetection(config).load_state_dict(load_file(written.path), strict=True)
    with pytest.raises(UserError, match="has one fixed batch as onnx; use --format safetensors"):
        export(teacher, format="onnx")
