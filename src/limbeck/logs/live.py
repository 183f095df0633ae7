"""Where a run stands, folded from its records, and the table that shows it on a terminal."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from limbeck.errors import shown
from limbeck.logs.records import headline, is_share

WIDTH = 80  # columns that the table takes
CURVE = 8  # characters of a curve in the table
BLOCKS = "▁▂▃▄▅▆▇█"
MOST_VALUES = 512  # of one curve
FINISHED = "finished"


class Curve:
    """The values of one figure over a run, thinned evenly, so that a run of any length takes the same memory."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._seen = 0
        self._every = 1

    def add(self, value: float) -> None:
        """Take the next value."""
        self._seen += 1
        if self._seen % self._every == 0:
            self.values.append(value)
        if len(self.values) == MOST_VALUES:
            del self.values[::2]
            self._every *= 2


def sparkline(values: Sequence[float], width: int = CURVE) -> str:
    """Values as a row of blocks between their least and their greatest; more values than blocks are averaged.

    Example:
        >>> sparkline([0.0, 1.0, 2.0, 3.0]), sparkline([1.0, 3.0, 5.0, 7.0], width=2), sparkline([2.0])
        ('▁▃▆█', '▁█', '▁')
    """
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    bounds = [index * len(finite) // count for index in range(count + 1)] if count else []
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (mean - low) / span) if span > 0 else 0] for mean in means)


class LatestFigures:
    """Where a run stands after the records that it has been given.

    Attributes:
        step: The last step that is known.
        epoch: The epoch of that step, from 1.
        epochs_done: Epochs that have ended.
        seconds: What they took together.
        training: Figures of the last record of a step.
        validation: Figures of the last epoch, and the best so far.
        last: Of these the one that decides which epoch is the best: top-1, else the loss.
        best: Its best value.
        probe: Figures of the last probe.
        probed: Step of the last probe.
        note: What the run said last.
        ended: How it ended, in words; empty while it goes on.
        curves: Section and name of a figure -> its values so far.
    """

    def __init__(self) -> None:
        self.step = self.epoch = self.epochs_done = self.probed = 0
        self.seconds = 0.0
        self.training: dict[str, str] = {}
        self.validation: dict[str, str] = {}
        self.last = self.best = ""
        self.probe: dict[str, str] = {}
        self.note = ""
        self.ended = ""
        self.curves: dict[tuple[str, str], Curve] = {}
        self._best: tuple[float, int] | None = None  # with its epoch
        self._last_epoch_step = 0
        self._images = 0
        self._speed = 0.0

    def take(self, record: Mapping[str, Any]) -> None:
        """Go on with the next record; kinds that the table does not show are passed over."""
        self.ended = ""  # whatever comes behind an end: the run was taken up again
        match record.get("kind"):
            case "start":
                self._images = int(record.get("images", 0))
            case "note":
                self.note = str(record.get("text", ""))
            case "step":
                self._take_step(record)
            case "epoch":
                self._take_epoch(record)
            case "probe":
                self._take_probe(record)
            case "stop":
                self.ended = f"stopped: {record.get('reason', '')}"
            case "end":
                self.ended = FINISHED
            case _:
                pass

    def seconds_left(self, epochs: int) -> float | None:
        """About how long a run of so many epochs still takes; None where nothing is known yet."""
        if self.epochs_done > 0:
            done = self.step * self.epochs_done / max(self._last_epoch_step, 1)
            return self.seconds / self.epochs_done * max(epochs - done, 0.0)
        if self._speed > 0 and self._images > 0:
            return epochs * self._images / self._speed
        return None

    def _take_step(self, record: Mapping[str, Any]) -> None:
        self.step, self.epoch = int(record.get("step", 0)), int(record.get("epoch", 0))
        self._speed = float(record.get("images_per_second", 0.0))
        losses = {"loss": record["loss"]} if "loss" in record else {}
        self.training = self._shown("training", {**losses, **record.get("parts", {}), **record.get("readings", {})})
        if "lr" in record:
            self.training["learning rate"] = f"{record['lr']:.3g}"
        if self._speed > 0:
            self.training["images/s"] = f"{self._speed:,.0f}"

    def _take_epoch(self, record: Mapping[str, Any]) -> None:
        self.step = self._last_epoch_step = int(record.get("step", 0))
        self.epoch = self.epochs_done = int(record.get("epoch", 0))
        self.seconds = float(record.get("seconds", 0.0))
        figures = dict(record.get("val") or {})
        self.validation = self._shown("validation", figures)
        name, sign = headline(figures)
        if name in figures:
            if self._best is None or sign * (figures[name] - self._best[0]) > 0:
                self._best = float(figures[name]), self.epoch
            self.last, self.best = short(name, figures[name]), short(name, self._best[0])
            self.validation[f"best (epoch {self._best[1]})"] = self.best

    def _take_probe(self, record: Mapping[str, Any]) -> None:
        self.probed = int(record.get("step", 0))
        terms: Mapping[str, Any] = record.get("terms", {})
        figures: dict[str, float] = {}
        for name, term in terms.items():
            of = f"{name} " if len(terms) > 1 else ""
            for key, value in (
                ("stable rank", term.get("spectrum", {}).get("stable_rank")),
                ("correlation", term.get("fit", {}).get("correlation", {}).get("mean")),
            ):
                if value is not None:
                    figures[of + key] = value
        if "agreement" in record.get("student", {}):
            figures["agreement"] = record["student"]["agreement"]
        self.probe = self._shown("probe", figures)

    def _shown(self, section: str, figures: Mapping[str, float]) -> dict[str, str]:
        for name, value in figures.items():
            self.curves.setdefault((section, name), Curve()).add(float(value))
        return {name: short(name, value) for name, value in figures.items()}


def table(latest: LatestFigures, *, width: int = WIDTH, curves: bool = False) -> Table | None:
    """What is known of a run: training on the left, validation and the probe on the right; None while it is nothing.

    Args:
        latest: What its records said last.
        width: Columns of the terminal; below 80 everything is in one column.
        curves: Show how each figure went.
    """
    left = _section(latest, "training", "step", latest.step, latest.training)
    right = _section(latest, "validation", "epoch", latest.epochs_done, latest.validation)
    right += _section(latest, "probe", "step", latest.probed, latest.probe)
    if not left and not right:
        return None
    halves = [left, right] if width >= WIDTH else [left + right]
    both = Table.grid(padding=(0, 2, 0, 0))
    both.add_row(*(_half(rows, curves=curves) for rows in halves))
    return both


def _section(latest: LatestFigures, name: str, unit: str, at: int, rows: Mapping[str, str]) -> list[tuple[Text, ...]]:
    if not rows:
        return []
    went = {row: latest.curves[name, row].values if (name, row) in latest.curves else [] for row in rows}
    lines = [(Text(shown(row)), Text(value), Text(sparkline(went[row]))) for row, value in rows.items()]
    return [(Text(f"{name}, {unit}", style="bold"), Text(str(at), style="bold"), Text()), *lines]


def _half(rows: Sequence[tuple[Text, ...]], *, curves: bool) -> Table:
    widths = (19, 10, CURVE) if curves else (25, 12)
    half = Table.grid(padding=(0, 1, 0, 0))
    for width, justify in zip(widths, ("left", "right", "left"), strict=False):
        half.add_column(width=width, justify=justify, no_wrap=True, overflow="crop")
    for row in rows:
        half.add_row(*row[: len(widths)])
    return half


class Screen:
    """The bar of an epoch, and above it the table; both leave the terminal when it is stopped.

    Args:
        console: Where they are drawn.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._table: Table | None = None

    def begin(self, description: str, steps: int) -> None:
        """Begin the bar of an epoch."""
        if self._progress is None or self._task is None or self._live is None:
            self._progress = Progress(  # never started by itself: it is a part of what is drawn
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[loss]}"),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=steps, rate="", loss="")
            self._live = Live(self._drawn(), console=self._console, transient=True, refresh_per_second=10)
            self._live.start()
        self._progress.reset(self._task, total=steps, description=description, rate="", loss="")

    def advance(self, rate: float, loss: float | None) -> None:
        """One batch is done."""
        if self._progress is None or self._task is None:
            return
        fields: dict[str, Any] = {"rate": f"{rate:,.0f} images/s"}
        if loss is not None:
            fields["loss"] = f"loss {loss:.4g}"
        self._progress.update(self._task, advance=1, **fields)

    def show(self, latest: LatestFigures) -> None:
        """Draw the table of where the run stands, if the terminal has lines enough for it and the bar."""
        # Made here and not where it is drawn: that is a thread of its own, and they change.
        made = table(latest, width=self._console.width)
        fits = made is not None and len(self._console.render_lines(made)) + 3 <= self._console.height
        self._table = made if fits else None
        if self._live is not None:
            self._live.update(self._drawn())

    def stop(self) -> None:
        """Leave the terminal."""
        if self._live is not None:
            self._live.stop()
        self._live = self._progress = self._task = None

    def _drawn(self) -> RenderableType:
        return Group(*(part for part in (self._table, self._progress) if part is not None))


def duration(seconds: float) -> str:
    """A time to wait, for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def short(name: str, value: float) -> str:
    """A figure for people: accuracies and agreement in percent."""
    return f"{100 * value:.2f}%" if is_share(name) or name == "agreement" else f"{value:.4g}"
