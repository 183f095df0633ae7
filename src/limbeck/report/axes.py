"""Axes: which part of the numbers is shown, where the ticks are, and where a number lies on the canvas."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from limbeck.report.chart import Point
from limbeck.report.words import Format

T = TypeVar("T")

MOST_POINTS = 160  # on one line: a canvas is a few hundred pixels wide
MOST_DECADES = 6  # on a logarithmic axis: a numerical zero must not press everything else to the top
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """The shown range of one axis.

    Attributes:
        ticks: The values that get a tick.
        low: Lower end.
        high: Upper end, above ``low``.
        log: Whether equal factors, not equal differences, lie equally far apart. Both ends are positive then.
    """

    ticks: tuple[float, ...]
    low: float
    high: float
    log: bool = False

    def scale(self, start: float, end: float) -> Callable[[float], float]:
        """Where a value lies between ``start`` (of ``low``) and ``end``; on a logarithmic axis never below ``low``."""
        if not self.log:
            return lambda value: start + (value - self.low) / (self.high - self.low) * (end - start)
        width = math.log(self.high / self.low)
        return lambda value: start + math.log(max(value, self.low) / self.low) / width * (end - start)

    def label(self, value: float, fmt: Format) -> str:
        """A tick's value; very small and very large ones of a logarithmic axis as powers of ten."""
        if self.log and not 1e-3 <= abs(value) < 1e5:
            exponent = math.floor(math.log10(value) + 1e-9)
            factor = round(value / 10.0**exponent)
            power = "10" + str(exponent).translate(_RAISED)
            return power if factor == 1 else f"{factor}·{power}"
        return fmt.tick(value)


def linear_axis(values: Sequence[float], about: int, *, whole: bool = False, tight: bool = False) -> Axis:
    """Round ticks, and the ends of the axis: the data's own where ``tight``, else with some air.

    Args:
        values: What has to be seen; at least one.
        about: How many ticks, roughly.
        whole: Ticks at whole numbers only.
        tight: No air.
    """
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = 0.5 if whole else 0.05 * abs(high)
        low, high = (low - pad, high + pad) if pad else (-0.05, 1.0)
    elif not tight:
        air = 0.05 * (high - low)
        low, high = low - air, high + air
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(tuple(round(index * step, 12) for index in range(first, last + 1)), low, high)


def log_axis(values: Sequence[float], about: int) -> Axis:
    """A logarithmic axis; what is zero, negative, or far below the rest is shown at its lower end.

    Example:
        >>> log_axis([0.02, 30.0], 5).ticks, log_axis([0.0, 1.0], 5).low > 0
        ((0.1, 1.0, 10.0), True)
    """
    positive = [value for value in values if value > 0] or [1.0]
    high = max(positive)
    low = max(min(positive), high * 10.0**-MOST_DECADES)
    air = max((high / low) ** 0.04, 1.08)
    low, high = low / air, high * air
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = [10.0**power for power in range(first, last + 1)]
    if len(decades) >= 3:
        every = math.ceil(len(decades) / (about + 1))
        return Axis(tuple(decades[::every]), low, high, log=True)
    finer = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
    ticks = [value for value in finer if low <= value <= high]
    if len(ticks) < 3:
        ticks = [value for value in linear_axis([low, high], about, tight=True).ticks if value > 0]
    return Axis(tuple(ticks), low, high, log=True)


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points: means of equal blocks, so that noise is smoothed and no trend is lost.

    Example:
        >>> thin([(1.0, 1.0), (2.0, 3.0), (3.0, 5.0), (4.0, 7.0)], most=2)
        [(1.5, 2.0), (3.5, 6.0)]
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in b) / len(b), math.fsum(y for _, y in b) / len(b)) for b in blocks]


def pick(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the items, evenly over their order, the first and the last among them.

    Example:
        >>> pick(range(10), 4), pick("ab", 4)
        ([0, 3, 6, 9], ['a', 'b'])
    """
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
