"""What the charts of the probe's records have in common: names, places, series over the probes."""

import re
from collections.abc import Iterable, Sequence

from limbeck.logs.records import Record, mapping, number
from limbeck.report.chart import Chart, Line, Point

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
