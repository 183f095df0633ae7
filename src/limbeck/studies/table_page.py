"""A table that was made again, as a page: each pair's means with their intervals, and what becomes of each claim."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from limbeck.report.chart import Chart, Line, Span
from limbeck.report.dots import dot_chart
from limbeck.report.draw import line_chart
from limbeck.report.intervals import Interval
from limbeck.report.page import write_page
from limbeck.report.words import Format
from limbeck.studies.table_text import HEAD, cells_of, digits_of, effort, in_common, measures_of, unit_of

PAGE_FILE = "table.html"
HIGHEST, OTHERS = "both", "alone"  # classes of the page's colors
STYLES = ("c1", "c2", "c3", "c4", "c5", "c6")


def write_table(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of :func:`~limbeck.studies.table_text.table_record`.

    Args:
        record: The table; rows without a run are left out of the figures.
        path: Where the page goes.

    Returns:
        ``path``.

    Raises:
        UserError: If it cannot be written.
    """
    plan = record["plan"]
    seeds = ", ".join(map(str, plan["seeds"]))
    view = {
        "kind": f"reproduce {plan['table']}",
        "title": record["title"],
        "headline": _headline(record["claims"]),
        "notes": [
            f"{record['source']}; scale {plan['scale']}; seeds {seeds}; {unit_of(record)}, mean and Student's "
            "95% interval of the last epoch.",
            f"{effort(plan['factors'])} {record['notes']}".rstrip(),
        ],
        "command": record["command"],
        "in_common": in_common(record),
        "layout": "",
        "charts": [chart for pair in plan["pairs"] for chart in _charts(record, pair) if chart is not None],
        "tables": [*(each for pair in plan["pairs"] for each in _tables(record, pair)), _claims(record)],
    }
    return write_page("charts.html.j2", path, view)


def _headline(claims: list[Mapping[str, Any]]) -> str:
    """For instance: Of 33 claims, one for each pair, 32 hold, 1 is not decided."""
    counts = Counter(claim["verdict"] for claim in claims)
    several = {"holds": "hold", "does not hold": "do not hold", "not decided": "are not decided"}
    one = {"not decided": "is not decided"}
    found = [f"{count} {(one if count == 1 else several).get(kind, kind)}" for kind, count in counts.most_common()]
    pairs = ", one for each pair" if len({claim["pair"] for claim in claims}) > 1 else ""
    return f"Of {len(claims)} claims{pairs}, {', '.join(found)}." if found else ""


def _charts(record: Mapping[str, Any], pair: str) -> list[Chart | None]:
    """The figures of the rows, and the curves of those that have any."""
    rows = [row for row in record["rows"] if row["pair"] == pair and row["last"] is not None]
    return [_dots(record, pair, rows), *(_curves(curve, pair, rows) for curve in record.get("curves", ()))]


def _curves(curve: Mapping[str, Any], pair: str, rows: list[Mapping[str, Any]]) -> Chart | None:
    title = curve["title"]
    found = [(row["row"], row["curves"][title]) for row in rows]
    lines = [Line(name, style, _points(each["end"])) for (name, each), style in zip(found, cycle(STYLES), strict=False)]
    start = next((each["start"] for _, each in found if each["start"]), [])
    lines += [Line("at the start", "teacher", _points(start), dashed=True)] if start else []
    note = "Mean over the seeds, at the end of training." if start else "Mean over the seeds."
    return line_chart(
        f"{pair}: {title}", lines, x_title=curve["x_title"], fmt=Format(digits=2), log=curve["log"], note=note
    )


def _points(pairs: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in pairs]


def _dots(record: Mapping[str, Any], pair: str, rows: list[Mapping[str, Any]]) -> Chart | None:
    highest = max((row["last"]["mean"] for row in rows), default=0.0)
    spans = [
        Span(
            row["row"],
            HIGHEST if row["last"]["mean"] == highest else OTHERS,
            row["last"]["mean"],
            row["last"]["low"],
            row["last"]["high"],
            list(row["by seed"].values()),
        )
        for row in rows
    ]
    note = "Small dots are the single runs; the highest mean has its own color."
    fmt = Format(digits=digits_of(record))
    return dot_chart(pair, spans, x_title=unit_of(record), fmt=fmt, id=pair, note=note)


def _tables(record: Mapping[str, Any], pair: str) -> list[tuple[list[str], list[list[str]], str]]:
    rows = [cells_of(row, digits_of(record)) for row in record["rows"] if row["pair"] == pair]
    heads, measures = measures_of(record, pair)
    return [(list(HEAD), rows, pair), *([(heads, measures, f"{pair}, what else was measured")] if measures else [])]


def _claims(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]], str]:
    rows: list[list[str]] = []
    digits = digits_of(record)
    for claim in record["claims"]:
        found = None if claim["difference"] is None else Interval(**claim["difference"])
        mean = "" if found is None else f"{found.mean:+.{digits}f}"
        ends = ""
        if found is not None and found.low is not None and found.high is not None:
            ends = f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"
        measure = f"{claim['measure']}, " if claim.get("measure") else ""
        subject = f"{measure}{claim['better']} minus {claim['worse']}"
        rows.append([claim["words"], claim["pair"], subject, mean, ends, claim["verdict"]])
    return ["claim", "pair", "difference", "mean", "95%", "verdict"], rows, "What is claimed"
