"""Sweeps: which trials are drawn, stopped, gone on with and confirmed, and what is said in the end."""

import importlib.util
import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import run
from limbeck.runs.lock import HeldError
from limbeck.runs.run import OnEpoch
from limbeck.studies import pool
from limbeck.studies import sweep as sweeps
from limbeck.studies.sweep import make_plan, sweep
from limbeck.studies.sweep_text import cells_of, markdown, ranked, sentences
from limbeck.studies.trials import STUDY_FILE, Plan, Trials, require_optuna

optuna = pytest.importorskip("optuna", reason="optuna is not installed (extra sweep)")

BASE = Recipe(data="digits", student="small/cnn-2", teacher="small/cnn-32", epochs=5, feature_loss="log_sum")
SPACE = ("feature_weight=0.1..10:log", "alpha=1,2,4")

Score = Callable[[Recipe], float]


def plan(words: tuple[str, ...] = SPACE, **more: Any) -> Plan:
    return make_plan(BASE, words, **more)


def pretend(monkeypatch: pytest.MonkeyPatch, score: Score, made: list[str] | None = None) -> None:
    """Runs that take no time; top-1 rises to a function of the recipe, by equal steps."""

    def run_it(
        recipe: Recipe,
        folder: Path,
        *,
        resume: bool = False,
        if_begun: bool = False,
        said: set[str] | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> dict[str, Any]:
        del resume, said
        value = score(recipe)
        if made is not None:
            made.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        for epoch in range(1, recipe.epochs + 1):
            line = json.dumps({"kind": "epoch", "step": epoch, "epoch": epoch, "seconds": 2.0 * epoch})
            with (folder / "log.jsonl").open("a") as file:
                file.write(line + "\n")
            if on_epoch is not None:
                on_epoch(epoch, {"loss": 1.0, "top1": value * epoch / recipe.epochs})
        figures = {"metric": "top1", "last": {"top1": value}, "best": {"top1": value}, "seconds": 10.0}
        (folder / "summary.json").write_text(json.dumps(figures))
        (folder / "student.safetensors").write_bytes(b"")
        return figures

    monkeypatch.setattr(run, "run", run_it)


def quality(recipe: Recipe) -> float:
    """Best at weight 1 and alpha 2, a little better with each seed."""
    import math

    return 0.7 - 0.1 * abs(math.log10(recipe.full_feature_weight)) - 0.05 * abs(recipe.alpha - 2) + 0.001 * recipe.seed


def quiet(line: str) -> None:
    del line


def test_the_best_is_found_and_confirmed_beside_the_recipe_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    pretend(monkeypatch, quality, made)
    record = sweep(plan(trials=30, pruner="none", confirm=2), tmp_path / "out", command="limbeck sweep", say=quiet)
    assert len(record["trials"]) == 30
    assert made[:30] == [f"trial-{number:03d}-seed0" for number in range(30)]
    best = record["best"]
    assert best["settings"]["alpha"] == 2
    assert 0.5 < best["settings"]["feature_weight"] < 2
    assert best["chosen with"] == max(trial["last"] for trial in record["trials"])
    first, second, third = record["choice"]
    assert (first["method"], first["n"], first["paired"]) == ("as given", 3, None)
    assert second["method"] == best["row"]
    assert second["paired"]["mean"] == pytest.approx(best["chosen with"] - quality(BASE))
    assert third["mean"] <= second["mean"]
    assert [(row["method"], row["n"]) for row in record["rows"]] == [("as given", 3), (best["row"], 3)]
    assert record["by seed"]["as given"] == {str(seed): quality(BASE.changed({"seed": seed})) for seed in range(1, 7)}
    assert all(name.endswith(("seed1", "seed2", "seed3")) for name in made[30:39])
    assert all(name.endswith(("seed4", "seed5", "seed6")) for name in made[39:])
    assert len(made) == 30 + 3 * 3 + 2 * 3
    assert set(record["importance"]) == {"feature_weight", "alpha"}
    assert sum(record["importance"].values()) == pytest.approx(1)
    kept = Recipe.from_yaml(tmp_path / "out" / "best.yaml")
    assert kept == BASE.changed(best["settings"])
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == json.loads(json.dumps(record))
    assert (tmp_path / "out" / "sweep.md").read_text() == markdown(record)
    said = sentences(record)
    assert said[0].startswith("importance among the 30 finished trials (fANOVA): ")
    assert said[1] == f"as given: feature_weight {BASE.feature_weight}, alpha 4."
    assert "Every seed differs by the same" in said[2]  # the fake runs of this test have no luck
    assert said[-1] == "The validation images chose among 30 settings; on others expect less."


def test_what_is_concluded_is_of_seeds_that_chose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that change nothing, and luck by seed and setting: the best of four on three seeds is a lucky one."""

    def luck(recipe: Recipe) -> float:
        return 0.5 + 0.1 * random.Random(f"{recipe.alpha} {recipe.seed}").random()

    pretend(monkeypatch, luck)
    plan_ = plan(("alpha=1,2,3,5,6",), sampler="grid", pruner="none", confirm=4, seeds=3)
    record = sweep(plan_, tmp_path, say=quiet)
    best = record["best"]
    assert best["row"] != "as given"
    winner = BASE.changed(best["settings"])
    chose, confirmed = (
        fmean(luck(winner.changed({"seed": seed})) for seed in seeds) for seeds in (range(1, 4), range(4, 7))
    )
    assert best["chose"] == pytest.approx(chose)
    assert best["chose"] == max(row["mean"] for row in record["choice"])
    assert best["mean"] == pytest.approx(confirmed)
    assert best["mean"] < best["chose"]
    assert [row["method"] for row in record["rows"]] == ["as given", best["row"]]
    assert f"{100 * best['mean']:.2f}% on seeds that chose nothing." in " ".join(sentences(record))
    text = markdown(record)
    assert text.index("The seeds that chose:") < text.index("Seeds that chose nothing:")


def test_a_grid_takes_each_combination_once_and_passes_over_contradictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, quality)
    words = ("feature_loss=log_correlation,log_sum", "teacher_norm=batch,none", "alpha=1,2")
    chosen = plan(words, sampler="grid", pruner="none", seeds=0)
    assert chosen.trials == 8
    record = sweep(chosen, tmp_path, say=quiet)
    found = [tuple(trial["settings"].values()) for trial in record["trials"]]
    batch = [(loss, "batch", alpha) for loss in ("log_correlation", "log_sum") for alpha in (1, 2)]
    assert sorted(found) == sorted([*batch, ("log_sum", "none", 1), ("log_sum", "none", 2)])
    assert record["rows"] == []
    assert sentences(record)[0].endswith("; not confirmed on other seeds.")
    assert record == sweep(chosen, tmp_path, say=quiet)  # nothing is left to do


def test_lists_are_not_drawn_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, quality)
    chosen = plan(("alpha=1,2,4",), sampler="random", pruner="none", seeds=0)
    assert chosen.trials == 3
    record = sweep(chosen, tmp_path, say=quiet)
    assert sorted(trial["settings"]["alpha"] for trial in record["trials"]) == [1, 2, 4]
    assert record["importance"] == {}  # too few


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_bad_trials_are_stopped_early_and_never_before_their_time(
    pruner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, quality)
    chosen = plan(trials=20, pruner=pruner, min_epochs=2, seeds=1, sampler="random")
    record = sweep(chosen, tmp_path, say=quiet)
    states = [trial["state"] for trial in record["trials"]]
    assert set(states) == {"finished", "stopped"}
    assert states.count("stopped") >= 5
    for trial in record["trials"]:
        assert len(trial["curve"]) == trial["epochs"]
        assert trial["seconds"] == 2.0 * trial["epochs"]
        assert trial["epochs"] == 5 if trial["state"] == "finished" else 2 <= trial["epochs"] < 5
        assert (trial["last"] is None) == (trial["state"] == "stopped")
    finished = [trial["curve"][1] for trial in record["trials"] if trial["state"] == "finished"]
    stopped = [trial["curve"][1] for trial in record["trials"] if trial["state"] == "stopped"]
    assert max(finished) > max(stopped)
    assert ranked(record)[0]["last"] == max(trial["last"] or 0 for trial in record["trials"])
    assert cells_of(ranked(record)[-1], "top1")[2:4] == ["", f"{ranked(record)[-1]['epochs']}/5"]


def test_what_was_stopped_goes_on_and_draws_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, quality)
    whole = sweep(plan(trials=14), tmp_path / "whole", say=quiet)
    calls = 0

    def interrupted(recipe: Recipe) -> float:
        nonlocal calls
        calls += 1
        if calls in (4, 9, 13):
            raise KeyboardInterrupt
        return quality(recipe)

    pretend(monkeypatch, interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            sweep(plan(trials=14), tmp_path / "broken", say=quiet)
    with (tmp_path / "broken" / STUDY_FILE).open("a") as file:
        file.write('{"op_code": 4, "wor')  # what a kill in the middle of a line leaves
    broken = sweep(plan(trials=14), tmp_path / "broken", say=quiet)
    for name in ("trials", "rows", "best", "importance"):
        assert broken[name] == whole[name], name
    more = sweep(plan(trials=16, seeds=4), tmp_path / "broken", say=quiet)
    assert more["trials"][:14] == whole["trials"]
    assert [row["n"] for row in more["choice"]] == [4] * 4
    assert [row["n"] for row in more["rows"]] == [4] * 2


def test_a_trial_of_another_process_is_left_to_it_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds the first trial until the others are done, and dies."""
    made: list[str] = []
    pretend(monkeypatch, quality, made)
    chosen = plan(trials=3, seeds=0, pruner="none")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / sweeps.PLAN_FILE).write_text(json.dumps(chosen.record()))
    other = Trials(chosen, tmp_path / "out")
    taken = other.take()
    assert taken is not None
    held = {other.place(taken[0].number)}
    monkeypatch.setattr("limbeck.runs.lock.is_held", lambda place: place in held)
    waited: list[float] = []

    def other_dies(seconds: float) -> None:
        waited.append(seconds)
        held.clear()

    monkeypatch.setattr(sweeps.time, "sleep", other_dies)
    record = sweep(chosen, tmp_path / "out", say=quiet)
    assert waited == [pool.WAIT]
    assert made == ["trial-001-seed0", "trial-002-seed0", "trial-000-seed0"]
    assert record["trials"][0]["settings"] == taken[1]
    assert {trial["state"] for trial in record["trials"]} == {"finished"}


def test_a_kill_right_behind_a_draw_leaves_nothing_that_cannot_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, quality)
    words = ("feature_loss=log_correlation,log_sum", "teacher_norm=none,batch")
    chosen = plan(words, sampler="grid", pruner="none", seeds=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / sweeps.PLAN_FILE).write_text(json.dumps(chosen.record()))
    dead = Trials(chosen, tmp_path / "out").study.ask()  # which contradicts itself, and is not passed over yet
    assert dead.suggest_categorical("feature_loss", ("log_correlation", "log_sum")) == "log_correlation"
    record = sweep(chosen, tmp_path / "out", say=quiet)
    assert [trial["trial"] for trial in record["trials"]] == [1, 2, 3]


def test_who_was_quicker_has_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, quality)
    trained = run.run
    seen: list[str] = []

    def first_is_taken(recipe: Recipe, folder: Path, **more: Any) -> Any:
        seen.append(folder.name)
        if len(seen) == 1:
            raise HeldError("another process is writing")
        return trained(recipe, folder, **more)

    monkeypatch.setattr(run, "run", first_is_taken)
    record = sweep(plan(trials=2, seeds=0), tmp_path, say=quiet)
    assert seen == ["trial-000-seed0", "trial-000-seed0", "trial-001-seed0"]
    assert [trial["state"] for trial in record["trials"]] == ["finished", "finished"]


def test_a_run_that_fails_is_one_trial_but_all_alike_are_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(recipe: Recipe) -> float:
        if recipe.alpha == 4:
            raise UserError("the loss is not finite at step 7")
        return quality(recipe)

    pretend(monkeypatch, score)
    record = sweep(plan(("alpha=1,2,4",), sampler="grid", seeds=1), tmp_path / "one", say=quiet)
    (failed,) = (trial for trial in record["trials"] if trial["state"] == "failed")
    assert (failed["failed"], failed["settings"]) == ("the loss is not finite at step 7", {"alpha": 4.0})
    assert cells_of(failed, "top1") == ["2", "alpha 4", "failed", "0/5", "0"]
    assert record["best"]["settings"] == {"alpha": 2.0}

    def broken(recipe: Recipe, folder: Path, **more: Any) -> Any:
        raise UserError(f"no images in {recipe.data}")

    monkeypatch.setattr(run, "run", broken)
    with pytest.raises(UserError, match="the first 3 trials failed alike: no images in digits"):
        sweep(plan(trials=20), tmp_path / "all", say=quiet)
    assert not (tmp_path / "all").exists()  # the same command, corrected, may take it


def test_the_recipe_as_given_is_no_discovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda recipe: 0.9 if recipe.alpha == 4 else 0.5)
    record = sweep(plan(("alpha=1,4",), sampler="grid", pruner="none"), tmp_path, say=quiet)
    assert (record["best"]["row"], record["best"]["settings"]) == ("as given", {})
    assert Recipe.from_yaml(tmp_path / "best.yaml") == BASE
    assert "best: the recipe as given (alpha 4), 90.00%: no setting that was tried on other seeds is better." in (
        sentences(record)
    )
    assert "| as given (alpha 4) |" in markdown(record)
    assert [row["method"] for row in record["rows"]] == ["as given", "trial 0"]
    assert record["rows"][1]["paired"]["mean"] == pytest.approx(-0.4)


ERRORS: list[tuple[str, str]] = [
    ("--space: missing; name the settings", ""),
    ("--sampler: grid needs lists of values, got the range lr=0.01..0.1", "--space lr=0.01..0.1 --sampler grid"),
    ("--trials: grid takes all combinations", "--space alpha=1,2 --sampler grid --trials 2"),
    ("--trials: expected a whole number from 1 to 10,000, got 0", "--space alpha=1,2 --trials 0"),
    ("--confirm: expected a whole number from 1 to 10,000, got 0", "--space alpha=1,2 --confirm 0"),
    ("--seeds: expected a whole number from 0 to 10,000, got -1", "--space alpha=1,2 --seeds=-1"),
    ("--min-epochs: expected 1 to 30, the epochs of a run, got 31", "--space alpha=1,2 --min-epochs 31"),
    ("--space: epochs differ, so that trials cannot be compared", "--space epochs=10,20"),
    ("labels: a sweep compares runs by the labels", "--space alpha=1,2 --no-labels"),
    ("--space: no combination is a recipe; teacher_norm layer", "--space teacher_norm=layer,none"),
    ("--sampler: expected one of tpe, random, grid, got 'bayes'", "--space alpha=1,2 --sampler bayes"),
    ("--pruner: expected one of median, halving, none, got 'medan' (did you", "--space alpha=1,2 --pruner medan"),
    ("--resume: a sweep resumes by itself; give the same command again", "--space alpha=1,2 --resume runs/x"),
    ('unknown flag "--trails" (did you mean "--trials"?)', "--space alpha=1,2 --trails 2"),
    ("--epochs: expected a whole number from 1 to 1,000,000,000", "--space alpha=1,2 --epochs x"),
    ("--trials: expected a whole number or None, got 'many'", "--space alpha=1,2 --trials many"),
]


@pytest.mark.parametrize(("message", "words"), ERRORS, ids=[words for _, words in ERRORS])
def test_wrong_words_are_told_in_one_line(
    message: str, words: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["sweep", "--recipe", "digits", *words.split(), "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, quality)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        sweep(plan(trials=1), tmp_path, say=quiet)
    sweep(plan(trials=1, seeds=0), tmp_path / "a", say=quiet)
    with pytest.raises(UserError, match="holds a sweep with pruner median, not none"):
        sweep(plan(trials=1, pruner="none"), tmp_path / "a", say=quiet)
    with pytest.raises(UserError, match=r"holds a sweep with space \['feature_weight=0.1..10:log', 'alpha=1,2,4'\]"):
        sweep(plan(("alpha=1,2",)), tmp_path / "a", say=quiet)
    other = make_plan(BASE.changed({"lr": 0.1}), SPACE)
    with pytest.raises(UserError, match=r"holds a sweep of another recipe \(lr: 0.05 -> 0.1\)"):
        sweep(other, tmp_path / "a", say=quiet)
    (tmp_path / "a" / STUDY_FILE).write_text("no journal\n{}\n")
    with pytest.raises(UserError, match=r"study.jsonl is damaged .*; choose another --out"):
        sweep(plan(trials=1), tmp_path / "a", say=quiet)


def test_without_optuna_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_optuna()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs optuna, which is not installed; pip install "limbeck\[sweep\]"$'):
        sweep(plan(trials=1), tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()


def test_one_process_of_a_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", "--recipe", "digits", "--space", "alpha=1,2"]) == 2
    assert "sweep runs as one process; start it several times" in capfd.readouterr().err


WORDS = ["sweep", "--recipe", "digits", "--space", "feature_weight=0.5..8:log", "--trials", "2", "--confirm", "1"]
WORDS += ["--seeds", "1", "--epochs", "2", "--teacher-epochs", "1", "--train-limit", "300", "--device", "cpu"]


def test_the_command_searches_and_prints_what_fits_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really trained; the second time there is nothing left to do."""
    monkeypatch.setenv("COLUMNS", "80")
    words = [*WORDS, "--out", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    assert "# 2 trials of 2 epochs by tpe, stopped early by median, not before epoch 1" in capfd.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "[1/2] trial-000-seed0: feature_weight " in said
    assert "[1/2, confirming] as-given-seed1" in said
    assert re.search(r"^teacher top1: \d+\.\d\d%$", said, re.MULTILINE)
    assert "2 trials (2 finished), top1 in % of seed 0" in said
    assert "Fewer than 3 seeds: nothing can be concluded" in said
    best = re.escape(f"limbeck distill --recipe {tmp_path / 'out' / 'best.yaml'}")
    assert re.search(f"^train with the best(, the recipe as given)?: {best}$", said, re.MULTILINE)
    table = said[said.index("2 trials (") : said.index("minus as given:")].splitlines()[:-1]
    assert max(map(len, table)) <= 80
    assert len(list((tmp_path / "out" / "teachers").iterdir())) == 1
    assert (tmp_path / "out" / "as-given-seed1" / "report.html").is_file()
    before = (tmp_path / "out" / "sweep.json").read_text()
    assert main(words) == 0
    assert "confirming]" not in capfd.readouterr().out
    assert (tmp_path / "out" / "sweep.json").read_text() == before


@pytest.mark.processes
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    words = [*WORDS, "--epochs", "200", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "limbeck.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "trial-000" in line:
            break
    log = tmp_path / "out" / "trial-000-seed0" / "log.jsonl"
    while not (log.is_file() and '"kind": "epoch"' in log.read_text()):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "limbeck: stopped; continue with: limbeck sweep --recipe digits" in error
    assert not (tmp_path / "out" / "trial-001-seed0").exists()
