"""The charts of one run, and the series behind them."""

from collections.abc import Iterable

from limbeck.logs.records import Record, headline, mapping, number
from limbeck.report import words
from limbeck.report.chart import Chart, Level, Line, Point, figure_id, present
from limbeck.report.draw import line_chart
from limbeck.report.record import RunRecord

NOT_LOSSES = ("loss", "images_per_second")


def run_metric(record: RunRecord) -> str:
    """The metric that a run is judged by: as its summary says, else the best that was measured."""
    named = record.summary.get("metric")
    if isinstance(named, str):
        return named
    return headline(name for epoch in record.epochs for name in mapping(epoch, "val"))[0]


def validation(record: RunRecord, metric: str) -> list[Point]:
    """The validation metric over the epochs."""
    return _points(record.epochs, "epoch", "val", metric)


def main_curves(record: RunRecord, metric: str) -> list[Chart]:
    """The validation metric, and the losses of student and training."""
    points, teacher = validation(record, metric), teacher_figure(record, metric)
    best = best_epoch(record, metric)
    mark = next((i for i, (x, _) in enumerate(points) if best and x == best[0]), None)
    main = line_chart(
        f"Validation {words.metric_name(metric)}",
        [Line("student", "student", points, mark)],
        x_title="epoch",
        fmt=words.metric_format(metric),
        id=figure_id("curve", metric),
        levels=[] if teacher is None else [Level("teacher", "teacher", teacher)],
        note="The ring marks the best epoch." if mark is not None else "",
        large=True,
    )
    x_title, task = _part(record, "task")
    losses = line_chart(
        "Task loss",
        [
            Line("training", "train", task),
            Line("validation", "student", validation(record, "loss") if x_title == "epoch" else []),
        ],
        x_title=x_title,
        id="curve-task" if metric == "loss" and main is not None else "curve-loss",
        note="A validation curve that turns up while training goes down is overfitting.",
    )
    x_title, sums = _part(record, "loss")
    total = line_chart(
        "Training loss, weighted sum", [Line("training", "train", sums)], x_title=x_title, id="curve-total"
    )
    return present([main, losses, total])


def part_curves(record: RunRecord) -> list[Chart]:
    """One chart for each part of the training loss besides the task, since their scales have nothing in common."""
    charts: list[Chart | None] = []
    for name in _part_names(record):
        x_title, points = _part(record, name)
        charts.append(
            line_chart(
                f"{name.replace('_', ' ')} loss".capitalize(),
                [Line("training", "train", points)],
                x_title=x_title,
                id=figure_id("part", name),
            )
        )
    return present(charts)


def reading_curves(record: RunRecord) -> list[Chart]:
    """One chart for each reading of the terms."""
    names = dict.fromkeys(str(name) for row in record.steps for name in mapping(row, "readings"))
    charts = [
        line_chart(
            name.replace("/", ": ").replace("_", " "),
            [Line("reading", "student", _points(record.steps, "step", "readings", name))],
            id=figure_id("reading", name),
            note=_sentence(words.READINGS.get(name.rsplit("/", 1)[-1], "")),
        )
        for name in names
    ]
    return present(charts)


def course_curves(record: RunRecord) -> list[Chart]:
    """Speed and learning rate over the steps."""
    rate = _points(record.steps, "step", "lr")
    speed = _points(record.steps, "step", "images_per_second")
    return present(
        [
            line_chart("Training images a second", [Line("images a second", "train", speed)], id="cost"),
            line_chart("Learning rate", [Line("rate", "train", rate)], id="learning-rate"),
        ]
    )


def best_epoch(record: RunRecord, metric: str) -> tuple[float | None, float] | None:
    """Epoch and value of the best epoch."""
    final = number(record.summary, "best", metric)
    if final is not None:
        return number(record.summary, "best", "epoch"), final
    points = validation(record, metric)
    if not points:
        return None
    return min(points, key=lambda point: point[1]) if metric == "loss" else max(points, key=lambda point: point[1])


def teacher_figure(record: RunRecord, metric: str) -> float | None:
    """The teacher's metric on the same images; None without a teacher or before the end."""
    return number(record.summary, "teacher", metric)


def _part(record: RunRecord, name: str) -> tuple[str, list[Point]]:
    """A part of the training loss, not weighted: over the epochs, or the steps where a loop has none."""
    points = _points(record.epochs, "epoch", "train", name)
    if points:
        return "epoch", points
    keys = ("loss",) if name == "loss" else ("parts", name)
    return "step", _points(record.steps, "step", *keys)


def _part_names(record: RunRecord) -> list[str]:
    names = dict.fromkeys(str(name) for row in record.epochs for name in mapping(row, "train"))
    names |= dict.fromkeys(str(name) for row in record.steps for name in mapping(row, "parts"))
    return [name for name in names if name not in (*NOT_LOSSES, "task")]


def _points(rows: Iterable[Record], x: str, *keys: str) -> list[Point]:
    pairs = ((number(row, x), number(row, *keys)) for row in rows)
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
