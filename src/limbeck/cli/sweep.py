"""``limbeck sweep``: search for good settings of a recipe, stop bad ones early, confirm the best on other seeds."""

import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from limbeck.cli.compare import print_table
from limbeck.cli.flags import all_fields, default_folder, make_recipe, parse_recipe
from limbeck.cli.running import dry_run, say, say_table, write_report
from limbeck.cli.words import arg, given_flags
from limbeck.errors import UserError
from limbeck.logs.records import is_share
from limbeck.studies.search_space import MOST_CHECKED, check_space, combinations, parse_space
from limbeck.studies.sweep import make_plan, sweep
from limbeck.studies.sweep_text import AS_GIVEN, BEST_FILE
from limbeck.studies.trials import Plan, Pruner, Sampler

DESCRIPTION = """Search for good settings of a recipe; confirm the best on other seeds.

  limbeck sweep --recipe digits --space alpha=1,2,4 lr=0.01..0.1:log

The same command continues a sweep; several terminals share its trials."""

HEAD_OF_ROWS = ("row", "last epoch", "95%", "best", f"- {AS_GIVEN}", "95%", "sec")
SHOWN = 10  # trials in the printed table; sweep.md has all


@dataclass(frozen=True)
class Flags:
    """What is tried, and where it goes."""

    recipe: Annotated[
        str | None,
        arg(metavar="NAME|FILE.yaml", help="Recipe to start from; the other flags override it."),
    ] = None
    space: Annotated[
        tuple[str, ...],
        arg(metavar="SETTING=VALUES ...", help="What to try: A,B,C or LOW..HIGH or LOW..HIGH:log."),
    ] = ()
    sampler: Annotated[
        Sampler,
        arg(help="tpe: where it was good before. random. grid: all combinations of lists."),
    ] = "tpe"
    trials: Annotated[int | None, arg(metavar="INT", help="How many settings to try. Default: 20; all of a grid.")] = (
        None
    )
    pruner: Annotated[
        Pruner,
        arg(help="Stops trials early. median: below the median at the same epoch. halving: not among the best third."),
    ] = "median"
    min_epochs: Annotated[
        int | None, arg(metavar="INT", help="Epochs of each trial. Default: a fifth of the recipe's.")
    ] = None
    confirm: Annotated[int, arg(metavar="INT", help="How many of the best are trained again with other seeds.")] = 3
    seeds: Annotated[int, arg(metavar="INT", help="How many other seeds, after --seed. 0: confirm nothing.")] = 3
    out: Annotated[str | None, arg(metavar="FOLDER", help="Folder of the sweep. Default: runs/NAME-STUDENT-sweep.")] = (
        None
    )
    dry_run: Annotated[
        bool,
        arg(help="Say what would be tried, and what a run trains; train nothing."),
        tyro.conf.FlagCreatePairsOff,
    ] = False


def main(words: Sequence[str]) -> int:
    """Train what is missing, print the tables and what they allow to say; 1 where no trial came to its end."""
    if given_flags(words).keys() & {"resume", "resume_if_begun"}:
        raise UserError("--resume: a sweep resumes by itself; give the same command again")
    values, flags = parse_recipe(
        words, Flags(), command="sweep", description=DESCRIPTION, fields=all_fields(), fallback={}
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("sweep runs as one process; start it several times for several devices, they share the trials")
    tried = list(itertools.islice(combinations(parse_space(flags.space)), MOST_CHECKED))
    recipe = make_recipe(values, all_fields(), words, variants=[{}, *tried])
    plan = make_plan(
        recipe,
        flags.space,
        sampler=flags.sampler,
        pruner=flags.pruner,
        min_epochs=flags.min_epochs,
        trials=flags.trials,
        confirm=flags.confirm,
        seeds=flags.seeds,
    )
    folder = Path(flags.out or default_folder(recipe, last="sweep"))
    if flags.dry_run:
        for line in _planned(plan):
            say(f"# {line}")
        say()
        return dry_run(recipe, folder)
    return _sweep(plan, folder, shlex.join(["limbeck", "sweep", *words]))


def _planned(plan: Plan) -> list[str]:
    """What would be done, in a few lines."""
    lines = [f"{axis}" for axis in plan.space]
    if wrong := check_space(plan.recipe, plan.space):
        lines.append(f"{wrong} of the first {MOST_CHECKED} combinations contradict themselves and are passed over")
    lines.append(
        f"{plan.trials} trials of {plan.recipe.epochs} epochs by {plan.sampler}, stopped early by {plan.pruner}, "
        f"not before epoch {plan.min_epochs}; seed {plan.recipe.seed}"
    )
    if not plan.seeds:
        return [*lines, "nothing is confirmed on other seeds"]
    lines.append(f"then the best {plan.confirm} and the recipe as given with seeds {_ends(plan.choosing)}")
    if plan.confirming:
        lines.append(f"then the best of these, and the recipe as given, with seeds {_ends(plan.confirming)}")
    return lines


def _ends(seeds: range) -> str:
    return f"{seeds.start} to {seeds.stop - 1}"


def _sweep(plan: Plan, folder: Path, command: str) -> int:
    say(f"sweep folder: {folder}")
    try:
        record = sweep(plan, folder, command=command, say=say)
    except KeyboardInterrupt as stop:
        stop.args = (command,)
        raise
    from limbeck.studies.sweep_text import sentences

    for row in (*record["choice"], *record["rows"]):
        for name in row["runs"]:
            write_report(folder / name)
    _print_trials(record)
    if record["choice"]:
        say("the seeds that chose:")
        print_table({**record, "rows": record["choice"]}, head=HEAD_OF_ROWS)
        say("seeds that chose nothing:")
    if record["rows"]:
        print_table(record, head=HEAD_OF_ROWS)
    for line in sentences(record):
        say(line)
    say(f"all trials: {folder / 'sweep.md'}")
    given = ", the recipe as given" if record["best"] is not None and record["best"]["row"] == AS_GIVEN else ""
    if record["best"] is None:
        return 1
    say(f"train with the best{given}: limbeck distill --recipe {folder / BEST_FILE}")
    return 0


def _print_trials(record: Mapping[str, Any]) -> None:
    """The best trials, at most 80 columns wide."""
    from limbeck.studies.sweep_text import HEAD, cells_of, ranked

    trials = ranked(record)
    states = [trial["state"] for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    more = f"; the first {SHOWN}" if len(trials) > SHOWN else ""
    unit = " in %" if is_share(record["metric"]) else ""
    say(f"{len(trials)} trials ({counts}), {record['metric']}{unit} of seed {record['seed that chooses']}{more}")
    say_table("", HEAD, (cells_of(trial, record["metric"]) for trial in trials[:SHOWN]), wraps="settings")
