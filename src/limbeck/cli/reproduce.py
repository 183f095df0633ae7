"""``limbeck reproduce``: a table or figure of the paper, again with seeds and intervals, beside what was printed."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say, say_table
from limbeck.cli.words import arg, check_number
from limbeck.studies.tables import TABLES, Scale

DESCRIPTION = """Make a table or a figure of the paper again: every row, pair of models and seed.

  limbeck reproduce                                 lists the tables
  limbeck reproduce alpha --scale tiny              in minutes, on embedded images
  limbeck reproduce alpha --data FOLDER --size 32   small models, your images
  limbeck reproduce alpha --scale full --data imagenet:FOLDER --dry-run

Given again, it goes on where it was stopped. Given in several terminals, or on several machines
that share the folder, the runs are divided among them."""

SETTINGS = (
    "data", "val", "classes", "size", "subset", "epochs", "teacher_epochs", "batch_size", "cache_views",
    "workers", "precision", "device",
)  # fmt: skip
"""Settings of the recipe that are flags here."""


@dataclass(frozen=True)
class Flags:
    """Which table, and how much of it."""

    table: Annotated[
        str | None,
        tyro.conf.Positional,
        arg(metavar="TABLE", help="A table or figure; without it all are listed."),
    ] = None
    scale: Annotated[
        Scale,
        arg(help="tiny: digits, minutes. small: small models on 28 to 64 pixels. full: the paper's recipes."),
    ] = "small"
    pairs: Annotated[tuple[str, ...], arg(metavar="NAME ...", help="Some of the pairs of models; by default all.")] = ()
    rows: Annotated[tuple[str, ...], arg(metavar="NAME ...", help="Some of the rows; by default all.")] = ()
    seeds: Annotated[int, arg(metavar="INT", help="How many seeds, from 0 on.")] = 3
    factors: Annotated[
        tuple[float, ...],
        arg(
            metavar="FLOAT ...",
            help="Each row's weight is the best of these times its own, on a seed that does not count; by default "
            "0.25, 1 and 4, in figures 1 alone.",
        ),
    ] = ()
    out: Annotated[
        str,
        arg(metavar="FOLDER", help="Where it goes; tables in one folder share their runs."),
    ] = "runs/reproduce"
    dry_run: Annotated[
        bool,
        arg(help="Say how many runs there are, and what they cost on this device; train nothing."),
        tyro.conf.FlagCreatePairsOff,
    ] = False
    data: Annotated[
        str | None,
        arg(metavar="SOURCE", help="Images, as for distill. Default: digits, fashion-mnist, or the paper's."),
    ] = None
    val: Annotated[str | None, arg(metavar="SOURCE", help="Validation images, as for distill.")] = None
    classes: Annotated[tuple[str, ...], arg(metavar="NAME ...", help="Detection: use these classes alone.")] = ()
    size: Annotated[int | None, arg(metavar="INT", help="Side of the images in pixels.")] = None
    teacher_weights: Annotated[
        tuple[str, ...],
        arg(
            metavar="[MODEL=]FILE|RUN ...",
            help="A teacher's weights; of several teachers each by its name.",
        ),
    ] = ()
    student_weights: Annotated[
        tuple[str, ...],
        arg(metavar="[MODEL=]FILE|RUN ...", help="Weights that the students start from, likewise."),
    ] = ()
    subset: Annotated[float | None, arg(metavar="FLOAT", help="Share of each class's images.")] = None
    epochs: Annotated[int | None, arg(metavar="INT", help="Epochs of a student.")] = None
    teacher_epochs: Annotated[int | None, arg(metavar="INT", help="Epochs of a teacher that is trained first.")] = None
    batch_size: Annotated[int | None, arg(metavar="INT", help="Images of a batch.")] = None
    cache_views: Annotated[
        int | None, arg(metavar="INT", help="Keep the teacher's outputs for so many views on disk.")
    ] = None
    workers: Annotated[int | None, arg(metavar="INT", help="Workers that read images.")] = None
    precision: Annotated[str | None, arg(metavar="NAME", help="auto, float32, bf16 or fp16.")] = None
    device: Annotated[str | None, arg(metavar="NAME", help="auto, cpu, cuda or mps.")] = None


def main(words: Sequence[str]) -> int:
    """Run what is missing, print the table and what becomes of its claims; 1 where a run failed."""
    flags = parse(Flags, words, command="reproduce", description=DESCRIPTION)
    if flags.table is None:
        width = max(map(len, TABLES))
        for name, each in TABLES.items():
            say(f"{name:<{width}}  {each.source}: {each.title}")
        return 0
    check_number("seeds", flags.seeds)
    from limbeck.studies.reproduce import make_plan

    changes = {name: value for name in SETTINGS if (value := getattr(flags, name)) not in (None, ())}
    plan = make_plan(
        flags.table,
        flags.scale,
        changes,
        pairs=flags.pairs,
        rows=flags.rows,
        seeds=range(flags.seeds),
        factors=flags.factors or None,
        teacher_weights=flags.teacher_weights,
        student_weights=flags.student_weights,
    )
    if flags.dry_run:
        return _say_cost(plan)
    return _make(plan, Path(flags.out), shlex.join(["limbeck", "reproduce", *words]))


def _make(plan: Any, folder: Path, command: str) -> int:
    from limbeck.storage.files import save_json, save_text
    from limbeck.studies.reproduce import RESULT_FILE, reproduce, table_folder
    from limbeck.studies.table_page import PAGE_FILE, write_table
    from limbeck.studies.table_text import digits_of, markdown, table_record, verdict_line
    from limbeck.studies.verdicts import Cell

    own = table_folder(plan, folder)

    def write(cells: Sequence[Cell]) -> dict[str, Any]:
        record = table_record(plan, cells, command=command)
        save_json(record, own / RESULT_FILE)
        save_text(markdown(record), own / "table.md")
        write_table(record, own / PAGE_FILE)
        return record

    say(f"table folder: {own}")
    try:
        cells = reproduce(plan, folder, say=say, on_run=write)
    except KeyboardInterrupt as stop:
        stop.args = (command,)
        raise
    record = write(cells)
    _print(record)
    for claim in record["claims"]:
        say(verdict_line(claim, digits_of(record)))
    say(f"table: {own / 'table.md'}")
    say(f"page: {own / PAGE_FILE}")
    return 1 if any(cell.failed for cell in cells) else 0


def _say_cost(plan: Any) -> int:
    from limbeck.studies.cost import cost

    found, device = cost(plan)
    for each in found:
        say(
            f"{each.pair}: {each.runs} runs, {each.hours:.3g} hours "
            f"({each.taught:.3g} ms an image with the teacher, {each.alone:.3g} without)"
        )
    hours = sum(each.hours for each in found)
    say(f"in all {sum(each.runs for each in found)} runs, {hours:.3g} hours on one device like this: {device}")
    say("teachers that are trained first, loading and validation come on top; a cache of the teacher takes off")
    return 0


def _print(record: dict[str, Any]) -> None:
    """The table, at most 80 columns wide."""
    from limbeck.studies.table_text import HEAD, cells_of, digits_of, effort, in_common, measures_of

    plan = record["plan"]
    for pair in plan["pairs"]:
        rows = [cells_of(row, digits_of(record)) for row in record["rows"] if row["pair"] == pair]
        say_table(f"{pair}: {record['unit']}, {len(plan['seeds'])} seeds, mean ± sd", HEAD, rows)
        heads, measures = measures_of(record, pair)
        if measures:
            say_table("", heads, measures)
    say(effort(plan["factors"]))
    if record.get("in common"):
        say(f"all runs: {in_common(record)}")
