"""``limbeck report``: the page of a run or a comparison once more, several runs on one page, figures for a paper."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say
from limbeck.cli.words import arg
from limbeck.errors import UserError

DESCRIPTION = """Make the page of a run or a comparison again, or compare runs on one page.

Runs that differ in their seeds only are one method; pairs are made by seed.

A comparison folder among several stands for its runs.

  limbeck report runs/first

  limbeck report runs/a runs/b runs/c --out three.html --figures figures/"""

SEVERAL = "comparison.html"
"""The page of several runs, in the current folder, where no other is named."""

OURS = '<meta name="generator" content="limbeck">'
"""What a page of Limbeck has in its head; no other file is written over."""


@dataclass(frozen=True)
class Flags:
    """The runs, and where the page and its figures go."""

    runs: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        arg(metavar="RUN ...", help="Run folders, or comparison folders.", help_behavior_hint=""),
    ]
    out: Annotated[
        str | None,
        arg(
            metavar="FILE.html",
            help="Default: report.html in the run; comparison.html here for several runs.",
        ),
    ] = None
    figures: Annotated[
        str | None, arg(metavar="FOLDER", help="Also write each figure as an SVG file, one column wide.")
    ] = None


def main(words: Sequence[str]) -> int:
    """Write the page, and the figures where asked."""
    flags = parse(Flags, words, command="report", description=DESCRIPTION)
    if not flags.runs:
        raise UserError("RUN: missing; `limbeck report --help` says what it is")
    folders = [Path(run) for run in flags.runs]
    from limbeck.logs.records import COMPARISON_FILE
    from limbeck.report import write_comparison, write_report, write_runs

    single = folders[0] if len(folders) == 1 else None
    out = _place(flags.out) if flags.out else None if single else _place(SEVERAL)
    if single is None:
        assert out is not None
        page = write_runs(folders, out, command=shlex.join(["limbeck", "report", *words]))
    elif (single / COMPARISON_FILE).is_file():
        page = write_comparison(single, out)
    else:
        page = write_report(single, out)
    say(f"report: {page}")
    if flags.figures is not None:
        _draw(folders, Path(flags.figures))
    return 0


def _place(name: str) -> Path:
    """Where the page goes: never over a file that is something else."""
    path = Path(name)
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; expected a file, for example {path / 'report.html'}")
    if path.is_file() and OURS not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise UserError(f"{path}: exists and was not written by limbeck; choose another with --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _draw(folders: Sequence[Path], place: Path) -> None:
    from limbeck.logs.records import COMPARISON_FILE
    from limbeck.report.comparison import comparison_charts, read_runs
    from limbeck.report.figures import write_figures
    from limbeck.report.groups import gather, read_comparison
    from limbeck.report.run import run_charts, run_samples

    if place.exists() and not place.is_dir():
        raise UserError(f"--figures {place}: is a file; expected a folder")
    if len(folders) > 1:
        written = write_figures(comparison_charts(gather(read_runs(folders))), place)
    elif (folders[0] / COMPARISON_FILE).is_file():
        written = write_figures(comparison_charts(read_comparison(folders[0])), place)
    else:
        written = write_figures(run_charts(folders[0]), place, run_samples(folders[0]))
    say(f"figures: {len(written)} files in {place}")
