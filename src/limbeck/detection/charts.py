"""Charts of what a detector finds: precision over recall, by size, by class."""

from collections.abc import Sequence

from limbeck.detection.drawn import MODELS, class_names
from limbeck.logs.records import Record, mapping, number, numbers
from limbeck.report.bars import bar_chart
from limbeck.report.chart import Bar, Chart, Line, present
from limbeck.report.draw import line_chart
from limbeck.report.words import PERCENT

MOST_ROWS = 20  # classes that are drawn
FIGURES = {
    "ap": "IoU 0.50 to 0.95",
    "ap50": "IoU 0.50",
    "ap75": "IoU 0.75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
}
SIZES = "Small is below 32 x 32 pixels of the file, large above 96 x 96; over IoU 0.50 to 0.95."


def precision_charts(boxes: Record) -> list[Chart]:
    """The charts of ``boxes.json``; those that there is nothing to draw for are left out."""
    models = [(who, mapping(boxes, "models", who)) for who in MODELS if mapping(boxes, "models", who)]
    if not models:
        return []
    series = [(who, who) for who, _ in models]
    rows = [Bar(name, [number(model, "figures", key) for _, model in models]) for key, name in FIGURES.items()]
    figures = bar_chart(
        "Average precision",
        rows,
        series=series,
        x_title="average precision",
        fmt=PERCENT,
        id="precision-figures",
        note=SIZES,
    )
    return present([_curves(models), figures, _classes(boxes, models)])


def _curves(models: Sequence[tuple[str, Record]]) -> Chart | None:
    lines = [
        Line(f"{who} at IoU {iou}", who, _curve(numbers(model, "curves", iou)), dashed=iou != "0.50")
        for who, model in models
        for iou in ("0.50", "0.75")
    ]
    return line_chart(
        "Precision over recall",
        lines,
        x_title="recall in %",
        fmt=PERCENT,
        id="precision-recall",
        note="Of the boxes down to some score: which share is right, over the share of the objects that they find. A "
        "mean over the classes; where it falls to zero, no score is low enough.",
        large=True,
    )


def _curve(precision: Sequence[float]) -> list[tuple[float, float]]:
    if len(precision) < 2:
        return []
    step = 100.0 / (len(precision) - 1)
    return [(round(step * place, 6), min(max(value, 0.0), 1.0)) for place, value in enumerate(precision)]


def _classes(boxes: Record, models: Sequence[tuple[str, Record]]) -> Chart | None:
    """The classes in which the student has most to gain first; without a teacher the weakest."""
    names = class_names(boxes)
    rows = [Bar(name, [_value(model, place) for _, model in models]) for place, name in enumerate(names)]
    rows = [row for row in rows if all(value is not None for value in row.values)]
    rows.sort(key=_behind)
    cut = f"; the first {MOST_ROWS} of {len(rows)}, the table has all" if len(rows) > MOST_ROWS else ""
    order = "Those first in which the teacher is furthest ahead" if len(models) > 1 else "The weakest first"
    return bar_chart(
        "Average precision of each class",
        rows[:MOST_ROWS],
        series=[(who, who) for who, _ in models],
        x_title="average precision, IoU 0.50 to 0.95",
        fmt=PERCENT,
        id="precision-classes",
        note=f"{order}{cut}.",
        unseen=rows[MOST_ROWS:],
    )


def _value(model: Record, place: int) -> float | None:
    listed = model.get("classes")
    value = listed[place] if isinstance(listed, list) and place < len(listed) else None  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return number({"": value}, "")


def _behind(row: Bar) -> float:
    first, *others = (value or 0.0 for value in row.values)
    return first - others[0] if others else first
