"""What the seeds say of a table's claims."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from limbeck.intervals import Interval, paired
from limbeck.recipes.tables import Claim

FEWEST = 3  # seeds: two that happen to differ by the same have an interval of no width


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
        device: What the runs were made on.
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
    device: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of a claim.

    Attributes:
        pair: The pair of models.
        better: The row that is claimed to be above.
        worse: The other one.
        words: The claim.
        difference: Of the last epochs, seed by seed, in the table's unit; None where no seed has both.
        verdict: "holds", "does not hold" or "not decided": by whether the interval leaves out zero, and on which side.
            Of fewer than three seeds nothing is concluded.
    """

    pair: str
    better: str
    worse: str
    words: str
    difference: Interval | None
    verdict: str


def judge(
    claims: Sequence[Claim], pairs: Sequence[str], cells: Sequence[Cell], *, scale: float = 100.0
) -> list[Verdict]:
    """What becomes of each claim of a table, for each of the pairs; ``scale`` as of a :class:`Table`."""
    found = {(cell.pair, cell.row): {seed: scale * value for seed, value in cell.last.items()} for cell in cells}
    verdicts: list[Verdict] = []
    for claim in claims:
        for pair in pairs:
            if (pair, claim.better) not in found or (pair, claim.worse) not in found:
                continue
            difference = paired(found[pair, claim.better], found[pair, claim.worse])
            verdict = "not decided"
            if difference is not None and difference.n >= FEWEST and difference.excludes_zero:
                verdict = "holds" if difference.mean > 0 else "does not hold"
            verdicts.append(Verdict(pair, **asdict(claim), difference=difference, verdict=verdict))
    return verdicts
