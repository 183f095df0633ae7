"""Charts of groups of runs: means with intervals in rows, and means against a cost."""

from collections.abc import Sequence

from limbeck.report.axes import linear_axis
from limbeck.report.chart import Canvas, Chart, Cloud, Key, Label, Level, Mark, Span, Stroke, Table, Tick
from limbeck.report.words import Format

LETTER = 7.6  # width of a letter of a label, in the canvas's units
LONGEST_BESIDE = 14  # letters of a name that stands beside its row; longer ones stand above it,
LONGEST_ABOVE = 50  # with so many letters at most


def dot_chart(
    title: str,
    spans: Sequence[Span],
    *,
    x_title: str,
    fmt: Format,
    id: str = "",
    level: Level | None = None,
    note: str = "",
) -> Chart | None:
    """Means with their intervals, one row each, the single values as small dots.

    Args:
        title: Heading of the figure.
        spans: The rows, from the top.
        x_title: Name of the horizontal axis.
        fmt: Writes values.
        id: Name of the figure; empty to number it.
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
    above = max(len(span.name) for span in spans) > LONGEST_BESIDE
    width, right, top = 420.0, 352.0, 32.0  # values stand right of the axis
    row, left, lift = (54.0, 12.0, 17.0) if above else (38.0, 108.0, 0.0)
    bottom = top + row * len(spans)
    axis = linear_axis(everything, 5)
    place = axis.scale(left, right)
    strokes: list[Stroke] = []
    marks: list[Mark] = []
    labels: list[Label] = []
    if level is not None:
        x = place(level.value)
        strokes.append(Stroke(f"M{x:.1f} {top - 4:.1f}V{bottom:.1f}", level.style, "level"))
        text = f"{level.name} {fmt(level.value)}" if level.value else level.name
        half = len(text) * LETTER / 2
        labels.append(Label(min(max(x, half), width - half), top - 15, text, level.style, "middle"))
    for index, span in enumerate(spans):
        y = top + row * (index + 0.45) + lift * 0.5
        labels.append(Label(0, y - lift, _cut(span.name), span.style))
        labels.append(Label(width, y, fmt(span.mean), span.style, "end"))
        if span.low is not None and span.high is not None:
            ends = f"M{place(span.low):.1f} {y - 5:.1f}v10M{place(span.high):.1f} {y - 5:.1f}v10"
            strokes.append(Stroke(f"M{place(span.low):.1f} {y:.1f}H{place(span.high):.1f}{ends}", span.style, "span"))
        marks += [Mark(place(value), y + 11, span.style, f"one run: {fmt(value)}", "seed") for value in span.values]
        marks.append(Mark(place(span.mean), y, span.style, f"{span.name}: mean {fmt(span.mean)}", "mean"))
    ticks = [Tick(place(value), fmt.tick(value)) for value in axis.ticks]
    canvas = Canvas(width, bottom + 44, left, right, top, bottom, x_title, ticks, (), strokes, marks, labels)
    words = "; ".join(_in_words(span, fmt) for span in spans)
    if level is not None and level.value:
        words += f"; {level.name}: {fmt(level.value)}"
    return Chart(title, words + ".", note, canvas, None, (), id=id)


def cloud_chart(
    title: str,
    clouds: Sequence[Cloud],
    *,
    x_title: str,
    fmt: Format,
    id: str = "",
    levels: Sequence[Level] = (),
    note: str = "",
) -> Chart | None:
    """Means with their intervals at what they cost, the single runs as small dots.

    Args:
        title: Heading of the figure.
        clouds: The groups.
        x_title: Name of the horizontal axis.
        fmt: Writes values of the vertical axis.
        id: Name of the figure; empty to number it.
        levels: Horizontal reference lines.
        note: What to look for, in a sentence.

    Returns:
        The chart; None without groups.
    """
    if not clouds:
        return None
    rows = tuple((c.span.name, f"{c.x:.4g}", fmt(c.span.mean), _interval(c.span, fmt)) for c in clouds)
    words = "; ".join(f"{_in_words(cloud.span, fmt)}, at {x_title} {cloud.x:.4g}" for cloud in clouds)
    legend = tuple(Key(cloud.span.name, cloud.span.style, "disc") for cloud in clouds)
    legend += tuple(Key(level.name, level.style, "level") for level in levels)
    return Chart(
        title=title,
        description=words + ".",
        note=note,
        wide=_cloud_canvas(clouds, levels, x_title, fmt, width=1000, height=360),
        narrow=_cloud_canvas(clouds, levels, x_title, fmt, width=340, height=240),
        legend=legend,
        id=id,
        table=Table(("", x_title, "mean", "95% interval"), rows),
        keyed=True,
    )


def _cloud_canvas(
    clouds: Sequence[Cloud], levels: Sequence[Level], x_title: str, fmt: Format, *, width: int, height: int
) -> Canvas:
    xs = [x for cloud in clouds for x in (cloud.x, *(x for x, _ in cloud.points))]
    spans = [cloud.span for cloud in clouds]
    ys = [v for span in spans for v in (span.mean, span.low, span.high, *span.values) if v is not None]
    x_axis = linear_axis(xs, 8 if width > 500 else 4)
    y_axis = linear_axis(ys + [level.value for level in levels], 5)
    left, right, top, bottom = 58.0, width - 14.0, 14.0, height - 46.0
    to_x, to_y = x_axis.scale(left, right), y_axis.scale(bottom, top)
    strokes = [Stroke(f"M{left:.1f} {to_y(level.value):.1f}H{right:.1f}", level.style, "level") for level in levels]
    marks: list[Mark] = []
    for cloud in clouds:
        span, x = cloud.span, to_x(cloud.x)
        if span.low is not None and span.high is not None:
            low, high = to_y(span.low), to_y(span.high)
            ends = f"M{x - 5:.1f} {low:.1f}h10M{x - 5:.1f} {high:.1f}h10"
            strokes.append(Stroke(f"M{x:.1f} {low:.1f}V{high:.1f}{ends}", span.style, "span"))
        marks += [
            Mark(to_x(a), to_y(b), span.style, f"{span.name}, one run: {fmt(b)} at {a:.4g}", "seed")
            for a, b in cloud.points
        ]
        marks.append(Mark(x, to_y(span.mean), span.style, f"{span.name}: mean {fmt(span.mean)}", "mean"))
    x_ticks = [Tick(to_x(value), f"{value:,.6g}") for value in x_axis.ticks]
    y_ticks = [Tick(to_y(value), y_axis.label(value, fmt)) for value in y_axis.ticks]
    return Canvas(width, height, left, right, top, bottom, x_title, x_ticks, y_ticks, strokes, marks)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_ABOVE else f"{name[: LONGEST_ABOVE - 1]}…"


def _interval(span: Span, fmt: Format) -> str:
    return "–" if span.low is None or span.high is None else f"{fmt(span.low)} to {fmt(span.high)}"


def _in_words(span: Span, fmt: Format) -> str:
    if span.low is None or span.high is None:
        return f"{span.name}: {fmt(span.mean)}, no interval"
    return f"{span.name}: {fmt(span.mean)}, 95% interval {_interval(span, fmt)}"
