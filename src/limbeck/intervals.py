"""What the seeds allow to say: means with their intervals, and differences in pairs.

Runs of the same seed share the order of the images and more; what a lucky one gives to two of them cancels in their
difference. With few seeds the normal distribution flatters; the intervals are Student's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from limbeck.errors import UserError

CONFIDENCE = 0.95


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
