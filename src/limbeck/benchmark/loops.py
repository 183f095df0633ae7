"""The loops that are timed: Limbeck's own `fit`, and the same training written by hand without it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.benchmark.timing import Clock, Loop
from limbeck.distiller import Distiller
from limbeck.logs.runlog import RunLog
from limbeck.training.fit import fit


class _TickingLog(RunLog):
    """A log that keeps nothing and tells a clock of every step."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(progress=False)
        self._clock = clock

    def advance(self, images: int, loss: float | None) -> None:
        super().advance(images, loss)
        self._clock.tick()


@dataclass(frozen=True)
class _Repeated:
    """A loader that gives one batch again and again."""

    batch: Any
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * self.steps)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""
        del epoch

    def shard(self, rank: int, world_size: int) -> "_Repeated":
        """The whole batch; a benchmark runs on one process."""
        del rank, world_size
        return self


def with_fit(distiller: Distiller, optimizer: Optimizer, batch: Any, *, precision: torch.dtype, cpu: bool) -> Loop:
    """`limbeck.fit` as a run calls it: its checks, meter and log included."""

    def loop(steps: int, clock: Clock) -> None:
        loader, log = _Repeated(batch, steps), _TickingLog(clock)
        fit(distiller, loader, epochs=1, optimizer=optimizer, precision=precision, log=log, cpu=cpu)

    return loop


Step = Callable[[Tensor, Tensor], None]
"""One step of training on images and labels."""


def repeated(step: Step, images: Tensor, labels: Tensor) -> Loop:
    """A step on one batch again and again."""

    def loop(steps: int, clock: Clock) -> None:
        for _ in range(steps):
            step(images, labels)
            clock.tick()

    return loop


def by_hand(
    student: nn.Module, teacher: nn.Module | None, optimizer: Optimizer, *, precision: torch.dtype = torch.float32
) -> Step:
    """The floor: teacher forward without gradient, student forward and backward on cross entropy, the optimizer."""

    def forward(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
            if teacher is not None:
                with torch.no_grad():
                    teacher(images)
            return F.cross_entropy(student(images).float(), labels)

    return plain(forward, optimizer)


def plain(forward: Callable[[Tensor, Tensor], Tensor], optimizer: Optimizer) -> Step:
    """The usual step around a function that gives the loss."""

    def step(images: Tensor, labels: Tensor) -> None:
        forward(images, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
