"""What the seeds say of a table's claims."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from limbeck.report.intervals import Interval, holm, paired
from limbeck.studies.probed import Points
from limbeck.studies.tables import Claim


@dataclass(frozen=True)
class Cell:
    """One row of one pair: the runs that were made, and what they came to.

    Attributes:
        pair: The pair.
        row: The row.
        factor: The chosen one; None where there is no weight to choose.
        is_edge: Whether it is the smallest or largest that was tried, so that a better one may lie beyond.
        last: Seed to the metric of the last epoch.
        best: Seed to the metric of the best epoch.
        seconds: Of a run, on average.
        runs: Seed to the run's folder.
        measures: Name to seed to a further figure.
        curves: Title to a curve at the end, and at the start.
        device: What the runs were made on.
        arithmetic: Their precision and layout, and whether they were compiled.
        failed: Why runs are missing.
    """

    pair: str
    row: str
    factor: float | None
    is_edge: bool
    last: Mapping[int, float]
    best: Mapping[int, float]
    seconds: float
    runs: Mapping[int, str] = field(default_factory=dict[int, str])
    measures: Mapping[str, Mapping[int, float]] = field(default_factory=dict[str, Mapping[int, float]])
    curves: Mapping[str, tuple[Points, Points]] = field(default_factory=dict[str, tuple[Points, Points]])
    device: str = ""
    arithmetic: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of a claim.

    Attributes:
        pair: The pair of models.
        better: The row that is claimed to be above.
        worse: The other one.
        words: The claim.
        measure: What is compared; empty for the figure of the table.
        difference: Of the last epochs, seed by seed, in the table's unit; None where no seed has both.
        verdict: "holds", "does not hold" or "not decided": by whether the difference is shown among all claims of the
            table (:func:`limbeck.report.intervals.holm`), and on which side of zero it is.
    """

    pair: str
    better: str
    worse: str
    words: str
    measure: str
    difference: Interval | None
    verdict: str


def judge(
    claims: Sequence[Claim], pairs: Sequence[str], cells: Sequence[Cell], *, scale: float = 100.0
) -> list[Verdict]:
    """What becomes of each claim of a table, for each of the pairs; ``scale`` as of a :class:`Table`."""
    found: dict[tuple[str, str, str], Mapping[int, float]] = {}
    for cell in cells:
        found[cell.pair, cell.row, ""] = {seed: scale * value for seed, value in cell.last.items()}
        found.update({(cell.pair, cell.row, name): values for name, values in cell.measures.items()})
    judged: list[tuple[Claim, str, Interval | None]] = []
    for claim in claims:
        for pair in pairs:
            better, worse = (found.get((pair, row, claim.measure)) for row in (claim.better, claim.worse))
            if better is None or worse is None:
                continue
            judged.append((claim, pair, paired(better, worse)))
    said = verdicts_of([difference for _, _, difference in judged])
    return [
        Verdict(pair, **asdict(claim), difference=difference, verdict=verdict)
        for (claim, pair, difference), verdict in zip(judged, said, strict=True)
    ]


def verdicts_of(differences: Sequence[Interval | None]) -> list[str]:
    """The verdicts on all claims of one table, from their differences."""
    return [
        ("holds" if difference is not None and difference.mean > 0 else "does not hold") if is_shown else "not decided"
        for difference, is_shown in zip(differences, holm(differences), strict=True)
    ]


def judge_again(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a table with its claims judged by today's rule, from its figures by seed.

    Further measures are kept without their seeds; of these the difference stands in the record.
    """
    seeds = {
        (row["pair"], row["row"]): {int(seed): float(value) for seed, value in row["by seed"].items()}
        for row in record["rows"]
    }
    differences: list[Interval | None] = []
    for claim in record["claims"]:
        kept = claim["difference"]
        if not claim.get("measure"):
            better, worse = (seeds.get((claim["pair"], claim[side]), {}) for side in ("better", "worse"))
            differences.append(paired(better, worse))
        else:
            differences.append(None if kept is None else Interval(**kept))
    said = verdicts_of(differences)
    claims = [{**claim, "verdict": verdict} for claim, verdict in zip(record["claims"], said, strict=True)]
    return {**record, "claims": claims}
