"""Models and loaders that are small enough for a test of the training loop."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck import Distiller, FeatureTerm, LogitTerm, losses, norms, projectors
from limbeck.tasks import Classification

CLASSES = 3


class Batch(NamedTuple):
    images: Tensor
    target: Tensor | None


class Net(nn.Module):
    """Two convolutions, a pooled feature and a classifier; the norm and the dropout are for the test to choose."""

    def __init__(self, width: int, *, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(width) if norm else nn.GroupNorm(2, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return self.fc(self.drop(x.mean((2, 3))))


def images(count: int, *, size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images whose class shows in the mean of one color."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.rand(count, 3, size, size, generator=generator)
    x[torch.arange(count), target] += 0.5
    return x, target


class Loader:
    """A ``ShardedLoader``: what it gives is a function of seed, epoch and step; processes take stretches of a batch."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        labels: bool = True,
        dtype: torch.dtype = torch.float32,
        share: tuple[int, int] = (0, 1),
        stop_after: int | None = None,
    ) -> None:
        self.x, self.target = images(count, seed=seed)
        self.x = self.x.to(dtype)
        self.batch_size = batch_size
        self.labels = labels
        self.share = share
        self.epoch = 0
        self.stop_after = stop_after  # batches, over all epochs, after which the process is "killed"
        self.given = 0

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def shard(self, rank: int, world_size: int) -> "Loader":
        self.share = (rank, world_size)
        return self

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.epoch))
        rank, world_size = self.share
        for step in range(len(self)):
            if self.stop_after is not None and self.given >= self.stop_after:
                raise KeyboardInterrupt
            self.given += 1
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            own = chosen.chunk(world_size)[rank]
            yield Batch(self.x[own], self.target[own] if self.labels else None)


def feature_term(d_s: int, d_t: int, *, correlation: bool = False) -> FeatureTerm:
    return FeatureTerm(
        "fc:input",
        "fc:input",
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        loss=None if correlation else losses.log_sum,
        correlation_loss=losses.log_correlation if correlation else None,
    )


def distiller(*, seed: int = 0, norm: bool = False, dropout: float = 0.0, correlation: bool = True) -> Distiller:
    """A student of width 4 and a teacher of width 6, with a feature term and a logit term."""
    torch.manual_seed(seed)
    return Distiller(
        Net(4, norm=norm, dropout=dropout),
        Net(6, norm=norm),
        Classification(),
        terms={"feature": feature_term(4, 6, correlation=correlation), "logit": LogitTerm()},
        weights={"feature": 0.5},
    )


def same_bytes(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(folder: Path) -> list[dict[str, Any]]:
    """The log of a run folder."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
