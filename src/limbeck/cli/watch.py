"""``limbeck watch``: the progress of a run, from its log alone."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from limbeck.cli.flags import parse
from limbeck.cli.words import arg
from limbeck.errors import UserError, paths_explained, shown
from limbeck.logs.live import FINISHED, LatestFigures, duration, table
from limbeck.logs.records import COMPARISON_FILE
from limbeck.recipes.parsing import load_mapping, read_text
from limbeck.storage.untrusted import parse_json
from limbeck.studies.compare import read_record

DESCRIPTION = """Show the progress of a run, or of each run of a folder.

Reads the logs, changes nothing, and ends when the run has ended.

  limbeck watch runs/first
  limbeck watch runs/reproduce"""

EVERY = 1.0  # seconds between two looks
SILENT = 600.0  # seconds without a record after which it is said
BETWEEN = 60.0  # seconds behind the last record of a folder of runs in which another one may still begin
MOST_ROWS = 24  # of a folder of runs that is printed once

NOT_BEGUN, SILENT_RUN, CLOSED = "not started", "no record", "cannot be read"
BESIDE = 46  # columns that are not the name
BELOW = ("", "teachers/", "runs/", "runs/teachers/")
"""Where the runs of a folder lie: of a sweep, its teachers', of a table, its teachers'."""
COLUMNS: dict[str, Literal["left", "right"]] = {
    "run": "left",
    "epoch": "right",
    "last": "right",
    "best": "right",
    "left": "right",
    "state": "left",
}
"""Columns of several runs, and where their cells stand; last and best are top-1, or the loss where there is none."""


@dataclass(frozen=True)
class Flags:
    """What is watched."""

    run: Annotated[str, tyro.conf.Positional, arg(metavar="RUN", help="Folder of a run, or of several.")]
    once: Annotated[bool, arg(help="Print where it stands, and end."), tyro.conf.FlagCreatePairsOff] = False


class Tail:
    """Reads what a log has got since the last look.

    Args:
        path: The log; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._last = b""  # the line that ends there

    def read(self) -> tuple[list[Mapping[str, Any]], bool]:
        """The records that are new, and whether they are all records, since the log is another one than before.

        A line that is half written is left for the next look. A run that is resumed drops what lies behind its
        checkpoint, so that the log grows shorter, or is another one where we have been.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset - len(self._last))
                is_anew = file.read(len(self._last)) != self._last
                if is_anew:
                    file.seek(0)
                    self._offset, self._last = 0, b""
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:  # not yet, or between two starts
            is_anew, self._offset, self._last = self._offset > 0, 0, b""
            return [], is_anew
        whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
        if whole:
            self._offset += sum(map(len, whole))
            self._last = whole[-1]
        return [record for line in whole if (record := _record(line)) is not None], is_anew


def _record(line: bytes) -> Mapping[str, Any] | None:
    try:
        value: object = parse_json(line)
    except ValueError:  # what a crash of the machine left behind
        return None
    return cast(Mapping[str, Any], value) if isinstance(value, dict) else None


class Watched:
    """A run folder as its log tells it; ``problem`` says why it cannot be read, and is empty where it can.

    Args:
        folder: The run folder; it need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latest = LatestFigures()
        self.problem = ""
        self.epochs: int | None = None
        self._log = folder / "log.jsonl"
        self._tail = Tail(self._log)

    def look(self) -> None:
        """Read what is new. If the run cannot be read, keep what is shown; the next look tries again."""
        self.problem = ""
        try:
            self._take()
        except UserError as error:
            self.problem = str(error)

    @paths_explained()
    def _take(self) -> None:
        records, is_anew = self._tail.read()
        if is_anew:
            self.latest = LatestFigures()
        for record in records:
            with suppress(TypeError, ValueError, AttributeError, OverflowError):  # a record that no run writes
                self.latest.take(record)
        file = self.folder / "recipe.yaml"
        if self.epochs is None and file.is_file():
            epochs = load_mapping(read_text(file), str(file)).get("epochs")
            self.epochs = epochs if isinstance(epochs, int) else None

    @property
    def left(self) -> str:
        """About how long it still takes, in words; empty where it is not known or has ended."""
        seconds = self.latest.seconds_left(self.epochs) if self.epochs is not None else None
        return "" if seconds is None or self.latest.ended else duration(seconds)

    @property
    def state(self) -> str:
        """Whether it goes on, in words."""
        if self.problem:
            return self.problem
        if self.latest.ended or not self._log.is_file():
            return self.latest.ended or NOT_BEGUN
        return f"{SILENT_RUN} for {duration(self.silence)}" if self.silence > SILENT else "running"

    @property
    def silence(self) -> float:
        """Seconds since the last record; 0 before the first one, and where that cannot be read."""
        if self.problem:
            return 0.0
        return time.time() - self._log.stat().st_mtime if self._log.is_file() else 0.0

    def view(self, console: Console) -> RenderableType:
        """What is shown of one run: a head, a line of where it is, the table."""
        latest = self.latest
        of = f"/{self.epochs}" if self.epochs is not None else ""
        where = [f"epoch {latest.epoch}{of}", f"step {latest.step:,}"] if latest.step > 0 else []
        line = ", ".join([*where, *([f"about {self.left} left"] if self.left else []), self.state])
        head = Text(shown(f"{self.folder}"), style="bold", no_wrap=True, overflow="crop")
        made = table(latest, width=console.width, curves=not console.options.ascii_only)
        # Before the first record the run says what it does: training a teacher, for instance.
        below = made if made is not None else Text(shown(latest.note))
        return Group(head, Text(line), below)


def main(words: Sequence[str]) -> int:
    """Follow a run until it ends, or with ``--once`` say where it stands."""
    flags = parse(Flags, words, command="watch", description=DESCRIPTION)
    folder = Path(flags.run)
    console = Console(highlight=False)
    runs = watched(folder)
    try:
        if flags.once:
            console.print(view(folder, runs, console, lines=None if is_comparison(folder) else MOST_ROWS))
            return 0
        # Where the output is no terminal, this prints once, at the end.
        with Live(view(folder, runs, console), console=console, auto_refresh=False) as live:
            while not have_ended(folder, runs):
                time.sleep(EVERY)
                runs = watched(folder, runs)
                live.update(view(folder, runs, console, lines=console.height), refresh=True)
    except KeyboardInterrupt:
        pass  # it stops the watching; the run goes on
    return 0


@paths_explained()
def watched(folder: Path, known: Sequence[Watched] = ()) -> list[Watched]:
    """The runs in a folder after a look at each: itself, or those below it, teachers included.

    Args:
        folder: What the user named.
        known: Those of the look before, which go on from where they were.

    Raises:
        UserError: The folder is missing, cannot be read or holds none. Of several runs one that cannot be read ends
            nothing: it says so in its row.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    places = [folder]
    if is_comparison(folder):
        record = read_record(folder)
        names = [f"{method}-seed{seed}" for seed in record["seeds"] for method in record["methods"]]
        places = [*sorted(folder.glob("teachers/*/")), *(folder / name for name in names)]
    elif not is_run(folder):
        places = sorted(place for below in BELOW for place in folder.glob(f"{below}*/") if _may_be_run(place))
        if not places:
            raise UserError(f"{folder} holds no run: expected log.jsonl in it or in a folder in it")
    before = {run.folder: run for run in known}
    runs = [before.get(place) or Watched(place) for place in places]
    for run in runs:
        run.look()
    if places == [folder] and runs[0].problem:
        raise UserError(runs[0].problem)
    return runs


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison, and not one run."""
    return (folder / COMPARISON_FILE).is_file()


def is_run(folder: Path) -> bool:
    """Whether a folder holds one run."""
    return any((folder / name).is_file() for name in ("log.jsonl", "recipe.yaml"))


def _may_be_run(folder: Path) -> bool:
    """Whether a folder holds a run, or cannot be read, which its row then says."""
    try:
        return is_run(folder)
    except OSError:
        return True


def have_ended(folder: Path, runs: Sequence[Watched]) -> bool:
    """Whether there is nothing more to come: a comparison ends also where one of its runs was stopped.

    Of other folders of runs it is not known how many there will be.
    """
    runs = [run for run in runs if not run.problem]
    if not runs:
        return True
    begun = [run for run in runs if run.state != NOT_BEGUN]
    if not is_comparison(folder) and not is_run(folder):
        return bool(begun) and all(run.silence > (BETWEEN if run.latest.ended else SILENT) for run in begun)
    is_stopped = any(run.latest.ended not in ("", FINISHED) for run in begun)
    return bool(begun) and all(run.latest.ended for run in begun) and (is_stopped or len(begun) == len(runs))


def view(folder: Path, runs: Sequence[Watched], console: Console, *, lines: int | None = None) -> RenderableType:
    """One run with all its figures, or several with one row each.

    Args:
        folder: What the user named.
        runs: The runs in it.
        console: Where it is shown.
        lines: Lines that there are for it; what has ended, then what has not begun, is left out of more rows.
    """
    if is_run(folder):
        return runs[0].view(console)
    states = [CLOSED if run.problem else SILENT_RUN if run.state.startswith(SILENT_RUN) else run.state for run in runs]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    chosen = list(runs)
    for state in (FINISHED, NOT_BEGUN):
        if lines is not None and len(chosen) + 4 > lines:
            chosen = [run for run in chosen if run.state != state]
    rows = Table.grid(padding=(0, 2, 0, 0))
    for name, justify in COLUMNS.items():
        rows.add_column(name, justify=justify, no_wrap=name != "state")
    rows.add_row(*(Text(name, style="bold") for name in COLUMNS))
    for run in chosen:
        of = f"/{run.epochs}" if run.epochs is not None else ""
        epoch = f"{run.latest.epoch}{of}" if run.latest.step > 0 else ""
        cells = (
            shortened(run.folder.name, console.width - BESIDE),
            epoch,
            run.latest.last,
            run.latest.best,
            run.left,
            run.state,
        )
        rows.add_row(*(Text(shown(cell)) for cell in cells))
    head = Text(shown(f"{folder}"), style="bold", no_wrap=True)
    return Group(head, Text(f"{len(runs)} runs: {', '.join(counts)}"), rows)


def shortened(name: str, most: int) -> str:
    """A name with its middle left out, where it is longer.

    Example:
        >>> shortened("cifar-resnet20-to-cifar-resnet8--kd-633fb6a1c6-seed0", 24)
        'cifar-resne…b6a1c6-seed0'
    """
    most = max(most, 24)
    front = (most - 1) // 2
    return name if len(name) <= most else f"{name[:front]}…{name[front - most + 1 :]}"
