"""The charts of a comparison: means and differences with intervals, mean curves, accuracy against cost."""

import math
from collections.abc import Callable, Sequence

from limbeck.logs.records import is_share, mapping, number
from limbeck.report import words
from limbeck.report.chart import Chart, Cloud, Level, Line, Point, Span, figure_id, present
from limbeck.report.curves import validation
from limbeck.report.dots import cloud_chart, dot_chart
from limbeck.report.draw import line_chart
from limbeck.report.groups import Comparison, MethodRow
from limbeck.report.record import RunRecord
from limbeck.report.result import last_value, run_seconds


def spread_charts(comparison: Comparison) -> list[Chart]:
    """The mean of each method with its interval, and the paired differences to the baseline."""
    metric, teacher = comparison.metric, comparison.teacher
    base = next((m.values(metric) for m in comparison.methods if m.name == comparison.baseline), {})

    def gaps(method: MethodRow) -> list[float]:
        return [value - base[seed] for seed, value in method.values(metric).items() if seed in base]

    differences = [
        Span(m.name, m.style, mean, number(m.difference, "low"), number(m.difference, "high"), gaps(m))
        for m in comparison.methods
        if (mean := number(m.difference, "mean")) is not None
    ]
    unit = ", points" if is_share(metric) else ""
    against = "the student alone" if comparison.baseline == "alone" else comparison.baseline
    return present(
        [
            dot_chart(
                f"Validation {words.metric_name(metric)}, last epoch",
                [_span(method, metric) for method in comparison.methods if method.mean is not None],
                x_title=f"mean and 95% interval of {words.metric_name(metric)}",
                fmt=words.metric_format(metric),
                id="means",
                level=None if teacher is None else Level("teacher", "teacher", teacher),
                note="Small dots are the single runs.",
            ),
            dot_chart(
                f"Difference to {against}, seed by seed",
                differences,
                x_title=f"paired difference of {words.metric_name(metric)}{unit}",
                fmt=words.difference_format(metric),
                id="differences",
                level=Level(comparison.baseline, "alone", 0.0),
                note="An interval that reaches the line shows no difference. One that does not may still be chance "
                "where several are drawn: what is shown stands above.",
            ),
        ]
    )


def _span(method: MethodRow, metric: str) -> Span:
    assert method.mean is not None
    ends = number(method.row, "low"), number(method.row, "high")
    return Span(method.name, method.style, method.mean, *ends, list(method.values(metric).values()))


def mean_curves(comparison: Comparison) -> list[Chart]:
    """The validation metric of all methods over the epochs."""
    lines: list[Line] = []
    for method in comparison.methods:
        seeds = [points for run in method.runs.values() if (points := validation(run, comparison.metric))]
        if len(seeds) > 1:
            lines += [Line(method.name, method.style, points, faint=True) for points in seeds]
        lines.append(Line(method.name, method.style, _mean_curve(seeds)))
    chart = line_chart(
        f"Validation {words.metric_name(comparison.metric)} over the epochs",
        lines,
        x_title="epoch",
        fmt=words.metric_format(comparison.metric),
        id=figure_id("curve", comparison.metric),
        levels=[] if comparison.teacher is None else [Level("teacher", "teacher", comparison.teacher)],
        note="Bold: mean over the seeds. Faint: the single seeds.",
        large=True,
    )
    return present([chart])


def _mean_curve(seeds: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean at the epochs that every seed has reached."""
    if not seeds:
        return []
    tables = [dict(points) for points in seeds]
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    return [(x, math.fsum(table[x] for table in tables) / len(tables)) for x in shared]


def cost_charts(comparison: Comparison) -> list[Chart]:
    """Accuracy against training time, and against the student's size where the students differ."""
    seconds = [value for m in comparison.methods for run in m.runs.values() if (value := run_seconds(run)) is not None]
    unit, name = (3600.0, "hours") if seconds and max(seconds) >= 7200 else (60.0, "minutes")
    if seconds and max(seconds) < 120:
        unit, name = 1.0, "seconds"

    def hours(run: RunRecord) -> float | None:
        value = run_seconds(run)
        return None if value is None else value / unit

    charts = [_against(comparison, "time", "training time", f"training time of a run, {name}", hours)]
    sizes = {size for m in comparison.methods for run in m.runs.values() if (size := _millions(run)) is not None}
    if len(sizes) > 1:
        charts.append(_against(comparison, "size", "size", "student's parameters, millions", _millions))
    return present(charts)


def _millions(run: RunRecord) -> float | None:
    value = number(mapping(run.summary, "parameters"), "student")
    return None if value is None else value / 1e6


def _against(
    comparison: Comparison, id: str, what: str, x_title: str, of: Callable[[RunRecord], float | None]
) -> Chart | None:
    metric = comparison.metric
    clouds: list[Cloud] = []
    for method in comparison.methods:
        pairs = [(of(run), last_value(run, metric)) for run in method.runs.values()]
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        if points and method.mean is not None:
            clouds.append(Cloud(_span(method, metric), math.fsum(x for x, _ in points) / len(points), points))
    name = words.metric_name(metric)
    return cloud_chart(
        f"{name[:1].upper()}{name[1:]} against {what}",
        clouds,
        x_title=x_title,
        fmt=words.metric_format(metric),
        id=f"against-{id}",
        levels=[] if comparison.teacher is None else [Level("teacher", "teacher", comparison.teacher)],
        note="Large: mean with its 95% interval. Small: the single runs.",
    )
