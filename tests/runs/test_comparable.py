"""Runs that are put into one table: of the same images, device, arithmetic and teacher, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.assembly.arithmetic import Settled
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import comparable as studies
from limbeck.training.precision import Arithmetic

Places = dict[Path, Recipe]


@pytest.fixture
def places(finished: Path, small: Recipe, tmp_path: Path) -> Places:
    """Two finished runs, and one that is still to be made."""
    found = {tmp_path / f"kd-seed{seed}": small.changed({"seed": seed}) for seed in range(3)}
    for place, recipe in list(found.items())[:2]:
        place.mkdir()
        for name in ("summary.json", "data.json", "student.safetensors"):
            shutil.copy(finished / name, place / name)
        settled = {"precision": "float32", "memory_format": "contiguous", "compile": "off"}
        (place / "recipe.yaml").write_text(recipe.changed(settled).to_yaml())
    return found


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def begin(places: Places) -> list[str]:
    said: list[str] = []
    studies.begin(next(iter(places)).parent, places, said.append)
    return said


def test_runs_that_belong_together_are_taken_and_their_arithmetic_is_kept(places: Places) -> None:
    assert begin(places) == []
    folder = next(iter(places)).parent
    kept = json.loads((folder / studies.FILE).read_text())
    assert kept == {"precision": "float32", "memory_format": "contiguous", "compile": "off"}
    assert studies.check(folder, places).startswith("float32, contiguous, not compiled; cpu")


def test_other_images_are_refused(places: Places) -> None:
    """Images that were changed between two seeds, and those that were changed since both."""
    first, second, _ = places
    edit(second / "data.json", {"fingerprint": "x"})
    with pytest.raises(UserError, match=r"kd-seed0 and kd-seed1 have other images: names, sizes and labels"):
        begin(places)
    edit(first / "data.json", {"fingerprint": "x"})
    with pytest.raises(UserError, match=r"images have changed since .*kd-seed0 was made"):
        begin(places)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"device": "NVIDIA H200"}, "kd-seed0 and kd-seed1 have another device: cpu and NVIDIA H200"),
        (
            {"origins": {"teacher": {"weights": "run:t", "digest": "0", "classes": 10, "new_head": False}}},
            "kd-seed0 and kd-seed1 have two teachers: small/cnn-4 with weights",
        ),
    ],
)
def test_another_device_or_teacher_is_refused(change: dict[str, Any], line: str, places: Places) -> None:
    first, second, _ = places
    edit(second / "summary.json", change)
    with pytest.raises(UserError, match=line) as raised:
        begin(places)
    assert "\n" not in str(raised.value)
    edit(first / "summary.json", change)
    if "device" in change:
        with pytest.raises(UserError, match="was made on NVIDIA H200, the other runs would be on cpu"):
            begin(places)
    else:
        assert begin(places) == []


def test_another_head_of_one_teacher_is_no_other_teacher(places: Places) -> None:
    """Where nothing reads it, each run draws its own; a teacher without labels has one or none."""
    _, second, _ = places
    teacher = json.loads((second / "summary.json").read_text())["origins"]["teacher"]
    for change in ({"new_head": True, "digest": "0"}, {"classes": 0, "digest": "0"}):
        edit(second / "summary.json", {"origins": {"teacher": {**teacher, **change}}})
        assert begin(places) == []
    edit(second / "summary.json", {"origins": {"teacher": {**teacher, "digest": "0"}}})
    with pytest.raises(UserError, match="have two teachers"):
        begin(places)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"memory_format": "channels_last"}, "kd-seed1 holds a run of another recipe: memory_format"),
        ({"compile": "on"}, "kd-seed0 and kd-seed1 have another arithmetic: float32, contiguous, not compiled and "),
        ({"lr": 0.5}, "kd-seed1 holds a run of another recipe: lr: 0.5 -> 0.05"),
        ({"workers": 1, "probe": "off", "name": "mine"}, ""),
    ],
)
def test_another_arithmetic_or_recipe_is_refused(change: dict[str, Any], line: str, places: Places) -> None:
    _, second, _ = places
    path = second / "recipe.yaml"
    path.write_text(Recipe.from_yaml(path).changed(change).to_yaml())
    if not line:
        assert begin(places) == []
        return
    with pytest.raises(UserError, match=line):
        begin(places)


def test_what_old_runs_did_not_record_is_told(places: Places) -> None:
    first, second, _ = places
    edit(second / "summary.json", {"data": {}, "device": None, "versions": {"torch": "1.0"}, "origins": {}})
    (second / "data.json").unlink()
    versions, unknown = begin(places)
    assert versions.startswith("the runs that are finished are of other versions: torch 1.0 -> ")
    assert unknown == "not recorded, so not compared: images (kd-seed1); device (kd-seed1); teacher (kd-seed1)"
    edit(first / "summary.json", {"commit": "a", "versions": {}})
    assert "versions (kd-seed0)" in begin(places)[-1]


def test_the_first_run_settles_for_all(small: Recipe, tmp_path: Path) -> None:
    """Whatever a later one would have measured."""
    cpu, asked = torch.device("cpu"), list[Recipe]()

    def settle(precision: str, layout: str) -> Any:
        def measured(recipe: Recipe) -> Settled:
            asked.append(recipe)
            chosen = [
                found if kept == "auto" else kept
                for kept, found in ((recipe.precision, precision), (recipe.memory_format, layout))
            ]
            return Settled(Arithmetic(chosen[0], chosen[1], False, ""), recipe.compile == "on", [])

        return measured

    free = small.changed({"precision": "auto", "memory_format": "auto", "device": "auto"})
    alone = studies.together(tmp_path / "no-study", free, cpu, settle("bf16", "channels_last"))
    assert alone.arithmetic.precision == "bf16"
    assert not (tmp_path / "no-study").exists()
    studies.begin(tmp_path, {tmp_path / "a": free}, str)
    first = studies.together(tmp_path, free, cpu, settle("bf16", "channels_last"))
    second = studies.together(tmp_path, free, cpu, settle("float32", "contiguous"))
    assert first.arithmetic == second.arithmetic == Arithmetic("bf16", "channels_last", False, "")
    assert asked[-1].compile == "off"
    named = studies.together(tmp_path, free.changed({"precision": "float32"}), cpu, settle("bf16", "contiguous"))
    assert (named.arithmetic.precision, named.arithmetic.memory_format) == ("float32", "channels_last")
