"""What the seeds allow to say: means with their intervals, and differences in pairs.

Runs of the same seed share the order of the images and more; what a lucky one gives to two of them cancels in their
difference. With few seeds the normal distribution flatters; the intervals are Student's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from limbeck.errors import UserError
from limbeck.logs.records import number

CONFIDENCE = 0.95
FEWEST = 3  # seeds: two that happen to differ by the same have an interval of no width
FLAT = 1e-9  # of the mean: a smaller deviation is rounding


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and what is known of it; sd, low and high are None for a single seed.

    Attributes:
        n: Number of seeds.
        mean: Mean.
        sd: Standard deviation of one run, with n - 1.
        low: Lower end of the 95% interval of the mean (Student's t with n - 1 degrees of freedom).
        high: Upper end.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside of the interval; never for a single seed."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def is_flat(self) -> bool:
        """Whether all values are equal, so that the interval has no width and is no evidence."""
        return self.sd is not None and self.sd <= FLAT * abs(self.mean)

    @property
    def p(self) -> float | None:
        """The probability of a mean as far from zero by chance (Student's t, two-sided), None where it says nothing.

        That is for fewer than three seeds, and for an interval of no width.
        """
        if self.sd is None or self.n < FEWEST or self.is_flat:
            return None
        from scipy.special import stdtr

        return 2 * float(stdtr(self.n - 1, -abs(self.mean) * math.sqrt(self.n) / self.sd))


def holm(claims: Sequence[Interval | None]) -> list[bool]:
    """Which of several differences are shown, when all are claimed at once (Holm's step-down correction, 5%).

    Args:
        claims: The paired differences of one table. What has no ``p`` is not shown, and counts as no claim.

    References:
        S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> sure, likely = Interval(3, 1.0, 0.01, 0.98, 1.02), Interval(3, 1.0, 0.39, 0.03, 1.97)
        >>> holm([likely]), holm([likely, likely]), holm([sure, likely])
        ([True], [False, False], [True, True])
    """
    ps = {index: p for index, each in enumerate(claims) if each is not None and (p := each.p) is not None}
    shown = [False] * len(claims)
    for left, index in zip(range(len(ps), 0, -1), sorted(ps, key=lambda index: ps[index]), strict=True):
        if ps[index] > (1 - CONFIDENCE) / left:
            break
        shown[index] = True
    return shown


def conclusions(claims: Sequence[Interval]) -> list[str]:
    """What each of the paired differences of one table allows to say, as a sentence.

    Example:
        >>> conclusions([Interval(2, 1.0, 0.1, 0.1, 1.9)])
        ['Fewer than 3 seeds: nothing can be concluded; use --seeds 3 or more.']
    """
    several = sum(each.p is not None for each in claims)
    also = f", also when corrected for {several} claims (Holm)" if several > 1 else ""
    lines: list[str] = []
    for each, is_shown in zip(claims, holm(claims), strict=True):
        if each.n < FEWEST or each.sd is None:
            lines.append(f"Fewer than {FEWEST} seeds: nothing can be concluded; use --seeds {FEWEST} or more.")
        elif each.is_flat:
            lines.append("Every seed differs by the same, so the interval has no width: no evidence; use more seeds.")
        elif is_shown:
            lines.append(f"Zero lies outside of the interval{also}: a difference.")
        elif each.excludes_zero:
            lines.append(
                f"Zero lies outside of the interval, but not when corrected for {several} claims (Holm): no difference "
                "shown."
            )
        else:
            lines.append("Zero lies inside of the interval: no difference shown.")
    return lines


def interval_of(record: Mapping[str, Any]) -> Interval:
    """An interval out of a record; of a damaged one it claims nothing."""
    sd, low, high = (number(record, name) for name in ("sd", "low", "high"))
    return Interval(int(number(record, "n") or 0), number(record, "mean") or 0.0, sd, low, high)


def interval(values: Sequence[float]) -> Interval:
    """Mean, standard deviation, and the t interval of the mean: ``mean +- t(0.975, n - 1) * sd / sqrt(n)``.

    Raises:
        UserError: There are no values.

    Example:
        >>> result = interval([1.0, 2.0, 3.0])
        >>> result.mean, result.sd, round(result.low, 3), round(result.high, 3)
        (2.0, 1.0, -0.484, 4.484)
    """
    if not values:
        raise UserError("interval: expected at least one value, got none")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Interval(n=1, mean=mean, sd=None, low=None, high=None)
    from scipy.special import stdtrit  # a tenth of the import time of scipy.stats

    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * sd / math.sqrt(n)
    return Interval(n=n, mean=mean, sd=sd, low=mean - half, high=mean + half)


def paired(values: Mapping[int, float], against: Mapping[int, float]) -> Interval | None:
    """The interval of the differences, seed by seed, over the seeds that both have; None if they share none."""
    seeds = sorted(values.keys() & against.keys())
    return interval([values[seed] - against[seed] for seed in seeds]) if seeds else None


def summarize(
    done: Mapping[str, Mapping[int, Mapping[str, Any]]], metric: str, baseline: str = "alone"
) -> list[dict[str, Any]]:
    """One row a method: the interval of the last epoch's metric, the best epoch's mean, the paired difference, seconds.

    Args:
        done: Method -> seed -> summary of the finished run.
        metric: The name of the figure in ``summary["last"]`` and ``summary["best"]``.
        baseline: The method that the others are compared with, seed by seed.
    """
    last = {name: {seed: float(run["last"][metric]) for seed, run in runs.items()} for name, runs in done.items()}
    rows: list[dict[str, Any]] = []
    for method, runs in done.items():
        if not runs:
            continue
        ordered = [runs[seed] for seed in sorted(runs)]
        against = paired(last[method], last[baseline]) if method != baseline and baseline in last else None
        rows.append(
            {
                "method": method,
                **asdict(interval([last[method][seed] for seed in sorted(runs)])),
                "best_mean": math.fsum(float(run["best"][metric]) for run in ordered) / len(ordered),
                "paired": None if against is None else {"against": baseline, **asdict(against)},
                "seconds": math.fsum(float(run["seconds"]) for run in ordered) / len(ordered),
                "runs": [run["run"] for run in ordered],
            }
        )
    return rows
