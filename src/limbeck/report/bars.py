"""Charts of bars: a few values of one or two models side by side, row by row."""

from collections.abc import Sequence

from limbeck.report.axes import linear_axis
from limbeck.report.chart import Bar, Canvas, Chart, Key, Label, Mark, Stroke, Table, Tick
from limbeck.report.words import Format

HEIGHT = 11.0  # of a bar, in the canvas's units
LONGEST_NAME = 17  # letters of a row's name
LEFT, VALUES = 132.0, 62.0  # what the names and the values take of the width


def bar_chart(
    title: str,
    rows: Sequence[Bar],
    *,
    series: Sequence[tuple[str, str]],
    x_title: str,
    fmt: Format,
    id: str = "",
    note: str = "",
    unseen: Sequence[Bar] = (),
) -> Chart | None:
    """Bars from zero, a row for each name, in it one bar a model.

    Args:
        title: Heading of the figure.
        rows: The rows, from the top; each with a value a series, None where there is none.
        series: Name and style of the models.
        x_title: Name of the horizontal axis.
        fmt: Writes values.
        id: Name of the figure; empty to number it.
        note: What to look for, in a sentence.
        unseen: Rows that are in the table only.

    Returns:
        The chart; None where there is no value.
    """
    rows = [row for row in rows if any(value is not None for value in row.values)]
    if not rows:
        return None
    legend = tuple(Key(name, style, "bar") for name, style in series) if len(series) > 1 else ()
    cells = tuple((row.name, *("–" if v is None else fmt(v) for v in row.values)) for row in [*rows, *unseen])
    return Chart(
        title=title,
        description=_in_words(rows, series, fmt),
        note=note,
        wide=_canvas(rows, series, x_title, fmt),
        narrow=None,
        legend=legend,
        id=id,
        table=Table(("", *(name for name, _ in series)), cells),
    )


def _canvas(rows: Sequence[Bar], series: Sequence[tuple[str, str]], x_title: str, fmt: Format) -> Canvas:
    width, top = 420.0, 8.0
    left, right = LEFT, width - VALUES
    row_height = HEIGHT * len(series) + 13
    bottom = top + row_height * len(rows)
    axis = linear_axis([0.0, *(v for row in rows for v in row.values if v is not None)], 4)
    place = axis.scale(left, right)
    strokes: list[Stroke] = []
    marks: list[Mark] = []
    labels: list[Label] = []
    for number, row in enumerate(rows):
        above = top + row_height * number + 6
        labels.append(Label(left - 9, above + HEIGHT * len(series) / 2, _cut(row.name), "", "end"))
        for which, ((name, style), value) in enumerate(zip(series, row.values, strict=True)):
            y = above + HEIGHT * (which + 0.5)
            if value is None:
                continue
            strokes.append(Stroke(f"M{place(0):.1f} {y:.1f}H{place(value):.1f}", style, "bar"))
            marks.append(Mark(place(value), y, style, f"{row.name}, {name}: {fmt(value)}", "dot"))
            labels.append(Label(place(value) + 7, y, fmt(value), style))
    ticks = [Tick(place(value), fmt.tick(value)) for value in axis.ticks]
    return Canvas(width, bottom + 44, left, right, top, bottom, x_title, ticks, (), strokes, marks, labels)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _in_words(rows: Sequence[Bar], series: Sequence[tuple[str, str]], fmt: Format) -> str:
    words = [
        f"{row.name}: "
        + ", ".join(
            f"{name} {fmt(value)}" for (name, _), value in zip(series, row.values, strict=True) if value is not None
        )
        for row in rows
    ]
    return "; ".join(words) + "."
