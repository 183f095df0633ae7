"""What a chart is made of: the data that go in, out of records too, and the places on a canvas that come out."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from limbeck.logs.records import Record, mapping, number

Point = tuple[float, float]
"""A place on the data's axes: x, y."""


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: Said in the legend and in tooltips.
        style: The class that colors it.
        points: In order of x.
        mark: Index of a point to mark, for instance the best epoch.
        faint: A background line without legend and tooltips: a single seed behind a mean.
        dashed: Drawn dashed: the second of two series that belong together and have one color.
    """

    name: str
    style: str
    points: Sequence[Point]
    mark: int | None = None
    faint: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two series of the same x: a range of values."""

    name: str
    style: str
    low: Sequence[Point]
    high: Sequence[Point]


@dataclass(frozen=True)
class Level:
    """A horizontal reference line, for instance the teacher's accuracy."""

    name: str
    style: str
    value: float


@dataclass(frozen=True)
class Span:
    """A row of a dot chart: a mean, its interval, and the single values behind it."""

    name: str
    style: str
    mean: float
    low: float | None
    high: float | None
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Cloud:
    """A group of a scatter chart: the mean of y with its interval, at the mean of x, and the single points."""

    span: Span
    x: float
    points: Sequence[Point]


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: its name, and a value a series; None where there is none."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Frame:
    """One state of a chart with a slider.

    Attributes:
        label: Says which state, for instance "step 120, epoch 2".
        words: Says what is seen, for those who do not see it.
        curves: One curve for each series of the chart, in their order.
    """

    label: str
    words: str
    curves: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Table:
    """The numbers of a figure, written out; ``note`` says how many rows are left out."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A dot with its tooltip."""

    x: float
    y: float
    style: str
    tip: str
    kind: str  # "dot", "best", "seed", "mean"


@dataclass(frozen=True)
class Label:
    """A word on the canvas."""

    x: float
    y: float
    text: str
    style: str
    anchor: str = "start"


@dataclass(frozen=True)
class Stroke:
    """A path on the canvas; ``series`` is its number where the slider redraws it."""

    path: str
    style: str
    kind: str  # "line", "dashed", "faint", "level", "span", "band", "first", "frame", "area", "bar"
    series: int | None = None


@dataclass(frozen=True)
class Canvas:
    """A drawn chart: everything in the units of its view box."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    strokes: Sequence[Stroke]
    marks: Sequence[Mark] = ()
    labels: Sequence[Label] = ()


@dataclass(frozen=True)
class Key:
    """An entry of the legend."""

    name: str
    style: str
    kind: str


@dataclass(frozen=True)
class Chart:
    """A figure: its words, and its drawings for a wide and for a narrow screen (the same where one serves both).

    Attributes:
        title: Heading of the figure.
        description: What is seen, in words.
        note: What to look for, in a sentence.
        wide: The drawing; that of a wide screen where there are two.
        narrow: The drawing of a narrow screen.
        legend: What the colors are.
        id: Its name on the page, and that of its file (`limbeck.report.figures`); empty to number it.
        table: Its numbers, written out.
        frames: What the slider's script draws, as JSON; empty without a slider.
        keyed: The legend is needed also where the drawing is wide: no names stand at the ends of the lines.
    """

    title: str
    description: str
    note: str
    wide: Canvas
    narrow: Canvas | None
    legend: tuple[Key, ...]
    id: str = ""
    table: Table | None = None
    frames: str = ""
    keyed: bool = False


Group = Sequence[tuple[str, str, tuple[str, ...]]]
"""Series of one chart: name, style, and the path of keys below the record."""


def figure_id(*parts: str) -> str:
    """The name of a figure, of which a link, a file and a page can make use.

    Example:
        >>> figure_id("spectrum", "feature"), figure_id("ranks", "my term/2")
        ('spectrum-feature', 'ranks-my-term-2')
    """
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(parts)).strip("-.") or "figure"


def term_names(probes: Iterable[Record]) -> list[str]:
    """The terms that the probe has seen, in the order of the log."""
    return list(dict.fromkeys(str(name) for probe in probes for name in mapping(probe, "terms")))


def of_term(probes: Iterable[Record], name: str) -> list[tuple[Record, Record]]:
    """Every probe with what it says of one term, where it says anything."""
    pairs = ((probe, mapping(probe, "terms", name)) for probe in probes)
    return [(probe, term) for probe, term in pairs if term]


def course(pairs: Iterable[tuple[Record, Record]], *keys: str) -> list[Point]:
    """One number of the probe's records over the steps."""
    found = ((number(probe, "step"), number(part, *keys)) for probe, part in pairs)
    return [(x, y) for x, y in found if x is not None and y is not None]


def lines(pairs: Sequence[tuple[Record, Record]], group: Group, *, dashed: bool = False) -> list[Line]:
    """The series of a group, without those that were not recorded."""
    made = [Line(name, style, course(pairs, *keys), dashed=dashed) for name, style, keys in group]
    return [line for line in made if line.points]


def label(probe: Record) -> str:
    """Which probe: ``step 120, epoch 2``."""
    step, epoch = number(probe, "step"), number(probe, "epoch")
    text = f"step {step:,.0f}" if step is not None else "probe"
    return text if epoch is None else f"{text}, epoch {epoch:.3g}"


def present(charts: Iterable[Chart | None]) -> list[Chart]:
    """The charts that there is something to draw for."""
    return [chart for chart in charts if chart is not None]
