"""The page of a comparison: which method is better on this data, and how sure the seeds make that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from limbeck.errors import UserError
from limbeck.report import words
from limbeck.report.chart import Chart, Level, Line, Point, Span
from limbeck.report.curves import validation
from limbeck.report.draw import dot_chart, line_chart
from limbeck.report.page import REPORT_FILE, write_page
from limbeck.report.record import COMPARISON_FILE, Record, RunRecord, mapping, number, read_json, read_run, records
from limbeck.report.run import Figure


@dataclass(frozen=True)
class MethodRow:
    """One method of the comparison, with the runs of it that can be read."""

    name: str
    style: str
    row: Record
    runs: Mapping[str, RunRecord]

    @property
    def mean(self) -> float | None:
        """Mean over the seeds at the last epoch."""
        return number(self.row, "mean")

    @property
    def difference(self) -> Record:
        """The paired difference to the baseline; empty for the baseline itself."""
        return mapping(self.row, "paired")


def write_comparison(folder: Path) -> Path:
    """Write ``report.html`` into a comparison folder.

    Args:
        folder: The comparison folder; runs that are missing or were killed are left out of the curves.

    Returns:
        Where the page is.

    Raises:
        UserError: If the folder is missing or holds no comparison.
    """
    if not (folder / COMPARISON_FILE).is_file():
        raise UserError(f"{folder} holds no comparison: expected {COMPARISON_FILE}")
    record = read_json(folder / COMPARISON_FILE)
    metric = str(record.get("metric") or "top1")
    methods = [_method(folder, row) for row in records(record, "rows")]
    teacher = number(record, "teacher", metric)
    recipe = mapping(record, "recipe")
    view: dict[str, Any] = {
        "title": " · ".join(["Comparison", str(recipe.get("name") or folder.resolve().name)]),
        "metric": words.metric_name(metric),
        "headline": _headline(methods, metric),
        "figures": _figures(methods, teacher, metric),
        "verdicts": [line for method in methods if (line := _verdict(method, metric))],
        "methods": [(method.name, method.style, words.METHODS.get(method.name, "")) for method in methods],
        "table": [_table_row(method, metric) for method in methods],
        "teacher": None if teacher is None else words.metric_format(metric)(teacher),
        "spread": _spread(methods, teacher, metric),
        "curves": _curves(methods, teacher, metric),
        "seeds": _seed_table(methods, metric),
        "cost": _cost(methods),
        "recipe": [(name, "–" if value is None else str(value)) for name, value in recipe.items()],
        "command": str(record.get("command") or ""),
    }
    return write_page("comparison.html.j2", folder / REPORT_FILE, view)


def _method(folder: Path, row: Record) -> MethodRow:
    name = str(row.get("method") or "?")
    listed = row.get("runs")
    names = [str(run) for run in cast(list[object], listed)] if isinstance(listed, list) else []
    found: dict[str, RunRecord] = {}
    for run in names:
        # A comparison names its own run folders; a name that leads out of it is not followed.
        if Path(run).name == run and (folder / run).is_dir():
            try:
                found[run] = read_run(folder / run)
            except UserError:
                continue
    return MethodRow(name, words.method_style(name), row, found)


def _better(methods: Sequence[MethodRow], metric: str) -> list[MethodRow]:
    """Methods with a mean, the best first."""
    measured = [method for method in methods if method.mean is not None]
    return sorted(measured, key=lambda method: method.mean or 0.0, reverse=metric != "loss")


def _headline(methods: Sequence[MethodRow], metric: str) -> str:
    ranked = _better(methods, metric)
    if not ranked:
        return "No run of this comparison has ended yet."
    best = ranked[0]
    assert best.mean is not None
    text = (
        f"{_article(best.name)} has the best mean: {words.metric_format(metric)(best.mean)} {words.metric_name(metric)}"
    )
    gap = _difference_text(best, metric)
    return f"{text}, {gap}." if gap else f"{text}."


def _article(method: str) -> str:
    return "The student alone" if method == "alone" else f"The method “{method}”"


def _difference_text(method: MethodRow, metric: str) -> str:
    """For instance: +10.20 points against alone (95% interval +8.10 to +12.30, 5 seeds)."""
    mean, fmt = number(method.difference, "mean"), words.difference_format(metric)
    if mean is None:
        return ""
    unit = " points" if metric.startswith("top") else ""
    text = f"{fmt(mean)}{unit} against {method.difference.get('against', 'alone')}"
    low, high, n = (number(method.difference, key) for key in ("low", "high", "n"))
    if low is None or high is None or n is None:
        return f"{text} from one seed, so without an interval"
    return f"{text} (95% interval {fmt(low)} to {fmt(high)}, {n:.0f} seeds)"


def _verdict(method: MethodRow, metric: str) -> str:
    text = _difference_text(method, metric)
    if not text:
        return ""
    return f"{method.name}: {text}. {_conclusion(method)}"


def _conclusion(method: MethodRow) -> str:
    low, high = number(method.difference, "low"), number(method.difference, "high")
    if low is None or high is None:
        return "One seed allows no conclusion."
    if low > 0 or high < 0:
        return "Zero lies outside of the interval: a difference."
    return "Zero lies inside of the interval: no difference shown."


def _figures(methods: Sequence[MethodRow], teacher: float | None, metric: str) -> list[Figure]:
    fmt = words.metric_format(metric)
    found = [
        Figure(method.name, fmt(method.mean), _plus_minus(method, metric), method.style)
        for method in methods
        if method.mean is not None
    ]
    if teacher is not None:
        found.append(Figure("teacher", fmt(teacher), "on the same images", "teacher"))
    return found


def _plus_minus(method: MethodRow, metric: str) -> str:
    sd, n = number(method.row, "sd"), number(method.row, "n")
    if sd is None or n is None:
        return "one seed"
    scale = words.metric_format(metric)
    return f"sd {words.Format(scale.scale, '', scale.digits)(sd)} over {n:.0f} seeds"


def _table_row(method: MethodRow, metric: str) -> dict[str, str]:
    fmt, gap = words.metric_format(metric), words.difference_format(metric)
    plain = words.Format(fmt.scale, "", fmt.digits)

    def cell(value: float | None, write: words.Format) -> str:
        return "–" if value is None else write(value)

    row, difference = method.row, method.difference
    low, high = number(row, "low"), number(row, "high")
    gap_low, gap_high = number(difference, "low"), number(difference, "high")
    seconds = number(row, "seconds")
    return {
        "name": method.name,
        "style": method.style,
        "seeds": cell(number(row, "n"), words.Format(digits=0)),
        "mean": cell(method.mean, fmt),
        "sd": cell(number(row, "sd"), plain),
        "interval": "–" if low is None or high is None else f"{plain(low)} to {plain(high)}",
        "best": cell(number(row, "best_mean"), fmt),
        "gap": cell(number(difference, "mean"), gap),
        "gap_interval": "–" if gap_low is None or gap_high is None else f"{gap(gap_low)} to {gap(gap_high)}",
        "seconds": "–" if seconds is None else words.duration(seconds),
    }


def _spread(methods: Sequence[MethodRow], teacher: float | None, metric: str) -> list[Chart]:
    fmt = words.metric_format(metric)
    means = [
        Span(m.name, m.style, m.mean, number(m.row, "low"), number(m.row, "high"), _values(m, metric))
        for m in methods
        if m.mean is not None
    ]
    gaps = [
        Span(m.name, m.style, mean, number(m.difference, "low"), number(m.difference, "high"))
        for m in methods
        if (mean := number(m.difference, "mean")) is not None
    ]
    unit = ", points" if metric.startswith("top") else ""
    charts = [
        dot_chart(
            f"Validation {words.metric_name(metric)}, last epoch",
            means,
            x_title=f"mean and 95% interval of {words.metric_name(metric)}",
            fmt=fmt,
            level=None if teacher is None else Level("teacher", "teacher", teacher),
            note="Small dots are the single runs.",
        ),
        dot_chart(
            "Difference to the student alone, seed by seed",
            gaps,
            x_title=f"paired difference of {words.metric_name(metric)}{unit}",
            fmt=words.difference_format(metric),
            level=Level("alone", "alone", 0.0),
            note="An interval that does not reach the line is a difference; one that does shows none.",
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _values(method: MethodRow, metric: str) -> list[float]:
    values = (number(run.summary, "last", metric) for run in method.runs.values())
    return [value for value in values if value is not None]


def _curves(methods: Sequence[MethodRow], teacher: float | None, metric: str) -> list[Chart]:
    lines: list[Line] = []
    for method in methods:
        seeds = [points for run in method.runs.values() if (points := validation(run, metric))]
        if len(seeds) > 1:
            lines += [Line(method.name, method.style, points, faint=True) for points in seeds]
        lines.append(Line(method.name, method.style, _mean_curve(seeds)))
    chart = line_chart(
        f"Validation {words.metric_name(metric)} over the epochs",
        lines,
        x_title="epoch",
        fmt=words.metric_format(metric),
        levels=[] if teacher is None else [Level("teacher", "teacher", teacher)],
        note="Bold: mean over the seeds. Faint: the single seeds.",
        large=True,
    )
    return [] if chart is None else [chart]


def _mean_curve(seeds: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean at the epochs that every seed has reached."""
    if not seeds:
        return []
    tables = [dict(points) for points in seeds]
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    return [(x, math.fsum(table[x] for table in tables) / len(tables)) for x in shared]


def _seed_table(methods: Sequence[MethodRow], metric: str) -> dict[str, Any]:
    """The single runs: a row a seed, a column a method."""
    fmt = words.metric_format(metric)
    by_method: dict[str, dict[str, str]] = {}
    for method in methods:
        cells: dict[str, str] = {}
        for name, run in method.runs.items():
            value = number(run.summary, "last", metric)
            cells[_seed(name, run)] = "–" if value is None else fmt(value)
        by_method[method.name] = cells
    seeds = sorted({seed for cells in by_method.values() for seed in cells}, key=lambda s: (len(s), s))
    rows = [[seed, *(cells.get(seed, "–") for cells in by_method.values())] for seed in seeds]
    return {"heads": ["seed", *by_method], "rows": rows}


def _seed(name: str, run: RunRecord) -> str:
    seed = run.summary.get("seed", run.recipe.get("seed"))
    return str(seed) if seed is not None else name.rpartition("-seed")[2]


def _cost(methods: Sequence[MethodRow]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    runs = [run for method in methods for run in method.runs.values() if run.finished]
    seconds = [value for run in runs if (value := number(run.summary, "seconds")) is not None]
    if seconds:
        found.append(("training time of all runs", f"{words.duration(math.fsum(seconds))} in {len(seconds)} runs"))
    if runs:
        last = runs[-1].summary
        counts = mapping(last, "parameters")
        for key, label in (("student", "student's parameters"), ("teacher", "teacher's parameters")):
            if (value := number(counts, key)) is not None:
                found.append((label, f"{value:,.0f}"))
        if last.get("device"):
            found.append(("device", str(last["device"])))
        if versions := mapping(last, "versions"):
            found.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
        if last.get("commit"):
            found.append(("commit of limbeck", str(last["commit"])))
    return found
