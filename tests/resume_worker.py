"""A training that is the same each time it is called, to be broken off: in this process or in one to be killed."""

import itertools
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import tiny
from limbeck import fit
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints
from limbeck.training import meter, optim
from tiny import Loader

EPOCHS = 4
BATCHES = 3  # an epoch
LOG_EVERY = 2


@dataclass
class Outcome:
    student: dict[str, Tensor]
    average: dict[str, Tensor]
    terms: dict[str, Tensor]
    optimizer: dict[str, Any]
    figures: tuple[Any, ...]


def train(folder: Path, *, stop_after: int | None = None, adamw: bool = False, shuffled: bool = False) -> Outcome:
    """Batch norm, dropout, moving average, schedule and clipping: everything that has a state."""
    distiller = tiny.distiller(norm=True, dropout=0.3)
    optimizer = optim.adamw(distiller, lr=0.01) if adamw else optim.sgd(distiller)
    loader: Any = Loader(24, 24 // BATCHES, stop_after=stop_after)
    if shuffled:  # its order comes from the global generator
        loader = DataLoader(Breaking(stop_after), batch_size=24 // BATCHES, shuffle=True)
    result = fit(
        distiller,
        loader,
        list(Loader(16, 8, seed=1)),
        epochs=EPOCHS,
        optimizer=optimizer,
        rate=optim.cosine_decay(EPOCHS, warmup=1),
        clip=1.0,
        ema_decay=0.8,
        log=RunLog(folder),
        checkpoints=Checkpoints(folder / "checkpoint"),
        cpu=True,
    )
    terms, counters = distiller.term_modules.state_dict(), result.counters
    figures = (result.last, result.best, counters.step, counters.images, counters.epoch)
    return Outcome(distiller.student.state_dict(), result.student.state_dict(), terms, optimizer.state_dict(), figures)


class Breaking(TensorDataset):
    """Breaks off after some batches."""

    def __init__(self, stop_after: int | None) -> None:
        super().__init__(*tiny.images(24))
        self.left = stop_after * (24 // BATCHES) if stop_after is not None else None

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return super().__getitem__(index)


if __name__ == "__main__":
    torch.set_num_threads(1)
    meter.LOG_EVERY = LOG_EVERY
    synced = os.fsync
    calls = itertools.count(1)

    def kill(descriptor: int) -> None:
        """Die in the middle of writing the third checkpoint."""
        synced(descriptor)
        if next(calls) == 2 * 8 + 3:  # five files each, the manifest and two folders
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = kill
    train(Path(sys.argv[1]))
