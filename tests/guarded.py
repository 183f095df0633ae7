"""Subjects of the tests of bad numbers: a training with everything that a step changes, and planted faults."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import probed
import tiny
from limbeck import Distiller, FeatureTerm, fit, losses, norms, projectors
from limbeck.distributed import collectives
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints
from limbeck.training import optim
from limbeck.training.fit import FitResult
from limbeck.training.guard import Skip

EPOCHS, BATCHES = 3, probed.IMAGES // probed.BATCH

Place = tuple[int, int]
"""Epoch and batch, from 0."""


class BadGradient(torch.autograd.Function):
    """The value as it is, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * math.nan


class Planted(probed.Loader):
    """A loader with faults: an image that is infinite, or a batch whose task has a bad gradient."""

    def __init__(
        self, *, inputs: tuple[Place, ...] = (), gradients: tuple[Place, ...] = (), rank: int = 0, draws: bool = True
    ) -> None:
        super().__init__()
        self.inputs, self.gradients, self.rank, self.draws = inputs, gradients, rank, draws
        self.is_bad = False
        self.stop_after: int | None = None  # batches behind which the process is "killed"
        self.left_out: tuple[Place, ...] = ()  # batches that are not given at all

    def __iter__(self) -> Iterator[probed.Batch]:
        order = torch.randperm(probed.IMAGES, generator=torch.Generator().manual_seed(self.epoch))
        rank, world_size = self.share
        for number, chosen in enumerate(order.split(probed.BATCH)):
            place = (self.epoch, number)
            if self.stop_after is not None:
                if self.stop_after == 0:
                    raise KeyboardInterrupt
                self.stop_after -= 1
            own = chosen.chunk(world_size)[rank]
            images = self.x[own] + (0.01 * torch.rand(1) if self.draws else 0.01)
            if place in self.left_out:
                continue
            if place in self.inputs and rank == self.rank:
                images[-1, 0, 0, 0] = math.inf
            self.is_bad = place in self.gradients and rank == self.rank
            yield probed.Batch(images, self.target[own], own)

    def plant(self, distiller: Distiller) -> None:
        """Make the task's loss have a bad gradient where the loader says."""
        loss = distiller.task.loss

        def planted(output: Tensor, batch: Any) -> Any:
            value = loss(output, batch)
            return BadGradient.apply(value) if self.is_bad else value

        distiller.task.loss = planted


def term(projector: torch.nn.Module, student_norm: torch.nn.Module, teacher_norm: torch.nn.Module) -> FeatureTerm:
    return FeatureTerm(
        "fc:input",
        "fc:input",
        projector=projector,
        student_norm=student_norm,
        teacher_norm=teacher_norm,
        loss=losses.mean_squared_error,
    )


def running() -> dict[str, FeatureTerm]:
    """Running means and covariances: of a projector that is solved for, and of two whitenings."""
    return {
        "solved": term(projectors.Ridge(4, 6, momentum=0.3), norms.BatchNorm(6), norms.BatchNorm(6)),
        "white": term(projectors.linear(4, 6), norms.ZCA(6, momentum=0.2), norms.Cholesky(6, momentum=0.2)),
    }


def distiller(*, random: bool = True) -> Distiller:
    """Batch norm, dropout, a projector, a memory bank, running covariances; without ``random`` nothing draws."""
    if random:
        subject = probed.distiller()
        terms = {**subject.terms, **running()}
        weights = {**subject.weights, "solved": 0.3, "white": 0.3}
        assert subject.teacher is not None
        return Distiller(subject.student, subject.teacher.model, subject.task, terms=terms, weights=weights)
    return tiny.distiller(norm=True)


class Trained(NamedTuple):
    state: dict[str, Tensor]
    result: FitResult


def state_of(subject: Distiller, student: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a training has changed."""
    moments = {
        f"m.{number}.{name}": value
        for number, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    state = {
        **subject.student.state_dict(prefix="s."),
        **subject.term_modules.state_dict(prefix="t."),
        **student.state_dict(prefix="a."),
        **moments,
    }
    return {name: value.clone() for name, value in state.items()}


def train(
    loader: Planted,
    *,
    skip: Skip | None = None,
    folder: Path | None = None,
    random: bool = True,
    **more: Any,
) -> Trained:
    """Train the subject; checkpoints and log are in the folder."""
    subject = distiller(random=random)
    loader.plant(subject)
    optimizer = optim.adamw(subject, lr=0.01)
    more = {"ema_decay": 0.8, "clip": 1.0, "epochs": EPOCHS} | more
    torch.manual_seed(5 + collectives.rank())
    result = fit(
        subject,
        loader,
        optimizer=optimizer,
        on_bad_numbers=skip,
        log=RunLog(folder, progress=False),
        checkpoints=Checkpoints(folder / "checkpoint") if folder is not None else None,
        cpu=True,
        **more,
    )
    return Trained(state_of(subject, result.student, optimizer), result)
