"""Search for good settings of a recipe, and confirm the best on other seeds beside the recipe as it was given.

Trials have one seed, and bad ones are stopped early. That the best of many is good is partly luck: its figure flatters,
on the seeds that chose it. The best few are therefore compared with the recipe as it was given on other seeds, and the
best of these once more on seeds that chose nothing; what is concluded is taken from those. The validation images have
chosen all the same.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.logs.records import figure, headline
from limbeck.recipes.parsing import read_summary
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.recipes.roles import RESUMABLE
from limbeck.studies.compare import Say
from limbeck.studies.search_space import Value, check_space, combinations, described, is_grid, parse_space
from limbeck.studies.sweep_text import AS_GIVEN, Confirmed, chosen, row_name, save_record, winner_of
from limbeck.studies.trials import FAILED, Plan, Pruner, Sampler, Trials, require_optuna, trial_name

if TYPE_CHECKING:
    from optuna.trial import Trial

TRIALS, MOST = 20, 10_000
PLAN_FILE = "plan.json"
ALL_FAIL = 3  # trials that fail alike before any has trained an epoch: it is the recipe, not their settings


class StoppedEarlyError(Exception):
    """A trial is not worth its remaining epochs."""


def make_plan(
    recipe: Recipe,
    words: Sequence[str],
    *,
    sampler: Sampler = "tpe",
    pruner: Pruner = "median",
    min_epochs: int | None = None,
    trials: int | None = None,
    confirm: int = 3,
    seeds: int = 3,
) -> Plan:
    """A plan that can be carried out.

    Args:
        recipe: What all runs share.
        words: The axes of the space, see `limbeck.studies.search_space`.
        sampler: Who draws the settings.
        pruner: Who stops trials early.
        min_epochs: Epochs that every trial gets; by default a fifth of them.
        trials: How many settings are tried; by default 20, of a grid all.
        confirm: How many of the best are trained again with other seeds.
        seeds: How many other seeds; none leave the result unconfirmed.

    Raises:
        UserError: If something of it cannot be, or contradicts the rest.
    """
    space = parse_space(words)
    if not recipe.labels:
        raise UserError("labels: a sweep compares runs by the labels of validation images; losses do not compare")
    if pruner != "none" and any(axis.name == "epochs" for axis in space):
        raise UserError("--space: epochs differ, so that trials cannot be compared at one of them; give --pruner none")
    if sampler == "grid" and not is_grid(space):
        ranges = next(str(axis) for axis in space if not is_grid([axis]))
        raise UserError(f"--sampler: grid needs lists of values, got the range {ranges}; tpe and random take ranges")
    if sampler == "grid" and trials is not None:
        raise UserError("--trials: grid takes all combinations; give none, or --sampler random")
    size = sum(1 for _ in combinations(space)) if is_grid(space) else None
    for name, value, least in (("--trials", trials, 1), ("--confirm", confirm, 1), ("--seeds", seeds, 0)):
        if value is not None and not least <= value <= MOST:
            raise UserError(f"{name}: expected a whole number from {least} to {MOST:,}, got {value}")
    if min_epochs is not None and not 1 <= min_epochs <= recipe.epochs:
        raise UserError(f"--min-epochs: expected 1 to {recipe.epochs}, the epochs of a run, got {min_epochs}")
    check_space(recipe, space)
    wanted = TRIALS if trials is None else trials
    return Plan(
        recipe,
        space,
        sampler,
        pruner,
        min_epochs if min_epochs is not None else max(1, recipe.epochs // 5),
        wanted if size is None else size if sampler == "grid" else min(wanted, size),
        confirm,
        seeds,
    )


def sweep(plan: Plan, folder: Path, *, command: str = "", say: Say = print) -> dict[str, Any]:
    """Run what is not there yet, and write ``sweep.json``, ``sweep.md`` and ``best.yaml``.

    The folder holds ordinary runs: ``trial-NNN-seedN``, ``as-given-seedN`` and ``teachers/``. Several processes may
    work at one folder; a trial that a process left when it died is gone on with. More trials, confirmed settings and
    seeds may be asked for later.

    Args:
        plan: What to run.
        folder: Where it goes.
        command: The command line, for the record.
        say: Told one line before and after each run.

    Returns:
        What ``sweep.json`` holds.

    Raises:
        UserError: If the folder holds something else, or if nothing can be trained at all.
    """
    from limbeck.runs.comparable import begin
    from limbeck.studies.pool import WAIT  # imports torch

    require_optuna()
    _claim(plan, folder)
    said: set[str] = set()
    trials = Trials(plan, folder)

    def places() -> dict[Path, Recipe]:
        return {trials.place(trial.number): trials.recipe(trials.settings(trial)) for trial in trials.all()}

    def save(confirmed: Confirmed) -> dict[str, Any]:
        return save_record(plan, folder, trials, confirmed, command=command)

    begin(folder, places(), say)
    save({})
    while True:
        taken = trials.take()
        if taken is None:
            if not trials.is_running():
                break
            time.sleep(WAIT)
            continue
        _try(plan, trials, *taken, said=said, say=say)
        save({})
        _stop_where_all_fail(trials, folder)
    return save(_confirm(plan, folder, trials, said=said, say=say, save=save))


def _try(
    plan: Plan, trials: Trials, trial: "Trial", settings: Mapping[str, Value], *, said: set[str], say: Say
) -> None:
    """Train one trial to its end, or until it is stopped."""
    from optuna.trial import TrialState

    from limbeck.runs.lock import HeldError
    from limbeck.runs.run import run  # imports torch

    recipe, place = trials.recipe(settings), trials.place(trial.number)
    begun = ": continuing" if (place / "recipe.yaml").is_file() else ""
    say(f"[{len(trials.all())}/{plan.trials}] {place.name}: {described(settings)}{begun}")

    def on_epoch(epoch: int, figures: Mapping[str, float]) -> None:
        if trials.report(trial, epoch, figures[headline(figures)[0]]) and epoch < recipe.epochs:
            raise StoppedEarlyError(f"stopped early, after epoch {epoch} of {recipe.epochs}")

    try:
        summary = run(recipe, place, if_begun=True, said=said, on_epoch=on_epoch)
    except HeldError:
        say(f"{place.name}: another process was quicker, and has it")
    except StoppedEarlyError as stop:
        trials.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        say(f"{place.name}: {stop}")
    except UserError as error:
        trial.set_user_attr(FAILED, str(error))
        trials.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        say(f"failed: {place.name}: {error}")
    else:
        metric = str(summary["metric"])
        trials.study.tell(trial, float(summary["last"][metric]), skip_if_finished=True)
        say(f"{place.name}: {metric} {figure(metric, float(summary['last'][metric]))}")


def _stop_where_all_fail(trials: Trials, folder: Path) -> None:
    """End a sweep that cannot begin, and leave no trace, so that the same command can be given again, corrected."""
    told = [trial for trial in trials.all() if trial.state.is_finished()]
    reasons = {trial.user_attrs.get(FAILED) for trial in told}
    if len(told) >= ALL_FAIL and len(reasons) == 1 and (reason := reasons.pop()) is not None:
        with contextlib.suppress(OSError):  # another process may do so, too, or be at work in it
            if not any(path.is_dir() for path in folder.iterdir()):
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
        raise UserError(f"the first {len(told)} trials failed alike: {reason}")


def _confirm(
    plan: Plan, folder: Path, trials: Trials, *, said: set[str], say: Say, save: Callable[[Confirmed], object]
) -> Confirmed:
    """Train the best settings, and the recipe as it is, with other seeds, and what these choose with further ones."""
    from limbeck.studies.pool import run_each

    best = {row_name(trial.number): trial for trial in chosen(plan, trials)}
    if not best or plan.seeds == 0:
        return {}
    cells: dict[tuple[str, int], tuple[Path, Recipe]] = {}

    def gathered() -> Confirmed:
        found: Confirmed = {}
        for (row, seed), (place, _) in cells.items():
            summary = read_summary(place)
            found.setdefault(row, {}).update({} if summary is None else {seed: {**summary, "run": place.name}})
        return found

    def train(rows: Sequence[str], seeds: range, what: str) -> None:
        wanted: dict[tuple[str, int], tuple[Path, Recipe]] = {}
        for seed in seeds:  # seed by seed, so that a stopped sweep has pairs to compare
            wanted[AS_GIVEN, seed] = (folder / f"as-given-seed{seed}", plan.recipe.changed({"seed": seed}))
            for row in rows:
                recipe = trials.recipe(trials.settings(best[row])).changed({"seed": seed})
                wanted[row, seed] = (folder / trial_name(best[row].number, seed), recipe)
        cells.update(wanted)
        run_each(dict(wanted.values()), say=say, what=what, said=said, on_run=lambda failed: save(gathered()))

    train(list(best), plan.choosing, "choosing" if plan.confirming else "confirming")
    winner = winner_of(gathered(), plan, list(best))
    if plan.confirming and winner is not None and winner != AS_GIVEN:
        train([winner], plan.confirming, "confirming")
    return gathered()


def _claim(plan: Plan, folder: Path) -> None:
    """Make sure that the folder is free, or holds this very sweep; trials, confirmed settings and seeds may grow."""
    from limbeck.storage.shared import check_free, first_card

    mine = plan.record()
    check_free(folder, PLAN_FILE, kind="sweep")
    kept = first_card(mine, folder / PLAN_FILE)
    for name in ("space", "sampler", "pruner", "min_epochs"):
        if mine[name] != kept[name]:
            raise UserError(f"{folder} holds a sweep with {name} {kept[name]}, not {mine[name]}; choose another --out")
    changes = Recipe.shared(kept["recipe"]).difference(plan.recipe, but=fields_of(*RESUMABLE))
    if changes:
        raise UserError(f"{folder} holds a sweep of another recipe ({'; '.join(changes)}); choose another --out")
