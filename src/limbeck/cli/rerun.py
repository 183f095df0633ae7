"""``limbeck rerun``: make a finished run again, and say what came out the same."""

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say
from limbeck.cli.words import arg

if TYPE_CHECKING:
    from limbeck.runs.rerun import Row

DESCRIPTION = """Make a finished run again from its recorded recipe, and compare.

A teacher that was trained for the run is trained again, too. The exit code is 0 if the student
has the same bytes, else 1.

  limbeck rerun runs/first"""

WIDTH = 80


@dataclass(frozen=True)
class Flags:
    """The run, and where the second one goes."""

    run: Annotated[str, tyro.conf.Positional, arg(metavar="RUN", help="Its folder.", help_behavior_hint="")]
    out: Annotated[
        str | None,
        arg(metavar="FOLDER", help="Folder of the second run and its teacher. Default: RUN-rerun."),
    ] = None
    anyway: Annotated[
        bool,
        arg(help="Train also where the images have changed since."),
        tyro.conf.FlagCreatePairsOff,
    ] = False


def main(words: Sequence[str]) -> int:
    """Train, compare, print what differs and the verdict."""
    flags = parse(Flags, words, command="rerun", description=DESCRIPTION)
    first = Path(flags.run)
    place = Path(flags.out) if flags.out else first.parent / f"{first.name}-rerun"
    from limbeck.runs.rerun import rerun

    try:
        outcome = rerun(first, place, anyway=flags.anyway, say=say)
    except KeyboardInterrupt as stop:
        stop.args = (shlex.join(["limbeck", "rerun", str(first), "--out", str(place)]),)
        raise
    for line in [*table(outcome.rows), f"verdict: {outcome.verdict}"]:
        say(line)
    return 0 if outcome.to_the_byte else 1


def table(rows: "Sequence[Row]") -> list[str]:
    """What is the same, in one paragraph, and a line for each thing that is not."""
    same = [row.what for row in rows if row.same]
    lines = textwrap.wrap(", ".join(same), WIDTH, initial_indent="the same: ", subsequent_indent=" " * 10)
    for kind, told in ((False, "differs: "), (None, "unknown: ")):
        lines += [f"{told} {row.what}: {row.then} -> {row.now}" for row in rows if row.same is kind]
    return lines
