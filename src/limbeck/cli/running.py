"""What the commands that train have in common: the dry run, one run with its last lines, the report."""

import contextlib
import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import reason_of, shown
from limbeck.logs.records import figure
from limbeck.recipes.recipe import Recipe


def is_first() -> bool:
    """Whether this is the process that speaks and writes, where several train together."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str = "") -> None:
    """Print one line, on the first process only."""
    if is_first():
        print(shown(line), flush=True)


def say_lines(text: str) -> None:
    """Print a text of several lines."""
    for line in text.splitlines():
        say(line)


def say_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, wraps: str = "") -> None:
    """Print a table by rich: numbers to the right, and words, the first column or the one that wraps, to the left."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True
    )
    words = wraps or heads[0]
    for name in heads:
        table.add_column(
            name,
            justify="left" if name == words else "right",
            no_wrap=name != wraps,
            overflow="fold",
            ratio=1 if name == wraps else None,
        )
    for row in rows:
        table.add_row(*map(shown, row))
    Console(highlight=False).print(table)


@contextlib.contextmanager
def guarded(what: str) -> Generator[None, None, None]:
    """Turns an exception into a line on stderr, for what only looks at a run that is done."""
    try:
        yield
    except Exception as error:  # of any kind: the run has its student
        if is_first():
            print(shown(f"warning: {what} failed ({reason_of(error)})"), file=sys.stderr, flush=True)


def dry_run(recipe: Recipe, folder: Path) -> int:
    """Print the resolved recipe and what it would train; nothing is trained or written."""
    from limbeck.runs.inspection import describe

    say_lines(recipe.to_yaml())
    say()
    lines = [*describe(recipe), ("run folder", str(folder))]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        say(f"{name:<{width}}  {text}")
    return 0


def train_in(recipe: Recipe, folder: Path, *, resume: bool, if_begun: bool, command: str) -> int:
    """Train in a folder, and say where everything is.

    Raises:
        KeyboardInterrupt: The user stopped it; carries the command that goes on.
        LostProcessError: One of several processes is gone or silent; carries the same command.
    """
    from limbeck.distributed.collectives import losses_explained
    from limbeck.runs.run import run

    say(f"run folder: {folder}")
    try:
        with losses_explained(f"continue with: limbeck {command} --resume {folder}"):
            summary = run(recipe, folder, resume=resume, if_begun=if_begun)
    except KeyboardInterrupt as stop:
        stop.args = (f"limbeck {command} --resume {folder}",)
        raise
    write_report(folder)
    for line in [*result_lines(summary, folder), *verdict_lines(folder)]:
        say(line)
    return 0


def write_report(folder: Path) -> None:
    """Write a run's ``report.html``, on the first process only."""
    from limbeck import report

    if is_first():
        with guarded(f"the report of {folder}"):
            report.write_report(folder)


def result_lines(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """What a run came to, in a few lines."""
    metric = str(summary["metric"])
    best = summary["best"]
    lines = [f"{metric}: last {figure(metric, summary['last'][metric])}"]
    if metric in best:
        lines[0] += f", best {figure(metric, best[metric])} (epoch {best['epoch']})"
    teacher = summary.get("teacher") or {}
    if metric in teacher:
        lines.append(f"teacher {metric}: {figure(metric, teacher[metric])}")
    lines.append(f"student: {folder / 'student.safetensors'}")
    lines.append(f"report: {folder / 'report.html'}")
    return lines


def verdict_lines(folder: Path) -> list[str]:
    """What is wrong with a run, a line for each kind of fault, and without labels whether it follows its teacher.

    None on other processes than the first.
    """
    from limbeck.report.verdict import Verdict, follows, verdicts
    from limbeck.storage.untrusted import records_of

    log = folder / "log.jsonl"
    if not is_first() or not log.is_file():  # the other processes may be on machines that do not have the folder
        return []
    kinds: dict[str, list[Verdict]] = {}
    lines: list[str] = []
    with guarded("the verdict"):
        records = [record for _, record in records_of(log.read_text(encoding="utf-8", errors="replace"))]
        for found in verdicts(records):
            kinds.setdefault(found.name, []).append(found)
        lines += [f"verdict: {said}" for said in (follows(records),) if said]
    for first, *others in kinds.values():
        also = f" Likewise {', '.join(other.term for other in others)}." if others else ""
        lines.append(f"verdict: {first.title}: {first.seen}{also} {first.remedy}")
    return lines
