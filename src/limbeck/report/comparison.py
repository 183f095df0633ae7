"""The page of a comparison: which method is better on this data, and how sure the seeds make that."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from limbeck.logs.records import COMPARISON_FILE, is_share, mapping, number
from limbeck.report import words
from limbeck.report.chart import Chart
from limbeck.report.contrast import cost_charts, mean_curves, spread_charts
from limbeck.report.groups import Comparison, MethodRow, gather, read_comparison, seed_of
from limbeck.report.intervals import conclusions, interval_of
from limbeck.report.page import REPORT_FILE, write_page
from limbeck.report.record import RunRecord, read_run
from limbeck.report.result import Figure, cell


def write_comparison(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a comparison folder.

    Args:
        folder: The comparison folder; runs that are missing or were killed are left out of the curves.
        out: Where the page goes; None: ``report.html`` in the folder.

    Returns:
        Where the page is.

    Raises:
        UserError: If the folder is missing or holds no comparison.
    """
    return _write(read_comparison(folder), out or folder / REPORT_FILE)


def write_runs(folders: Sequence[Path], out: Path, *, command: str = "") -> Path:
    """Write one page that compares several runs.

    Runs whose recipes differ in nothing but the seed are one method; methods are compared in pairs, seed by seed. A
    comparison folder stands for its runs.

    Args:
        folders: Run folders and comparison folders.
        out: Where the page goes.
        command: The command line, for the page.

    Returns:
        Where the page is.

    Raises:
        UserError: A folder holds neither, the runs report different metrics, or none of them has a result.
    """
    return _write(gather(read_runs(folders), command), out)


def read_runs(folders: Sequence[Path]) -> list[tuple[str, RunRecord]]:
    """Name and record of the runs in these folders; a comparison folder stands for its runs."""
    found: dict[str, RunRecord] = {}
    for folder in folders:
        if (folder / COMPARISON_FILE).is_file():
            comparison = read_comparison(folder)
            runs = {f"{folder.name}/{name}": run for m in comparison.methods for name, run in m.runs.items()}
        else:
            runs = {folder.resolve().name: read_run(folder)}
        for name, run in runs.items():
            found[name if name not in found else f"{name} ({folder})"] = run
    return list(found.items())


def comparison_charts(comparison: Comparison) -> list[Chart]:
    """All charts of a comparison's page."""
    return [*spread_charts(comparison), *mean_curves(comparison), *cost_charts(comparison)]


def _write(comparison: Comparison, out: Path) -> Path:
    methods, metric, teacher = comparison.methods, comparison.metric, comparison.teacher
    view: dict[str, Any] = {
        "title": comparison.title,
        "metric": words.metric_name(metric),
        "headline": _headline(methods, metric),
        "figures": _figures(methods, teacher, metric),
        "remarks": comparison.remarks,
        "verdicts": _verdicts(methods, metric),
        "methods": [(m.name, m.style, words.METHODS[m.name]) for m in methods if m.name in words.METHODS],
        "baseline": comparison.baseline,
        "table": [_table_row(method, metric) for method in methods],
        "teacher": None if teacher is None else words.metric_format(metric)(teacher),
        "spread": spread_charts(comparison),
        "curves": mean_curves(comparison),
        "against_cost": cost_charts(comparison),
        "in_common": comparison.in_common,
        "seeds": _seed_table(comparison, out.parent),
        "cost": _cost(methods),
        "recipe": [(name, "–" if value is None else str(value)) for name, value in comparison.recipe.items()],
        "command": comparison.command,
    }
    return write_page("comparison.html.j2", out, view)


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
    unit = " points" if is_share(metric) else ""
    text = f"{fmt(mean)}{unit} against {method.difference.get('against', 'alone')}"
    low, high, n = (number(method.difference, key) for key in ("low", "high", "n"))
    if low is None or high is None or n is None:
        return f"{text} from one seed, so without an interval"
    return f"{text} (95% interval {fmt(low)} to {fmt(high)}, {n:.0f} seeds)"


def _verdicts(methods: Sequence[MethodRow], metric: str) -> list[str]:
    compared = [method for method in methods if _difference_text(method, metric)]
    said = conclusions([interval_of(method.difference) for method in compared])
    return [
        f"{method.name}: {_difference_text(method, metric)}. {text}"
        for method, text in zip(compared, said, strict=True)
    ]


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


def _seed_table(comparison: Comparison, beside: Path) -> dict[str, Any]:
    """The single runs: a row a seed, a column a method, and a column for each difference to the baseline.

    A figure links to its run's page where there is one, by its path from ``beside``, where this page goes.
    """
    metric = comparison.metric
    fmt, gap = words.metric_format(metric), words.difference_format(metric)
    columns = {method.name: method.values(metric) for method in comparison.methods}
    base = columns.get(comparison.baseline, {})
    others = [name for name in columns if name != comparison.baseline and base.keys() & columns[name].keys()]
    seeds = sorted({seed for values in columns.values() for seed in values}, key=lambda s: (len(s), s))
    pages = {
        (method.name, seed_of(name, run)): quote(Path(os.path.relpath(run.folder / REPORT_FILE, beside)).as_posix())
        for method in comparison.methods
        for name, run in method.runs.items()
        if run.folder is not None and REPORT_FILE in run.files
    }
    rows: list[list[str]] = []
    for seed in seeds:
        cells = [seed]
        for method, values in columns.items():
            text, page = cell(values.get(seed), fmt), pages.get((method, seed))
            cells.append(text if page is None else Markup('<a href="{}">{}</a>').format(page, text))
        for name in others:
            paired = seed in base and seed in columns[name]
            cells.append(gap(columns[name][seed] - base[seed]) if paired else "–")
        rows.append(cells)
    heads = ["seed", *columns, *(f"{name} − {comparison.baseline}" for name in others)]
    return {"heads": heads, "rows": rows, "linked": bool(pages)}


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
