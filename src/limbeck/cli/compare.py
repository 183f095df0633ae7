"""``limbeck compare``: methods x seeds on one recipe, and what the seeds allow to say."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from limbeck.cli.flags import (
    RunFlags,
    all_fields,
    default_folder,
    make_recipe,
    parse_recipe,
    resumed_folder,
    run_folder,
)
from limbeck.cli.running import dry_run, guarded, say, say_table, write_report
from limbeck.cli.words import arg, check_number
from limbeck.errors import UserError
from limbeck.logs.records import COMPARISON_FILE, figure, is_share
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.values import FEATURE_METHODS, LOGIT_METHODS, STAGE_METHODS, Count, Method
from limbeck.studies.compare import compare, conclusions, plan, read_record

DESCRIPTION = """Train each method with each seed; compare them in pairs, seed by seed.

  limbeck compare --recipe digits

  limbeck compare --recipe folder --data FOLDER --methods alone projector"""

SEEDS = 3
SEEDS_OF_RECIPE = {"digits": 5, "digits-few-labels": 5}
"""More seeds where a run takes seconds: intervals from three seeds are wide."""

COLUMNS = ("method", "last epoch", "95%", "best", "- alone", "95%", "sec")


@dataclass(frozen=True)
class Flags(RunFlags):
    """What is compared, what it starts from, and where it goes."""

    methods: Annotated[tuple[Method, ...], arg(help="Methods, in the order of the table.")] = (
        "alone",
        "kd",
        "projector",
        "stages+kd",
    )
    seeds: Annotated[
        Count | None,
        arg(metavar="INT", help="How many seeds, from --seed on. Default: 3; 5 for the recipe digits."),
    ] = None


def main(words: Sequence[str]) -> int:
    """Train what is missing, print the table and the conclusions."""
    fields = {name: flag for name, flag in all_fields().items() if name != "method"}
    values, options = parse_recipe(
        words, _defaults(words), command="compare", description=DESCRIPTION, fields=fields, fallback={}
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("compare runs as one process; for several devices start each `limbeck distill` with a launcher")
    recipe = shared_recipe(values, options.methods, fields, words)
    count = SEEDS_OF_RECIPE.get(recipe.name, SEEDS) if options.seeds is None else options.seeds
    check_number("seeds", count)
    folder = run_folder(options, default_folder(recipe, last="compare"))
    seeds = range(recipe.seed, recipe.seed + count)
    plan(recipe, options.methods, seeds)  # a method that does not fit is refused before anything is said or done
    if options.dry_run:
        say(f"# {len(options.methods)} methods ({', '.join(options.methods)}), seeds {', '.join(map(str, seeds))}")
        say()
        return dry_run(recipe, folder)
    return _compare(recipe, folder, options, seeds, shlex.join(["limbeck", "compare", *words]))


def _defaults(words: Sequence[str]) -> Flags:
    """Those of the comparison that is to be resumed, else the usual ones."""
    place = resumed_folder(words)
    if place is None or not (place / COMPARISON_FILE).is_file():
        return Flags()
    record = read_record(place)
    return Flags(methods=tuple(record["methods"]), seeds=len(record["seeds"]))


def _compare(recipe: Recipe, folder: Path, options: Flags, seeds: Sequence[int], command: str) -> int:
    say(f"comparison folder: {folder}")
    try:
        result = compare(
            recipe,
            folder,
            methods=options.methods,
            seeds=seeds,
            resume=None if options.resume_if_begun else options.resume is not None,
            command=command,
            say=say,
        )
    except KeyboardInterrupt as stop:
        stop.args = (f"limbeck compare --resume {folder}",)
        raise
    from limbeck.report import write_comparison

    for row in result["rows"]:
        for name in row["runs"]:
            write_report(folder / name)
    with guarded(f"the report of {folder}"):
        write_comparison(folder)
    print_table(result)
    for line in conclusions(result["rows"], result["metric"]):
        say(line)
    say(f"run folders: {folder}{os.sep}METHOD-seedN")
    say(f"report: {folder / 'report.html'}")
    return 0


def shared_recipe(
    values: Mapping[str, object], methods: Sequence[Method], flags: Mapping[str, str], words: Sequence[str]
) -> Recipe:
    """The recipe that all runs share, with a method that has a use for what most of theirs have; alone has no teacher.

    Raises:
        UserError: Settings contradict each other, or none of the methods reads one of the command line's.
    """
    features = [method for method in methods if method in FEATURE_METHODS]
    taught: str | None = None
    if features:
        kind = "stages" if all(method in STAGE_METHODS for method in features) else "projector"
        taught = f"{kind}+kd" if any(method in LOGIT_METHODS for method in methods) else kind
    taught = taught or next((method for method in methods if method != "alone"), None)
    if not methods:
        raise UserError("--methods: its value is missing; expected one or more of alone, kd, projector, stages+kd")
    variants = [{"method": method} for method in methods]
    return make_recipe({**values, "method": taught or "alone"}, flags, words, variants=variants)


def print_table(result: Mapping[str, Any], *, head: Sequence[str] = COLUMNS) -> None:
    """The table: one row a method, at most 80 columns wide."""
    metric = str(result["metric"])
    scale, unit = (100.0, " in %") if is_share(metric) else (1.0, "")
    counts = sorted({int(row["n"]) for row in result["rows"]})
    title = (
        f"{metric}{unit} on the validation images, {' to '.join(map(str, counts))} seeds, mean ± sd and 95% intervals"
    )
    rows = [
        (
            row["method"],
            f"{scale * row['mean']:.2f}" + ("" if row["sd"] is None else f" ± {scale * row['sd']:.2f}"),
            _ends(row, scale, ""),
            f"{scale * row['best_mean']:.2f}",
            "" if (pair := row["paired"]) is None else f"{scale * pair['mean']:+.2f}",
            "" if pair is None else _ends(pair, scale, "+"),
            f"{row['seconds']:.0f}",
        )
        for row in result["rows"]
    ]
    say_table(title, head, rows)
    if (teacher := result["teacher"]) is not None and metric in teacher:
        say(f"teacher {metric}: {figure(metric, teacher[metric])}")
    if result.get("in common"):
        say(f"all runs: {result['in common']}")


def _ends(row: Mapping[str, Any], scale: float, sign: str) -> str:
    return "" if row["low"] is None else f"{scale * row['low']:{sign}.1f}..{scale * row['high']:{sign}.1f}"
