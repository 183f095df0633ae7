"""What a chart is made of: the series that go in, and the places on a canvas that come out."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    name: str
    style: str
    points: Sequence[Point]
    mark: int | None = None
    faint: bool = False


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
    """A path on the canvas."""

    path: str
    style: str
    kind: str  # "line", "faint", "level", "span", "zero"


@dataclass(frozen=True)
class Canvas:
    """A drawn chart: everything in the units of its view box."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    strokes: tuple[Stroke, ...]
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]
    x_title: str


@dataclass(frozen=True)
class Key:
    """An entry of the legend."""

    name: str
    style: str
    kind: str


@dataclass(frozen=True)
class Chart:
    """A figure: its words, and its drawings for a wide and for a narrow screen (the same where one serves both)."""

    title: str
    description: str
    note: str
    wide: Canvas
    narrow: Canvas | None
    legend: tuple[Key, ...]
