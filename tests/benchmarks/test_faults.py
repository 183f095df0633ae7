"""Three of the benchmark's runs for real, with few epochs: a fault is told as what it is, a healthy run is not told."""

import importlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from limbeck.data import open_data
from limbeck.data.spec import DataSpec
from limbeck.recipes.published import digits
from limbeck.recipes.recipe import Recipe
from limbeck.report.verdict import verdicts
from limbeck.runs.run import run

ROOT = Path(__file__).resolve().parents[2]
BASE = digits().changed({"probe": 40, "compile": "off", "device": "cpu", "epochs": 6, "student": "small/cnn-4"})


@pytest.fixture(scope="module")
def faults() -> Iterator[ModuleType]:
    """The script as a recipe finds its functions: as ``benchmarks.faults``, from the root of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("benchmarks.faults")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    alone = {"method": "alone", "teacher": None, "teacher_epochs": None, "probe": "off", "student": "small/cnn-32"}
    run(BASE.changed(alone), folder)
    return folder


def recipe_of(faults: ModuleType, folder: Path, teacher: Path, name: str) -> tuple[Recipe, str]:
    """The recipe of a case, and the verdict that it should get."""
    [case] = [case for case in faults.cases(folder, teacher) if case.name == name]
    return BASE.changed({"teacher_weights": str(teacher), **case.changes}), case.expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weight 100 times", "weight-too-large"),
        ("teacher drops out", "random-teacher"),
        ("healthy, student of width 4", ""),
    ],
)
@pytest.mark.long
def test_a_run_gets_the_verdict_that_it_should(
    faults: ModuleType, teacher: Path, tmp_path: Path, name: str, expected: str
) -> None:
    recipe, wanted = recipe_of(faults, tmp_path, teacher, name)
    assert wanted == expected
    run(recipe, tmp_path / "run")
    found: dict[str, Any] = faults.read(tmp_path / "run")
    assert found["verdicts"] == ([expected] if expected else [])
    assert len(found["seen"]) == len(found["verdicts"])
    assert {"rank", "count", "norm", "change", "c", "train", "feature/task", "repeatability"} <= found["figures"].keys()


def test_the_cases_cover_every_rule_and_as_many_healthy_runs(faults: ModuleType, tmp_path: Path) -> None:
    cases = faults.cases(tmp_path, tmp_path / "teacher")
    assert len({case.name for case in cases}) == len(cases)
    assert len([case for case in cases if not case.expected]) >= 10
    assert {case.expected for case in cases if case.expected} == {
        "leaking-data", "conflicting-labels", "random-teacher", "teacher-in-train-mode", "wrong-input-statistics",
        "weight-too-large", "weight-too-small", "collapsed-projector", "dead-channels", "passive-student",
        "capacity-gap",
    }  # fmt: skip
    for case in cases:
        BASE.changed({"teacher_weights": "teacher", **case.changes})  # every one is a recipe


def test_images_with_a_planted_fault_are_what_the_rules_read(faults: ModuleType, tmp_path: Path) -> None:
    faults.write_data(tmp_path)
    said: dict[str, list[str]] = {}
    for kind in ("leaking", "conflicting"):
        found = open_data(DataSpec(source=str(tmp_path / kind), size=8), memory=1 << 30).duplicates()
        assert found is not None
        said[kind] = [verdict.name for verdict in verdicts([{"kind": "data", **asdict(found)}])]
    assert said == {"leaking": ["leaking-data"], "conflicting": ["conflicting-labels"]}
