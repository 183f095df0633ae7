"""A table that was made again, as JSON and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from limbeck.errors import shown
from limbeck.report.intervals import Interval, interval
from limbeck.report.words import grid
from limbeck.studies.reproduce import Plan
from limbeck.studies.tables import table
from limbeck.studies.verdicts import Cell, judge


def table_record(plan: Plan, cells: Sequence[Cell], *, command: str) -> dict[str, Any]:
    """Everything, as JSON."""
    chosen = table(plan.table)
    return {
        "command": command,
        "plan": plan.record(),
        "title": chosen.title,
        "source": chosen.source,
        "unit": chosen.unit,
        "digits": chosen.digits,
        "notes": chosen.notes,
        "curves": [{"title": each.title, "x_title": each.x_title, "log": each.log} for each in chosen.curves],
        "rows": [_row(cell, chosen.scale, chosen.printed.get(cell.pair, {}).get(cell.row)) for cell in cells],
        "in common": list(dict.fromkeys(cell.arithmetic for cell in cells if cell.arithmetic)),
        "devices": sorted({cell.device for cell in cells if cell.device}),
        "claims": [asdict(verdict) for verdict in judge(chosen.claims, plan.pairs, cells, scale=chosen.scale)],
    }


def _row(cell: Cell, scale: float, printed: float | None) -> dict[str, Any]:
    last, best = ([scale * value for value in values.values()] for values in (cell.last, cell.best))
    return {
        "pair": cell.pair,
        "row": cell.row,
        "printed": printed,
        "last": asdict(interval(last)) if last else None,
        "best": asdict(interval(best)) if best else None,
        "by seed": {str(seed): round(scale * value, 4) for seed, value in cell.last.items()},
        "factor": cell.factor,
        "factor at the edge": cell.is_edge,
        "seconds": round(cell.seconds, 1),
        "runs": {str(seed): name for seed, name in cell.runs.items()},
        "failed": cell.failed,
        "measures": {name: asdict(interval(list(values.values()))) for name, values in cell.measures.items() if values},
        "curves": {title: {"end": end, "start": start} for title, (end, start) in cell.curves.items()},
    }


def cells_of(row: Mapping[str, Any], digits: int = 2) -> list[str]:
    """A row of the record in words: row, last, its interval, best, weight, printed, seconds."""
    factor = "" if row["factor"] is None else f"x{row['factor']:g}" + ("*" if row["factor at the edge"] else "")
    printed = "" if row["printed"] is None else f"{row['printed']:.{digits}f}"
    if row["last"] is None:
        return [row["row"], "failed" if row["failed"] else "", "", "", factor, printed, ""]
    last = Interval(**row["last"])
    ends = "" if last.low is None or last.high is None else f"{last.low:.{digits - 1}f}..{last.high:.{digits - 1}f}"
    best = "" if row["best"] is None else f"{row['best']['mean']:.{digits}f}"
    return [row["row"], spread(last, digits), ends, best, factor, printed, f"{row['seconds']:.0f}"]


def spread(found: Interval, digits: int = 2) -> str:
    """A mean and, of several values, their standard deviation."""
    return f"{found.mean:.{digits}f}" + ("" if found.sd is None else f" ± {found.sd:.{digits}f}")


def measures_of(record: Mapping[str, Any], pair: str) -> tuple[list[str], list[list[str]]]:
    """What else was measured of a pair: heads, which are the rows of the record, and a line for each measure."""
    rows = [row for row in record["rows"] if row["pair"] == pair]
    names = dict.fromkeys(name for row in rows for name in row.get("measures", {}))
    lines: list[list[str]] = []
    for name in names:
        found = [Interval(**row["measures"][name]) if name in row.get("measures", {}) else None for row in rows]
        largest = max(abs(each.mean) for each in found if each is not None)
        digits = 3 if largest < 1 else 2 if largest < 10 else 1
        lines.append([name, *("" if each is None else spread(each, digits) for each in found)])
    return ["at the end", *(row["row"] for row in rows)], lines


HEAD = ("row", "last epoch", "95%", "best", "w", "paper", "s")


def verdict_line(claim: Mapping[str, Any], digits: int = 2) -> str:
    """A claim and what becomes of it, in one sentence."""
    measure = f"{claim['measure']} of " if claim.get("measure") else ""
    head = f"{claim['verdict']}: {claim['words']} ({claim['pair']}: {measure}{claim['better']} minus {claim['worse']}"
    if claim["difference"] is None:
        return f"{head}: no run of both)"
    difference = Interval(**claim["difference"])
    if difference.low is None or difference.high is None:
        return f"{head} {difference.mean:+.{digits}f}, one seed)"
    return f"{head} {difference.mean:+.{digits}f}, {difference.low:+.{digits}f} to {difference.high:+.{digits}f})"


def markdown(record: Mapping[str, Any]) -> str:
    """The table, the verdict of each claim, and the command that makes it again."""
    plan = record["plan"]
    seeds = ", ".join(map(str, plan["seeds"]))
    lines = [
        f"### {record['title']} ({record['source']}; scale {plan['scale']})",
        "",
        f"`{record['command']}`: seeds {seeds}; {unit_of(record)}, mean ± sd and Student's "
        f"95% interval of the last epoch, the mean of the best one. {effort(plan['factors'])} "
        f"{record['notes']}".rstrip(),
        "",
    ]
    for pair in plan["pairs"]:
        rows = [cells_of(row, digits_of(record)) for row in record["rows"] if row["pair"] == pair]
        lines += [f"**{pair}**", "", grid(HEAD, rows), ""]
        heads, measures = measures_of(record, pair)
        lines += [grid(heads, measures), ""] if measures else []
    lines += [f"- {verdict_line(claim, digits_of(record))}" for claim in record["claims"]]
    if record.get("in common"):
        lines.append(f"- all runs: {in_common(record)}")
    failed = [f"- failed: {row['pair']}, {row['row']}: {row['failed']}" for row in record["rows"] if row["failed"]]
    lines += map(shown, failed)
    return "\n".join(lines) + "\n"


def in_common(record: Mapping[str, Any]) -> str:
    """Arithmetic and devices of the runs, in words; records of before there was one say nothing of it."""
    return "; ".join((*record.get("in common", ()), *record.get("devices", ())))


def digits_of(record: Mapping[str, Any]) -> int:
    """Behind the point of a figure; records of before there were several say nothing of it."""
    return int(record.get("digits", 2))


def unit_of(record: Mapping[str, Any]) -> str:
    """What the figures are; records of before there were several say nothing of it."""
    return str(record.get("unit", "top-1 in percent"))


def effort(factors: Sequence[float]) -> str:
    """How the weights of the rows were chosen."""
    if len(factors) == 1:
        return "w: the factor on the recipe's weights."
    tried = ", ".join(f"{factor:g}" for factor in factors)
    return f"w: each row's weight is the best of {tried} times its own, on a seed that does not count; * at their edge."
