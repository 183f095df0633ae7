"""Subjects of the probe's tests: everything that could notice that it was looked at, and a loader that knows images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import tiny
from limbeck import Distiller, LogitTerm, fit, losses
from limbeck.diagnostics import Probe
from limbeck.logs.runlog import RunLog
from limbeck.rivals import CRDTerm, ReviewTerm
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification
from limbeck.training import optim
from limbeck.training.fit import FitResult

IMAGES, BATCH = 24, 8


class Batch(NamedTuple):
    images: Tensor
    target: Tensor | None
    numbers: Tensor


class Loader:
    """A ``ShardedLoader`` of batches that say which images they hold, and draw random numbers as some loaders do."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.x, self.target = tiny.images(IMAGES)
        self.epoch, self.left, self.share = 0, stop_after, (0, 1)

    def __len__(self) -> int:
        return IMAGES // BATCH

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def shard(self, rank: int, world_size: int) -> "Loader":
        self.share = (rank, world_size)
        return self

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(self.epoch))
        rank, world_size = self.share
        for chosen in order.split(BATCH):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            own = chosen.chunk(world_size)[rank]
            yield Batch(self.x[own] + 0.01 * torch.rand(1), self.target[own], own)


def held_back(count: int = 16) -> Batch:
    x, target = tiny.images(count, seed=9)
    return Batch(x, target, torch.arange(count))


def distiller() -> Distiller:
    """A student with batch norm and dropout, a projector, a memory bank with random negatives, and ReviewKD's norms."""
    torch.manual_seed(0)
    taps = ["conv1", "conv2", "fc:input"]
    terms = {
        "feature": tiny.feature_term(4, 6, correlation=True),
        "logit": LogitTerm(),
        "crd": CRDTerm("fc:input", "fc:input", d_s=4, d_t=6, images=IMAGES, negatives=8, width=5),
        "review": ReviewTerm(taps, taps, d_s=[4] * 3, d_t=[6] * 3, loss=losses.hierarchical_context),
    }
    weights = {"feature": 0.5, "crd": 0.1, "review": 0.2}
    student = tiny.Net(4, norm=True, dropout=0.3)
    return Distiller(student, tiny.Net(6, norm=True), Classification(), terms=terms, weights=weights)


class Trained(NamedTuple):
    """What a training left, and who looked at it."""

    state: dict[str, Tensor]
    result: FitResult
    probe: Probe | None


def train(
    *, every: int | None, folder: Path | None = None, epochs: int = 2, loader: Any = None, **more: Any
) -> Trained:
    """Train the subject, with a probe or, for ``every`` 0, without; all bytes that it leaves."""
    subject = distiller()
    optimizer = optim.sgd(subject, lr=0.1)
    log = RunLog(folder, progress=False)
    probe = None
    if every != 0:
        probe = Probe(subject, held_back(), every=every, log=log, optimizer=optimizer)
    more = {"ema_decay": 0.8, "clip": 1.0} | more
    kept = Checkpoints(folder / "checkpoint") if folder is not None else None
    loader = loader if loader is not None else Loader()
    result = fit(
        subject, loader, epochs=epochs, optimizer=optimizer, log=log, checkpoints=kept, probe=probe, cpu=True, **more
    )
    momentum = {f"m.{i}": entry["momentum_buffer"] for i, entry in optimizer.state_dict()["state"].items()}
    state = {
        **subject.student.state_dict(prefix="s."),
        **subject.term_modules.state_dict(prefix="t."),
        **result.student.state_dict(prefix="a."),
        **momentum,
        "random": torch.get_rng_state(),
    }
    return Trained({name: value.clone() for name, value in state.items()}, result, probe)
