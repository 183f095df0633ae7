"""The probe of a run: its records and price, the files that are those of a run without, and the checks at the start."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tiny
from data.images import folder as image_folder
from limbeck import models
from limbeck.assembly.build import build_data
from limbeck.assembly.probing import held_back_batch, vit_blocks
from limbeck.assembly.teacher import _key, teacher_recipe
from limbeck.cli.distill import main as distill
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import run as runs

FILES = ("student.safetensors", "student_best.safetensors", "terms.safetensors")


@pytest.fixture
def taught(small: Recipe, finished: Path) -> Recipe:
    """The small recipe with its teacher at hand."""
    teacher = next((finished.parent / "teachers").iterdir())
    return small.changed({"teacher_weights": str(teacher)})


def of_kind(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in tiny.records(folder) if record["kind"] == kind]


def test_a_run_is_probed_by_default_and_says_what_it_cost(finished: Path) -> None:
    probes = of_kind(finished, "probe")
    assert probes[0]["step"] == 0
    assert probes[-1]["step"] == 12
    assert {"terms", "balance", "student", "teacher", "images"} <= probes[0].keys()
    assert probes[0]["terms"]["feature"]["widths"] == [4, 8]
    assert probes[0]["images"] == 128
    assert "train_top1" in probes[-1]["student"]
    assert "pull" in probes[-1]["terms"]["feature"]["dynamics"]
    cost = json.loads((finished / "summary.json").read_text())["probe"]
    assert cost["count"] == len(probes)
    assert cost["seconds"] == pytest.approx(sum(record["seconds"] for record in probes), abs=1e-3)
    assert cost["share"] > 0


def test_a_run_says_what_its_teacher_cost(finished: Path) -> None:
    """Against the sum of its records; of a run from a cache it is what reading took, which is no forward pass."""
    summary = json.loads((finished / "summary.json").read_text())
    spent = [record["teacher_seconds"] for record in of_kind(finished, "step")]
    assert len(spent) == 2
    assert summary["cost"]["teacher"] == "run"
    assert summary["cost"]["teacher_seconds"] == pytest.approx(sum(spent), abs=1e-3)
    assert 0 < summary["cost"]["teacher_share"] < 1
    assert summary["cost"]["teacher_share"] == pytest.approx(sum(spent) / summary["seconds"], rel=0.02)
    (teacher,) = (finished.parent / "teachers").iterdir()
    assert json.loads((teacher / "summary.json").read_text())["cost"] is None  # it learned alone


def test_a_run_from_a_cache_says_what_reading_it_cost(taught: Recipe, tmp_path: Path) -> None:
    cost = runs.run(taught.changed({"cache_views": 1, "cache_precision": "exact"}), tmp_path / "cached")["cost"]
    assert cost["teacher"] == "cache"
    assert cost["teacher_seconds"] == pytest.approx(
        sum(record["teacher_seconds"] for record in of_kind(tmp_path / "cached", "step")), abs=1e-3
    )
    assert 0 < cost["teacher_share"] < 1


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "crd"},
        {"cache_views": 2, "ema": 0.5, "accumulate": 2},
        {"labels": False, "method": "projector"},
    ],
    ids=str,
)
def test_the_files_are_those_of_a_run_that_was_not_probed(
    taught: Recipe, changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = taught.changed(changes)
    probed = runs.run(recipe.changed({"probe": 3}), tmp_path / "probed")
    plain = runs.run(recipe.changed({"probe": "off"}), tmp_path / "plain")
    for name in FILES:
        if (tmp_path / "plain" / name).is_file():
            assert (tmp_path / "probed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    assert (probed["last"], probed["best"]) == (plain["last"], plain["best"])
    steps = 6 if "accumulate" in changes else 12
    assert [record["step"] for record in of_kind(tmp_path / "probed", "probe")] == list(range(0, steps + 1, 3))
    assert plain["probe"] is None
    assert not of_kind(tmp_path / "plain", "probe") + of_kind(tmp_path / "plain", "data")
    assert not (tmp_path / "plain" / "samples.json").exists()


def test_held_back_images_are_the_same_whatever_the_seed(small: Recipe) -> None:
    one, two = (held_back_batch(build_data(small.changed({"seed": seed})), 20) for seed in (0, 1))
    assert torch.equal(one.images, two.images)


def test_without_a_head_that_fits_the_teacher_is_not_scored(taught: Recipe, tmp_path: Path) -> None:
    recipe = taught.changed({"labels": False, "method": "projector", "probe": 12})
    runs.run(recipe, tmp_path / "free")
    assert "student" not in of_kind(tmp_path / "free", "probe")[0]
    assert not (tmp_path / "free" / "samples.json").exists()


def test_samples_are_images_on_which_the_two_disagree(finished: Path) -> None:
    found = json.loads((finished / "samples.json").read_text())
    assert found["classes"] == [str(digit) for digit in range(10)]
    assert 0 < len(found["samples"]) <= 24
    for sample in found["samples"]:
        image = Image.open(io.BytesIO(base64.b64decode(sample["png"])))
        assert image.size == (8, 8)
        ours, theirs = sample["student"][0][0], sample["teacher"][0][0]
        assert ours != theirs or ours != sample["label"]
        assert len(sample["student"]) == len(sample["teacher"]) == 3
        assert 0 < sample["student"][0][1] <= 1
    disagree = [sample["student"][0][0] != sample["teacher"][0][0] for sample in found["samples"]]
    assert disagree == sorted(disagree, reverse=True)
    recipe = Recipe.from_yaml(finished / "recipe.yaml")
    whole = next(iter(build_data(recipe).val_loader(batch_size=500)))
    first = found["samples"][0]
    assert int(whole.target[first["index"]]) == first["label"]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(first["png"]))).convert("RGB"))
    stored = (whole.images[first["index"]] * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, stored)


def test_leaks_and_shifted_inputs_are_written_at_the_start(taught: Recipe, tmp_path: Path) -> None:
    images = tmp_path / "images"
    image_folder(images / "train", {"a": 12, "b": 12}, width=8, height=8)
    image_folder(images / "val", {"a": 6, "b": 6}, width=8, height=8)  # the same pictures
    changes = {"data": str(images), "size": 8, "train_limit": None, "augmentation": "none"}
    changes |= {"teacher_weights": None, "teacher_epochs": 30, "batch_size": 8, "epochs": 1}
    recipe = taught.changed(changes)
    runs.run(recipe, tmp_path / "run")
    (data,) = of_kind(tmp_path / "run", "data")
    assert (data["leaked"], data["conflicting"], data["train_duplicates"]) == (12, 0, 0)
    assert data["leaked_examples"][0] == ["a/000.png", "a/000.png"]
    (inputs,) = of_kind(tmp_path / "run", "inputs")
    assert inputs["teacher"]["layer"] == "bn1"
    assert inputs["teacher"].keys() == {"layer", "shift", "scale", "swapped"}
    assert inputs["teacher"]["swapped"] != inputs["teacher"]["shift"]  # the pictures have colors
    assert "student" not in inputs  # its weights are random


def test_a_vit_gives_confidence_and_equivariance(small: Recipe, tmp_path: Path) -> None:
    changes = {"teacher": "small/vit-32", "student": "small/vit-32", "method": "projector", "optimizer": "adamw"}
    recipe = small.changed({**changes, "lr": 1e-3, "epochs": 1, "teacher_epochs": 6})
    runs.run(recipe, tmp_path / "run")
    (inputs,) = of_kind(tmp_path / "run", "inputs")
    assert inputs["teacher"]["confidence"].keys() == {"own", "imagenet", "half", "none"}
    assert len(of_kind(tmp_path / "run", "probe")[0]["equivariance"]) == 4


def test_blocks_are_those_of_transformers_only() -> None:
    assert vit_blocks(models.build("small/vit-32", num_classes=3, size=16)) == (
        "blocks.0",
        "blocks.2",
        "blocks.3",
        "blocks.5",
    )
    assert vit_blocks(models.build("small/cnn-4", num_classes=3, size=8)) == ()


def test_the_probe_is_no_part_of_a_teachers_name(small: Recipe) -> None:
    data = build_data(small)
    one, two = (
        _key(teacher_recipe(small.changed(changes)), data, start="")
        for changes in ({}, {"probe": 7, "probe_images": 8})
    )
    assert one == two


def test_resumed_it_is_checked_once(taught: Recipe, tmp_path: Path) -> None:
    """A run that is stopped in its second epoch and goes on."""
    recipe = taught.changed({"probe": 4, "epochs": 3})
    stopped = tmp_path / "stopped"
    original = runs.fit

    def interrupted(*given: Any, **more: Any) -> Any:
        probe = more["probe"]
        run = type(probe).__call__

        class Stops:
            def __call__(self, step: int, epoch: float) -> Any:
                if step == 9:
                    raise KeyboardInterrupt
                return run(probe, step, epoch)

            def run(self, step: int, epoch: float) -> Any:
                return probe.run(step, epoch)

        return original(*given, **{**more, "probe": Stops()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.run(recipe, stopped)
    runs.run(recipe, stopped, resume=True)
    runs.run(recipe, tmp_path / "whole")
    found, expected = (of_kind(folder, "probe") for folder in (stopped, tmp_path / "whole"))
    assert [record["step"] for record in found] == [record["step"] for record in expected] == [0, 4, 8, 12, 16, 18]
    assert [record["terms"] for record in found] == [record["terms"] for record in expected]
    assert len(of_kind(stopped, "data")) == 1
    assert json.loads((stopped / "summary.json").read_text())["probe"]["count"] == 6


def test_settings(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Recipe.from_yaml(small.changed({"probe": "off"}).to_yaml()).probe == "off"
    bare = small.to_yaml().replace("probe: auto", "probe: off")
    assert yaml.safe_load(bare)["probe"] is False  # as YAML reads it
    assert Recipe.from_yaml(bare).probe == "off"
    assert Recipe.from_yaml(small.changed({"probe": 50}).to_yaml()).probe == 50
    for value in (0, -3, "sometimes", True):
        with pytest.raises(UserError, match="probe"):
            small.changed({"probe": value})
    with pytest.raises(UserError, match="probe_images"):
        small.changed({"probe_images": 3})
    words = ["--data", "digits", "--teacher", "small/cnn-4", "--student", "small/cnn-2", "--dry-run"]
    for flag in ("50", "off", "auto"):
        assert distill([*words, "--probe", flag, "--out", str(tmp_path / "x")]) == 0
        assert f"probe: {flag}" in capsys.readouterr().out.replace("'", "")


def test_a_run_without_log_records_is_not_counted(small: Recipe, finished: Path, tmp_path: Path) -> None:
    from limbeck.logs.runlog import RunLog
    from limbeck.runs.summary import _costs

    nothing = {"probe": None, "cost": None}
    assert _costs(small, RunLog(), 10.0) == nothing
    assert _costs(small, RunLog(tmp_path), 10.0) == nothing
    shutil.copy(finished / "log.jsonl", tmp_path / "log.jsonl")
    found = _costs(small, RunLog(tmp_path), 10.0)
    assert found["probe"]["share"] == pytest.approx(found["probe"]["seconds"] / 10, abs=1e-4)
    assert found["cost"]["teacher_share"] == pytest.approx(found["cost"]["teacher_seconds"] / 10, abs=1e-4)
