"""Comparisons: what a row holds and concludes, and which runs are made, kept and refused."""

import json
import sys
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.recipes.roles import RESUMABLE
from limbeck.report.intervals import interval, summarize
from limbeck.studies.compare import compare, conclusions, plan, read_record

BASE = Recipe(data="digits", student="small/cnn-2", teacher="small/cnn-32", epochs=3, seed=0)


def _summary(last: float, best: float, seconds: float, name: str) -> dict[str, Any]:
    return {
        "metric": "top1",
        "last": {"top1": last},
        "best": {"top1": best, "epoch": 1},
        "seconds": seconds,
        "run": name,
    }


def test_a_row_holds_what_the_report_reads() -> None:
    done = {
        "alone": {0: _summary(0.7, 0.71, 4.0, "alone-seed0"), 1: _summary(0.8, 0.81, 6.0, "alone-seed1")},
        "kd": {0: _summary(0.8, 0.85, 5.0, "kd-seed0"), 1: _summary(0.9, 0.95, 5.0, "kd-seed1")},
        "projector": {},
    }
    alone, kd = summarize(done, "top1")
    assert set(alone) == {"method", "n", "mean", "sd", "low", "high", "best_mean", "paired", "seconds", "runs"}
    assert alone["paired"] is None
    assert (kd["mean"], kd["best_mean"], kd["seconds"]) == (pytest.approx(0.85), pytest.approx(0.9), 5.0)
    assert kd["paired"]["against"] == "alone"
    assert kd["paired"]["mean"] == pytest.approx(0.1)
    assert kd["runs"] == ["kd-seed0", "kd-seed1"]
    json.dumps([alone, kd], allow_nan=False)


def test_conclusions_say_what_the_seeds_allow() -> None:
    def row(method: str, *differences: float) -> dict[str, Any]:
        return {"method": method, "paired": {"against": "alone", **asdict(interval(differences))}}

    alone = {"method": "alone", "paired": None}
    better = row("kd", 0.03, 0.05, 0.07)
    (said,) = conclusions([alone, better], "top1")
    assert said == (
        "kd minus alone: +5.00 points of top1 (95% interval +0.03 to +9.97, 3 seeds). "
        "Zero lies outside of the interval: a difference."
    )
    surely, chance, unclear = conclusions(
        [alone, row("stages", 0.1, 0.101, 0.102), better, row("projector", -0.1, 0.1, 0.2)], "top1"
    )
    assert surely.endswith("Zero lies outside of the interval, also when corrected for 3 claims (Holm): a difference.")
    assert chance.endswith("but not when corrected for 3 claims (Holm): no difference shown.")
    assert unclear.endswith("Zero lies inside of the interval: no difference shown.")
    for few in ((0.05,), (0.05, 0.051)):
        (said,) = conclusions([row("kd", *few)], "top1")
        assert said.endswith("Fewer than 3 seeds: nothing can be concluded; use --seeds 3 or more.")
    (flat,) = conclusions([row("kd", 0.85 - 0.8, 0.86 - 0.81, 0.87 - 0.82)], "top1")
    assert flat.endswith("so the interval has no width: no evidence; use more seeds.")


def test_the_plan_is_seed_by_seed_with_a_teacher_only_where_one_is_used() -> None:
    runs = plan(BASE, ["alone", "projector+kd"], [0, 3])
    assert list(runs) == ["alone-seed0", "projector+kd-seed0", "alone-seed3", "projector+kd-seed3"]
    assert runs["alone-seed3"].teacher is None
    assert runs["projector+kd-seed3"].teacher == "small/cnn-32"
    assert (runs["alone-seed3"].seed, runs["alone-seed3"].method) == (3, "alone")


def test_what_only_some_methods_use_is_left_to_them() -> None:
    """Every method has what it reads, and the defaults of the rest."""
    recipe = BASE.changed({"method": "projector+kd", "student_tap": "layer3", "student_logit_tap": "fc"})
    runs = plan(recipe.changed({"cache_views": 2}), ["alone", "kd", "projector", "stages+kd"], [0])
    found = {name: (run.student_tap, run.student_logit_tap, run.cache_views) for name, run in runs.items()}
    assert found == {
        "alone-seed0": (None, None, None),
        "kd-seed0": (None, "fc", 2),
        "projector-seed0": ("layer3", None, 2),
        "stages+kd-seed0": (None, "fc", None),
    }


@pytest.mark.parametrize(
    ("methods", "seeds", "line"),
    [
        ([], [0], "methods: expected at least one, each once, got none"),
        (["kd", "kd"], [0], "methods: expected at least one, each once, got kd kd"),
        (["kd"], [], "seeds: expected at least one, each once, got none"),
        (["kd"], [1, 1], "seeds: expected at least one, each once, got 1 1"),
    ],
)
def test_plans_that_make_no_sense_are_refused(methods: list[Any], seeds: list[int], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}$"):
        plan(BASE, methods, seeds)


Runs = list[tuple[str, bool]]


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A stand-in for training that keeps the promises of `run`: folder, recipe, summary, resume."""
    made: Runs = []

    def run(recipe: Recipe, folder: Path, *, if_begun: bool = False, said: set[str] | None = None) -> dict[str, Any]:
        kept = folder / "recipe.yaml"
        made.append((folder.name, if_begun and kept.is_file()))
        if kept.is_file() and (changes := Recipe.from_yaml(kept).difference(recipe, but=fields_of(*RESUMABLE))):
            raise UserError(f"{folder} holds a run of another recipe: {'; '.join(changes)}")
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(recipe.to_yaml())
        gain = {"alone": 0.0, "kd": 0.1}.get(recipe.method, 0.2)
        summary = _summary(0.5 + gain + 0.01 * recipe.seed, 0.6 + gain, 2.0, "x")
        if recipe.teacher is not None:
            (folder.parent / "teachers" / "t").mkdir(parents=True, exist_ok=True)
            summary |= {"teacher": {"top1": 0.99}, "teacher_weights": "run:t"}
        else:
            summary |= {"teacher": None, "teacher_weights": None}
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    module = types.ModuleType("limbeck.runs.run")
    vars(module)["run"] = run
    monkeypatch.setitem(sys.modules, "limbeck.runs.run", module)
    return made


def test_a_comparison_runs_everything_and_writes_its_record(tmp_path: Path, fake_run: Runs) -> None:
    said: list[str] = []
    folder = tmp_path / "out"
    result = compare(BASE, folder, methods=["alone", "kd", "projector"], seeds=[0, 1, 2], command="it", say=said.append)
    assert len(fake_run) == 9
    assert said[0] == "[1/9] alone, seed 0"
    assert said[-2] == "[9/9] projector, seed 2"
    assert result == read_record(folder) == json.loads((folder / "comparison.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["alone", "kd", "projector"]
    assert result["rows"][1]["paired"]["mean"] == pytest.approx(0.1)
    assert result["rows"][0]["mean"] == pytest.approx(0.51)
    assert result["metric"] == "top1"
    assert result["teacher"] == {"top1": 0.99, "run": "teachers/t"}
    assert (result["command"], result["seeds"]) == ("it", [0, 1, 2])


def test_a_stopped_comparison_goes_on_and_may_grow(
    tmp_path: Path, fake_run: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    run: Callable[..., dict[str, Any]] = vars(sys.modules["limbeck.runs.run"])["run"]

    def stopped(
        recipe: Recipe, folder: Path, *, if_begun: bool = False, said: set[str] | None = None
    ) -> dict[str, Any]:
        if folder.name == "kd-seed1":
            (folder).mkdir()
            (folder / "recipe.yaml").write_text(recipe.to_yaml())
            raise KeyboardInterrupt
        return run(recipe, folder, if_begun=if_begun)

    monkeypatch.setattr(sys.modules["limbeck.runs.run"], "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(BASE, folder, methods=["alone", "kd"], seeds=[0, 1], say=str)
    assert [row["n"] for row in read_record(folder)["rows"]] == [2, 1]
    monkeypatch.setattr(sys.modules["limbeck.runs.run"], "run", run)
    fake_run.clear()
    with pytest.raises(UserError, match="already holds a comparison; continue it with --resume"):
        compare(BASE, folder, methods=["alone", "kd"], seeds=[0, 1], say=str)
    said: list[str] = []
    result = compare(BASE, folder, methods=["alone", "kd", "projector"], seeds=[0, 1], resume=True, say=said.append)
    assert said[0].startswith("not recorded, so not compared: images (alone-seed0, kd-seed0, alone-seed1)")
    assert said[1] == "[1/6] alone, seed 0: finished before"
    assert said[-4] == "[5/6] kd, seed 1"
    assert ("kd-seed1", True) in fake_run
    assert ("projector-seed0", False) in fake_run
    assert [row["n"] for row in result["rows"]] == [2, 2, 2]


def test_another_recipe_or_a_foreign_folder_is_refused(tmp_path: Path, fake_run: Runs) -> None:
    folder = tmp_path / "out"
    compare(BASE, folder, methods=["alone", "kd"], seeds=[0], say=str)
    with pytest.raises(UserError, match=r"holds a comparison with another recipe \(epochs: 3 -> 4\)$"):
        compare(BASE.changed({"epochs": 4}), folder, methods=["alone"], seeds=[0], resume=True, say=str)
    compare(BASE.changed({"workers": 1, "probe": "off"}), folder, methods=["alone"], seeds=[0], resume=True, say=str)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    fake_run.clear()
    for resume in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no comparison"):
            compare(BASE, foreign, methods=["alone"], seeds=[0], resume=resume, say=str)
    assert fake_run == []
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    for damage in ("{", "[" * 100_000, "[1]", "3", '{"recipe": 3}', '{"recipe": {"epochs": "x"}}'):
        (folder / "comparison.json").write_text(damage)
        with pytest.raises(UserError) as raised:
            compare(BASE, folder, methods=["alone"], seeds=[0], resume=True, say=str)
        assert "\n" not in str(raised.value)


def test_nothing_is_trained_when_a_method_does_not_fit(tmp_path: Path, fake_run: Runs) -> None:
    free = BASE.changed({"labels": False})
    with pytest.raises(UserError, match="method alone learns from the labels only"):
        compare(free, tmp_path / "out", methods=["kd", "alone"], seeds=[0], say=str)
    assert fake_run == []
    assert not (tmp_path / "out").exists()


def test_each_run_ends_with_a_line_and_the_figure_of_the_student_alone(tmp_path: Path, fake_run: Runs) -> None:
    lines: list[str] = []
    compare(BASE, tmp_path / "out", methods=["alone", "kd"], seeds=[0], say=lines.append)
    assert lines == [
        "[1/2] alone, seed 0",
        "[1/2] alone, seed 0: top1 50.00%, 2 s",
        "[2/2] kd, seed 0",
        "[2/2] kd, seed 0: top1 60.00% (alone 50.00%), 2 s",
    ]
