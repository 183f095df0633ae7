"""How long a part of every step takes, without making the step wait."""

import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar, final

import torch

T = TypeVar("T")


@final
class Clock:
    """Adds up the seconds of one part of every step, such as the teacher's forward pass.

    On a CPU they are those of the process. On a CUDA device they are the device's own, between two events that are read
    once they are past, so that nothing waits for them; what is still to come is counted at a later reading. Other
    devices are not timed, for the time until a call returns says nothing there, nor is code that is being compiled.

    Example:
        >>> clock = Clock()
        >>> clock.seconds is None
        True
        >>> clock(torch.device("cpu"), lambda: sum(range(10)))
        45
        >>> clock.seconds > 0
        True
    """

    def __init__(self) -> None:
        self._total = 0.0  # only grows, so that another thread than the one that times may read it
        self._was_called = False
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def __call__(self, device: torch.device, work: Callable[[], T]) -> T:
        """What ``work`` gives; the seconds that it takes on the device are added."""
        if torch.compiler.is_compiling() or device.type not in ("cpu", "cuda"):
            return work()
        self._was_called = True
        if device.type == "cuda":
            return self._between_events(work)
        started = time.perf_counter()
        found = work()
        self._total += time.perf_counter() - started
        return found

    @property
    def seconds(self) -> float | None:
        """The sum of all that is over by now; None where nothing was timed."""
        self._collect()
        return self._total if self._was_called else None

    def _between_events(self, work: Callable[[], T]) -> T:
        self._collect()  # where nobody reads the sum, the events would pile up
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        found = work()
        after.record()
        self._pending.append((before, after))
        return found

    def _collect(self) -> None:
        while self._pending and self._pending[0][1].query():
            before, after = self._pending.popleft()
            self._total += before.elapsed_time(after) / 1000
