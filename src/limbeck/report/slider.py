"""Charts with a slider over probes: all states on the same axes; the last one is drawn, a script shows the others."""

import json
from collections.abc import Sequence

from limbeck.report.axes import Axis, linear_axis, log_axis, pick
from limbeck.report.chart import Canvas, Chart, Frame, Key, Point, Stroke, Table, Tick
from limbeck.report.draw import path_of
from limbeck.report.words import Format

MOST_FRAMES = 60  # a slider of a few hundred pixels has no finer steps that a hand could find
MOST_POINTS = 128  # of one curve
UNITS = 1000  # the script's curves are in thousandths of the axes, as whole numbers


def frame_chart(
    title: str,
    series: Sequence[tuple[str, str]],
    frames: Sequence[Frame],
    *,
    x_title: str,
    fmt: Format,
    id: str,
    table: Table,
    log: bool = False,
    area: bool = False,
    note: str = "",
) -> Chart | None:
    """A chart of curves that change from probe to probe.

    Args:
        title: Heading of the figure.
        series: Name and style of each curve of a frame.
        frames: The states, oldest first; some are left out where there are more than a slider can show.
        x_title: Name of the horizontal axis.
        fmt: Writes values of the vertical axis.
        id: Name of the figure.
        table: The states in numbers, for those without the script and those who do not see the figure.
        log: A logarithmic vertical axis.
        area: Fill below the curves, as in a histogram; the vertical axis begins at zero then.
        note: What to look for, in a sentence.

    Returns:
        The chart; None without frames.
    """
    kept = pick([_thinned(frame) for frame in frames if any(frame.curves)], MOST_FRAMES)
    if not kept:
        return None
    x_axis, y_axis = _axes(kept, log=log, area=area)
    few = len(kept) < 2
    legend = tuple(Key(name, style, "line") for name, style in series)
    legend += () if few else (Key(f"dashed: {kept[0].label}", "alone", "level"),)
    script = {
        "labels": [frame.label for frame in kept],
        "words": [frame.words for frame in kept],
        "curves": [[_units(curve, x_axis, y_axis) for curve in frame.curves] for frame in kept],
    }

    def canvas(width: int, height: int) -> Canvas:
        left, right, top, bottom = 58.0, width - 14.0, 14.0, height - 46.0
        to_x, to_y = x_axis.scale(left, right), y_axis.scale(bottom, top)
        strokes: list[Stroke] = []
        for number, (_, style) in enumerate(series):
            first, last = kept[0].curves[number], kept[-1].curves[number]
            if last:
                path = path_of([(to_x(x), to_y(y)) for x, y in last])
                if area:
                    path += f"L{to_x(last[-1][0]):.1f} {bottom:.1f}L{to_x(last[0][0]):.1f} {bottom:.1f}Z"
                strokes.append(Stroke(path, style, "area" if area else "frame", series=number))
            if first and not few:
                strokes.append(Stroke(path_of([(to_x(x), to_y(y)) for x, y in first]), style, "first"))
        ticks = x_axis.ticks if width > 500 else pick(x_axis.ticks, 5)
        x_ticks = [Tick(to_x(value), Format().tick(value)) for value in ticks]
        y_ticks = [Tick(to_y(value), y_axis.label(value, fmt)) for value in y_axis.ticks]
        return Canvas(width, height, left, right, top, bottom, x_title, x_ticks, y_ticks, strokes)

    return Chart(
        title=title,
        description=f"At {kept[-1].label}: {kept[-1].words}.",
        note=note,
        wide=canvas(1000, 340),
        narrow=canvas(340, 250),
        legend=legend if len(legend) > 1 else (),
        id=id,
        table=table,
        keyed=True,
        frames="" if few else json.dumps(script, separators=(",", ":")),
    )


def _thinned(frame: Frame) -> Frame:
    return Frame(frame.label, frame.words, tuple(tuple(pick(curve, MOST_POINTS)) for curve in frame.curves))


def _axes(frames: Sequence[Frame], *, log: bool, area: bool) -> tuple[Axis, Axis]:
    """The same for all frames, so that what moves is the curve."""
    points = [point for frame in frames for curve in frame.curves for point in curve]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    y_axis = log_axis(ys, 5) if log else linear_axis([*ys, 0.0], 5)
    if area:
        y_axis = Axis(tuple(tick for tick in y_axis.ticks if tick >= 0), 0.0, y_axis.high)
    return linear_axis(xs, 6, whole=not area, tight=True), y_axis


def _units(curve: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[int]:
    to_x, to_y = x_axis.scale(0, UNITS), y_axis.scale(0, UNITS)
    return [round(value) for x, y in curve for value in (to_x(x), to_y(y))]
