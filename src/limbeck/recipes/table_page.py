"""A table that was made again, as a page: each pair's means with their intervals, and what becomes of each claim."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.intervals import Interval
from limbeck.recipes.table_text import HEAD, cells_of, effort, unit_of
from limbeck.report.chart import Chart, Span
from limbeck.report.dots import dot_chart
from limbeck.report.page import write_page
from limbeck.report.words import Format

PAGE_FILE = "table.html"
HIGHEST, OTHERS = "both", "alone"  # classes of the page's colors


def write_table(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of :func:`~limbeck.recipes.table_text.table_record`.

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
        "layout": "",
        "charts": [chart for pair in plan["pairs"] if (chart := _chart(record, pair)) is not None],
        "tables": [*(_table(record, pair) for pair in plan["pairs"]), _claims(record["claims"])],
    }
    return write_page("charts.html.j2", path, view)


def _headline(claims: list[Mapping[str, Any]]) -> str:
    """For instance: Of 33 claims, one for each pair, 32 hold, 1 not decided."""
    counts = Counter(claim["verdict"] for claim in claims)
    words = {"holds": "hold", "does not hold": "do not hold"}
    found = ", ".join(f"{count} {words.get(verdict, verdict)}" for verdict, count in counts.most_common())
    return f"Of {len(claims)} claims, one for each pair, {found}." if found else ""


def _chart(record: Mapping[str, Any], pair: str) -> Chart | None:
    rows = [row for row in record["rows"] if row["pair"] == pair and row["last"] is not None]
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
    note = "Small dots are the single runs; the highest mean has a color of its own."
    return dot_chart(pair, spans, x_title=unit_of(record), fmt=Format(digits=2), id=pair, note=note)


def _table(record: Mapping[str, Any], pair: str) -> tuple[list[str], list[list[str]], str]:
    return list(HEAD), [cells_of(row) for row in record["rows"] if row["pair"] == pair], pair


def _claims(claims: list[Mapping[str, Any]]) -> tuple[list[str], list[list[str]], str]:
    rows: list[list[str]] = []
    for claim in claims:
        found = None if claim["difference"] is None else Interval(**claim["difference"])
        mean = "" if found is None else f"{found.mean:+.2f}"
        ends = (
            "" if found is None or found.low is None or found.high is None else f"{found.low:+.2f} to {found.high:+.2f}"
        )
        subject = f"{claim['better']} minus {claim['worse']}"
        rows.append([claim["words"], claim["pair"], subject, mean, ends, claim["verdict"]])
    return ["claim", "pair", "difference", "mean", "95%", "verdict"], rows, "What is claimed"
