"""Students trained side by side: they are those that one command each would give, to the byte."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from safetensors.torch import load_file

from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs.run import run

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "methods.py"

BASE = {
    "data": "digits",
    "teacher": "small/cnn-4",
    "student": "small/cnn-2",
    "train_limit": 300,
    "epochs": 3,
    "batch_size": 50,
    "precision": "float32",
    "memory_format": "channels_last",
    "warmup_epochs": 0.5,
    "device": "cpu",
}
RUNS = {
    "alone": {"method": "alone"},
    "kd": {"method": "kd", "logit_weight": 2},
    "both": {"method": "projector+kd", "feature_loss": "log_sum", "projector": "mlp", "clip": 1.0},
    "adamw": {"method": "projector", "student": "small/cnn-4", "optimizer": "adamw", "lr": 0.001},
}


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    settings = {name: value for name, value in BASE.items() if name != "teacher"}
    run(Recipe(**{**settings, "student": BASE["teacher"], "method": "alone"}), folder)
    return folder


def write_plan(folder: Path, teacher: Path, runs: dict) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"base": {**BASE, "teacher_weights": str(teacher)}, "runs": runs}))
    return path


@pytest.mark.long
def test_each_student_is_the_one_that_its_own_command_gives(methods: ModuleType, teacher: Path, tmp_path: Path) -> None:
    plan = methods.read_plan(write_plan(tmp_path, teacher, RUNS), seeds=[1, 2])
    assert [len(group) for group in methods.groups(plan)] == [4, 4]
    out = tmp_path / "out" / "results.json"
    records = {record["run"]: record for record in methods.run_plan(plan, out, every=2, keep=True)}
    for planned in plan:
        name = f"{planned.name}-s{planned.recipe.seed}"
        summary = run(planned.recipe, tmp_path / name)
        for file in ("student.safetensors", "terms.safetensors"):
            assert (out.parent / name / file).is_file() == (tmp_path / name / file).is_file()
            if (tmp_path / name / file).is_file():
                expected, got = load_file(tmp_path / name / file), load_file(out.parent / name / file)
                assert expected.keys() == got.keys()
                assert all(torch.equal(expected[key], got[key]) for key in expected), (name, file)
        assert records[name]["last"] == summary["last"]
        assert records[name]["best"]["epoch"] in (1, 3)  # of three epochs, the last one and each second one before it
        assert records[name]["data"]["fingerprint"] == summary["data"]["fingerprint"]
    assert records["kd-s1"]["weights"] == {"task": 1.0, "logit": 2.0}
    assert records["kd-s1"]["teacher"]["top1"] == pytest.approx(summary["teacher"]["top1"])
    assert records["alone-s1"]["teacher"] is None


def test_finished_runs_are_kept_and_others_added(methods: ModuleType, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    runs = {"alone": {"method": "alone"}}
    methods.run_plan(methods.read_plan(write_plan(tmp_path, teacher, runs), seeds=[0]), out, every=1)
    [first] = json.loads(out.read_text())
    runs["kd"] = {"method": "kd"}
    records = methods.run_plan(methods.read_plan(write_plan(tmp_path, teacher, runs), seeds=[0]), out, every=1)
    assert [record["run"] for record in records] == ["alone-s0", "kd-s0"]
    assert records[0] == first  # also its seconds: it was not trained again
    runs["alone"]["lr"] = 0.1
    with pytest.raises(UserError, match="alone-s0 with other settings"):
        methods.run_plan(methods.read_plan(write_plan(tmp_path, teacher, runs), seeds=[0]), out, every=1)


def test_a_student_that_breaks_leaves_the_others_alone(methods: ModuleType, teacher: Path, tmp_path: Path) -> None:
    runs = {"kd": {"method": "kd"}, "wild": {"method": "kd", "lr": 1e30}}
    for name, only in (("two.json", None), ("one.json", ["kd"])):
        plan = methods.read_plan(write_plan(tmp_path, teacher, runs), seeds=[0], only=only or ())
        methods.run_plan(plan, tmp_path / name, every=1)
    both, alone = (json.loads((tmp_path / name).read_text()) for name in ("two.json", "one.json"))
    assert "not finite" in both[1]["failed"]
    assert "last" not in both[1]
    assert both[0]["last"] == alone[0]["last"]


def test_the_table_pairs_runs_seed_by_seed(methods: ModuleType) -> None:
    shares = {"alone": (0.1, 0.2, 0.3), "kd": (0.2, 0.3, 0.4)}
    records = [
        {"run": f"{name}-s{seed}", "seed": seed, "last": {"top1": share}}
        for name, values in shares.items()
        for seed, share in enumerate(values)
    ]
    records.append({"run": "wild-s0", "seed": 0, "failed": "the loss is not finite"})
    rows = methods.table(records, "alone").splitlines()
    assert rows[2] == "| alone | 3 | 20.00 ± 10.00 | -4.8 to 44.8 | | |"  # t(0.975, 2) = 4.303
    assert rows[3] == "| kd | 3 | 30.00 ± 10.00 | 5.2 to 54.8 | +10.00 | +10.0 to +10.0 |"
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "kd", "precision": "auto"}, "precision: students that share"),
        ({"method": "kd", "ema": 0.9}, "accumulate, ema and precision fp16"),
        ({"method": "distil"}, "method: expected one of"),
        (["kd"], "expected settings and their values"),
    ],
)
def test_a_wrong_plan_is_refused(methods: ModuleType, tmp_path: Path, changes: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.read_plan(write_plan(tmp_path, tmp_path, {"a": changes}), seeds=[0])
    with pytest.raises(UserError, match="has no run b; there are a"):
        methods.read_plan(write_plan(tmp_path, tmp_path, {"a": {"method": "kd"}}), seeds=[0], only=["b"])


def test_two_teachers_in_one_group_are_refused(methods: ModuleType, tmp_path: Path) -> None:
    runs = {"a": {"method": "kd"}, "b": {"method": "kd", "teacher": "small/cnn-8"}}
    with pytest.raises(UserError, match="teacher: expected the same"):
        methods.groups(methods.read_plan(write_plan(tmp_path, tmp_path, runs), seeds=[0]))
