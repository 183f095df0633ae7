"""Time several loops in turns, so that whatever else the machine does falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

WARM_UP = 3  # rounds that are not counted: kernels are chosen, memory is taken
CHUNK_SECONDS = 1.0  # a loop's turn takes about this long, in steps of whatever length
MOST_STEPS = 21  # so that a turn of short steps holds a record of the log, which is written each 20


class Clock:
    """Notes when steps end. A GPU is waited for at the first and the last one only, as in a real run."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self._steps = steps
        self._device = device
        self._times: list[float] = []
        self._count = 0

    def tick(self) -> None:
        """A step is done."""
        self._count += 1
        if self._count in (1, self._steps):
            if self._device.type != "cpu":
                torch.accelerator.synchronize()
            self._times.append(time.perf_counter())

    def seconds(self) -> float:
        """Seconds of one step: the mean over all but the first, in which the caches still hold another loop's data.

        Raises:
            RuntimeError: The loop made another number of steps than it was told to.
        """
        if self._count != self._steps:
            raise RuntimeError(f"the loop made {self._count} steps, {self._steps} were to be timed")
        return (self._times[-1] - self._times[0]) / (self._steps - 1)


Loop = Callable[[int, Clock], None]
"""A training loop: makes that many steps and lets the clock tick at the end of each."""


@dataclass(frozen=True)
class Timing:
    """One loop's seconds a step, and its ratio to the loop that it is measured against, round by round.

    Attributes:
        seconds: Median over the rounds.
        ratio: Median of the rounds' ratios.
        low: Their lower quartile.
        high: Their upper quartile.
    """

    seconds: float
    ratio: float
    low: float
    high: float


def interleave(
    loops: Mapping[str, Loop], *, rounds: int, device: torch.device, said: Callable[[int, int], None] | None = None
) -> dict[str, list[float]]:
    """Seconds a step of each loop in each round; in each round another loop is the first.

    Args:
        loops: Name to loop.
        rounds: Rounds that count; ``WARM_UP`` more come before them.
        device: Where the loops compute.
        said: Told after each round how many are done, and of how many.
    """
    steps = dict.fromkeys(loops, 2)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    order = list(loops)
    for index in range(WARM_UP + rounds):
        for name in order:
            taken = _time(loops[name], steps[name], device)
            if index < WARM_UP:
                steps[name] = 1 + max(1, min(MOST_STEPS - 1, round(CHUNK_SECONDS / taken)))
            else:
                seconds[name].append(taken)
        order = order[1:] + order[:1]
        if said is not None:
            said(index + 1, WARM_UP + rounds)
    return seconds


def compare(seconds: Mapping[str, Sequence[float]], against: str) -> dict[str, Timing]:
    """The rounds of each loop as medians and quartiles of its ratio to one of them.

    Example:
        >>> compare({"floor": [1.0, 2.0, 1.0], "full": [1.1, 2.4, 1.0]}, "floor")["full"]
        Timing(seconds=1.1, ratio=1.1, low=1.05, high=1.15)
    """
    found: dict[str, Timing] = {}
    for name, values in seconds.items():
        ratios = [one / other for one, other in zip(values, seconds[against], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        found[name] = Timing(statistics.median(values), round(middle, 4), round(low, 4), round(high, 4))
    return found


def _time(loop: Loop, steps: int, device: torch.device) -> float:
    clock = Clock(steps, device)
    loop(steps, clock)
    return clock.seconds()
