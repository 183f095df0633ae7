"""Geometry of the charts: numbers in, places on a canvas out. The template draws them as SVG."""

import math
from collections.abc import Callable, Sequence

from limbeck.report.chart import Canvas, Chart, Key, Label, Level, Line, Mark, Point, Span, Stroke, Tick
from limbeck.report.words import Format

MOST_POINTS = 160  # on one line: a canvas is a few hundred pixels wide
LABEL_GAP = 15.0  # between two labels, in the canvas's units


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_title: str,
    fmt: Format,
    levels: Sequence[Level] = (),
    note: str = "",
    large: bool = False,
) -> Chart | None:
    """A chart of series over epochs or steps.

    Args:
        title: Heading of the figure.
        lines: The series; those without a point are left out.
        x_title: Name of the horizontal axis.
        fmt: Writes values of the vertical axis.
        levels: Reference lines.
        note: What to look for, in a sentence.
        large: Draw it over the whole width, with names at the ends of the lines, and once more for narrow screens.

    Returns:
        The chart; None where there is nothing to draw.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return None
    plain = [line for line in drawn if not line.faint]
    legend = tuple(Key(line.name, line.style, "line") for line in plain)
    legend += tuple(Key(level.name, level.style, "level") for level in levels)
    small = _lines_on(drawn, levels, x_title, fmt, width=340, height=225, ends=False)
    return Chart(
        title=title,
        description=_lines_in_words(plain, levels, x_title, fmt),
        note=note,
        wide=_lines_on(drawn, levels, x_title, fmt, width=1000, height=360, ends=True) if large else small,
        narrow=small if large else None,
        legend=legend if len(legend) > 1 else (),
    )


def dot_chart(
    title: str, spans: Sequence[Span], *, x_title: str, fmt: Format, level: Level | None = None, note: str = ""
) -> Chart | None:
    """Means with their intervals, one row each, the single values as small dots.

    Args:
        title: Heading of the figure.
        spans: The rows, from the top.
        x_title: Name of the horizontal axis.
        fmt: Writes values.
        level: A vertical reference line: the teacher, or zero.
        note: What to look for, in a sentence.

    Returns:
        The chart; None without rows.
    """
    if not spans:
        return None
    everything = [v for span in spans for v in (span.mean, span.low, span.high, *span.values) if v is not None]
    if level is not None:
        everything.append(level.value)
    width, row, left, right, top = 420.0, 38.0, 108.0, 352.0, 32.0  # names stand left of the axis, values right of it
    bottom = top + row * len(spans)
    ticks, low, high = _axis(min(everything), max(everything), 5)
    place = _scale(low, high, left, right)
    strokes: list[Stroke] = []
    marks: list[Mark] = []
    labels: list[Label] = []
    if level is not None:
        x = place(level.value)
        strokes.append(Stroke(f"M{x:.1f} {top - 4:.1f}V{bottom:.1f}", level.style, "level"))
        labels.append(
            Label(x, top - 15, f"{level.name} {fmt(level.value)}" if level.value else level.name, level.style, "middle")
        )
    for index, span in enumerate(spans):
        y = top + row * (index + 0.45)
        labels.append(Label(0, y, span.name, span.style))
        labels.append(Label(width, y, fmt(span.mean), span.style, "end"))
        if span.low is not None and span.high is not None:
            ends = f"M{place(span.low):.1f} {y - 5:.1f}v10M{place(span.high):.1f} {y - 5:.1f}v10"
            strokes.append(Stroke(f"M{place(span.low):.1f} {y:.1f}H{place(span.high):.1f}{ends}", span.style, "span"))
        marks += [Mark(place(value), y + 11, span.style, f"one run: {fmt(value)}", "seed") for value in span.values]
        marks.append(Mark(place(span.mean), y, span.style, f"{span.name}: mean {fmt(span.mean)}", "mean"))
    canvas = Canvas(
        width=width,
        height=bottom + 44,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=tuple(Tick(place(value), fmt.tick(value)) for value in ticks),
        y_ticks=(),
        strokes=tuple(strokes),
        marks=tuple(marks),
        labels=tuple(labels),
        x_title=x_title,
    )
    words = "; ".join(_span_in_words(span, fmt) for span in spans)
    if level is not None and level.value:
        words += f"; {level.name}: {fmt(level.value)}"
    return Chart(title, words + ".", note, canvas, None, ())


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


def _lines_on(
    lines: Sequence[Line], levels: Sequence[Level], x_title: str, fmt: Format, *, width: int, height: int, ends: bool
) -> Canvas:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [level.value for level in levels]
    x_ticks, x_low, x_high = _axis(min(xs), max(xs), 8 if ends else 5, whole=True, tight=True)
    y_ticks, y_low, y_high = _axis(min(ys), max(ys), 5)
    left, right, top, bottom = 58.0, width - (176.0 if ends else 12.0), 14.0, height - 46.0
    to_x, to_y = _scale(x_low, x_high, left, right), _scale(y_low, y_high, bottom, top)
    strokes = [Stroke(f"M{left:.1f} {to_y(level.value):.1f}H{right:.1f}", level.style, "level") for level in levels]
    marks: list[Mark] = []
    labels = [Label(right + 10, to_y(level.value), f"{level.name} {fmt(level.value)}", level.style) for level in levels]
    for line in sorted(lines, key=lambda line: not line.faint):  # faint ones lie below
        points = thin(line.points)
        places = [(to_x(x), to_y(y)) for x, y in points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        strokes.append(Stroke(path, line.style, "faint" if line.faint else "line"))
        if line.faint:
            continue
        if len(places) <= 60:
            tips = [f"{line.name}, {x_title} {x:g}: {fmt(y)}" for x, y in points]
            marks += [Mark(*place, line.style, tip, "dot") for place, tip in zip(places, tips, strict=True)]
        if line.mark is not None:
            x, y = line.points[line.mark]
            marks.append(Mark(to_x(x), to_y(y), line.style, f"best: {x_title} {x:g}, {fmt(y)}", "best"))
        labels.append(Label(right + 10, places[-1][1], f"{line.name} {fmt(line.points[-1][1])}", line.style))
    return Canvas(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=tuple(Tick(to_x(value), f"{value:,.0f}") for value in x_ticks),
        y_ticks=tuple(Tick(to_y(value), fmt.tick(value)) for value in y_ticks),
        strokes=tuple(strokes),
        marks=tuple(marks),
        labels=tuple(_apart(labels, bottom)) if ends else (),
        x_title=x_title,
    )


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


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _axis(
    low: float, high: float, about: int, *, whole: bool = False, tight: bool = False
) -> tuple[list[float], float, float]:
    """Round ticks, and the ends of the axis: the data's own where ``tight``, else with some air."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = 0.5 if whole or high == 0 else 0.05 * abs(high)
        low, high = low - pad, high + pad
    elif not tight:
        air = 0.05 * (high - low)
        low, high = low - air, high + air
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)], low, high


def _lines_in_words(lines: Sequence[Line], levels: Sequence[Level], x_title: str, fmt: Format) -> str:
    words: list[str] = []
    for line in lines:
        (x_first, first), (x_last, last) = line.points[0], line.points[-1]
        words.append(f"{line.name}: {fmt(first)} at {x_title} {x_first:g}, {fmt(last)} at {x_last:g}")
    words += [f"{level.name}: {fmt(level.value)}" for level in levels]
    return "; ".join(words) + "."


def _span_in_words(span: Span, fmt: Format) -> str:
    if span.low is None or span.high is None:
        return f"{span.name}: {fmt(span.mean)}, no interval"
    return f"{span.name}: {fmt(span.mean)}, 95% interval {fmt(span.low)} to {fmt(span.high)}"
