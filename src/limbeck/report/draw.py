"""Charts of series over epochs or steps: numbers in, places on a canvas out. The template draws them as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.report.axes import linear_axis, log_axis, pick, thin
from limbeck.report.chart import Band, Canvas, Chart, Key, Label, Level, Line, Mark, Stroke, Table, Tick
from limbeck.report.words import PLAIN, Format

LABEL_GAP = 15.0  # between two labels, in the canvas's units
LONGEST_END = 23  # letters of a name at the end of a line; where one is longer, all are in the legend
MOST_ROWS = 24  # of a figure's table
MOST_TIPS = 60  # dots with a tooltip on one line


@dataclass(frozen=True)
class _Plot:
    lines: Sequence[Line]
    levels: Sequence[Level]
    bands: Sequence[Band]
    x_title: str
    fmt: Format
    log: bool


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_title: str = "step",
    fmt: Format = PLAIN,
    id: str = "",
    levels: Sequence[Level] = (),
    bands: Sequence[Band] = (),
    log: bool = False,
    note: str = "",
    large: bool = False,
    unseen: Sequence[Line] = (),
) -> Chart | None:
    """A chart of series over epochs or steps.

    Args:
        title: Heading of the figure.
        lines: The series; those without a point are left out.
        x_title: Name of the horizontal axis.
        fmt: Writes values of the vertical axis.
        id: Name of the figure; empty to number it.
        levels: Reference lines.
        bands: Ranges behind the series.
        log: A logarithmic vertical axis.
        note: What to look for, in a sentence.
        large: Draw it over the whole width, with names at the ends of the lines, and once more for narrow screens.
        unseen: Series that are in the table only.

    Returns:
        The chart; None where there is nothing to draw.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return None
    plain = [line for line in drawn if not line.faint]
    plot = _Plot(drawn, levels, [band for band in bands if band.low], x_title, fmt, log)
    legend = tuple(Key(line.name, line.style, "level" if line.dashed else "line") for line in plain)
    legend += tuple(Key(band.name, band.style, "band") for band in plot.bands)
    legend += tuple(Key(level.name, level.style, "level") for level in levels)
    small = _canvas(plot, width=340, height=225, ends=False)
    ends = all(len(f"{line.name} {fmt(line.points[-1][1])}") <= LONGEST_END for line in plain)
    return Chart(
        title=title,
        description=_in_words(plot),
        note=note,
        wide=_canvas(plot, width=1000, height=360, ends=ends) if large else small,
        narrow=small if large else None,
        legend=legend if len(legend) > 1 else (),
        id=id,
        keyed=not ends,
        table=_table([*plain, *_edges(plot.bands), *(line for line in unseen if line.points)], x_title, fmt),
    )


def _edges(bands: Sequence[Band]) -> list[Line]:
    return [
        Line(f"{band.name}, {end}", band.style, points)
        for band in bands
        for end, points in (("from", band.low), ("to", band.high))
    ]


def _table(lines: Sequence[Line], x_title: str, fmt: Format) -> Table:
    """The series side by side."""
    values = [dict(line.points) for line in lines]
    places = sorted({x for points in values for x in points})
    rows = [(f"{x:g}", *(fmt(points[x]) if x in points else "–" for points in values)) for x in places]
    return some_rows((x_title, *(line.name for line in lines)), rows)


def some_rows(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table of at most ``MOST_ROWS`` rows, evenly over their order; it says how many there are if some are left out.

    Example:
        >>> some_rows(("step",), [("1",), ("2",)]).note, some_rows(("step",), [("1",)] * 50).note
        ('', '24 of 50 rows, evenly spaced; log.jsonl has all.')
    """
    kept = tuple(pick(rows, MOST_ROWS))
    cut = f"{len(kept)} of {len(rows)} rows, evenly spaced; log.jsonl has all." if len(kept) < len(rows) else ""
    return Table(heads, kept, cut)


def _canvas(plot: _Plot, *, width: int, height: int, ends: bool) -> Canvas:
    lines, levels, fmt = plot.lines, plot.levels, plot.fmt
    edges = [points for band in plot.bands for points in (band.low, band.high)]
    ys = [y for points in (*(line.points for line in lines), *edges) for _, y in points] + [lv.value for lv in levels]
    x_axis = linear_axis([x for line in lines for x, _ in line.points], 8 if width > 500 else 5, whole=True, tight=True)
    y_axis = log_axis(ys, 5) if plot.log else linear_axis(ys, 5)
    left, right, top, bottom = 58.0, width - (176.0 if ends else 12.0), 14.0, height - 46.0
    to_x, to_y = x_axis.scale(left, right), y_axis.scale(bottom, top)
    strokes: list[Stroke] = []
    for band in plot.bands:
        low, high = thin(band.low), thin(band.high)
        around = [(to_x(x), to_y(y)) for x, y in [*low, *reversed(high)]]
        strokes.append(Stroke(path_of(around) + "Z", band.style, "band"))
    strokes += [Stroke(f"M{left:.1f} {to_y(level.value):.1f}H{right:.1f}", level.style, "level") for level in levels]
    marks: list[Mark] = []
    labels = [Label(right + 10, to_y(level.value), f"{level.name} {fmt(level.value)}", level.style) for level in levels]
    for line in sorted(lines, key=lambda line: not line.faint):  # faint ones lie below
        points = thin(line.points)
        places = [(to_x(x), to_y(y)) for x, y in points]
        kind = "faint" if line.faint else "dashed" if line.dashed else "line"
        strokes.append(Stroke(path_of(places), line.style, kind))
        if line.faint:
            continue
        if len(places) <= MOST_TIPS:
            tips = [f"{line.name}, {plot.x_title} {x:g}: {fmt(y)}" for x, y in points]
            kind = "alone-dot" if len(places) == 1 else "dot"  # a line of one point is no line
            marks += [Mark(*place, line.style, tip, kind) for place, tip in zip(places, tips, strict=True)]
        if line.mark is not None:
            x, y = line.points[line.mark]
            marks.append(Mark(to_x(x), to_y(y), line.style, f"best: {plot.x_title} {x:g}, {fmt(y)}", "best"))
        labels.append(Label(right + 10, places[-1][1], f"{line.name} {fmt(line.points[-1][1])}", line.style))
    x_ticks = [Tick(to_x(value), f"{value:,.0f}") for value in x_axis.ticks]
    y_ticks = [Tick(to_y(value), y_axis.label(value, fmt)) for value in y_axis.ticks]
    shown = _apart(labels, bottom) if ends else ()
    return Canvas(width, height, left, right, top, bottom, plot.x_title, x_ticks, y_ticks, strokes, marks, shown)


def path_of(places: Sequence[tuple[float, float]]) -> str:
    """An SVG path through places on the canvas."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _apart(labels: Sequence[Label], bottom: float) -> list[Label]:
    """Move labels at the right edge apart, so that none lies on another and none below the axis."""
    placed: list[Label] = []
    for label in sorted(labels, key=lambda label: label.y):
        y = max(label.y, placed[-1].y + LABEL_GAP) if placed else label.y
        placed.append(Label(label.x, y, label.text, label.style, label.anchor))
    limit = bottom
    for index in reversed(range(len(placed))):
        label = placed[index]
        placed[index] = Label(label.x, min(label.y, limit), label.text, label.style, label.anchor)
        limit = placed[index].y - LABEL_GAP
    return placed


def _in_words(plot: _Plot) -> str:
    words: list[str] = []
    for line in (line for line in plot.lines if not line.faint):
        (x_first, first), (x_last, last) = line.points[0], line.points[-1]
        words.append(f"{line.name}: {plot.fmt(first)} at {plot.x_title} {x_first:g}, {plot.fmt(last)} at {x_last:g}")
    for band in plot.bands:
        words.append(f"{band.name}: {plot.fmt(band.low[-1][1])} to {plot.fmt(band.high[-1][1])} at the end")
    words += [f"{level.name}: {plot.fmt(level.value)}" for level in plot.levels]
    return "; ".join(words) + "."
