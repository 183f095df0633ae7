"""What each of two processes does in ``test_stopping_processes``."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tiny
from limbeck import fit
from limbeck.distributed import collectives
from limbeck.errors import Stopped
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints
from limbeck.storage.random_state import state_of_this, states_of_all
from limbeck.training import meter, optim

CPU = torch.device("cpu")
EPOCHS, BATCHES = 2, 6


class Signalling(tiny.Loader):
    """Sends the second process a signal while it makes a batch."""

    def __init__(self, at: int | None) -> None:
        super().__init__(8 * BATCHES, 8)
        self.at = at

    def __iter__(self) -> Iterator[tiny.Batch]:
        for batch in super().__iter__():
            self.at = self.at - 1 if self.at is not None else None
            if self.at == 0 and collectives.rank() == 1:
                signal.raise_signal(signal.SIGTERM)
            yield batch


def train(folder: Path, loader: Any, *, every: int = 0) -> dict[str, Any]:
    """Dropout draws other numbers on each process."""
    torch.manual_seed(0)
    distiller = tiny.distiller(norm=True, dropout=0.3)
    torch.manual_seed(collectives.rank())
    fit(
        distiller,
        loader,
        epochs=EPOCHS,
        optimizer=optim.adamw(distiller, lr=0.01),
        log=RunLog(folder),
        checkpoints=Checkpoints(folder / "checkpoint", every=every),
        cpu=True,
    )
    return {**distiller.student.state_dict(), **distiller.term_modules.state_dict()}


def stopped(folder: Path, at: int) -> dict[str, Any]:
    """A signal with the batch, and what a training that goes on behind it ends with."""
    try:
        train(folder, Signalling(at))
        raised = ""
    except Stopped as stop:
        raised = stop.reason
    step = Checkpoints(folder / "checkpoint").states()[-1].name
    torch.manual_seed(99)  # a new process does not begin where this one's generators stand
    return {"raised": raised, "step": step, "end": train(folder, Signalling(None))}


def killed(folder: Path) -> dict[str, Any]:
    """Two steps a checkpoint: the training is broken off behind the fourth of the first epoch."""

    class Broken(tiny.Loader):
        def __iter__(self) -> Iterator[tiny.Batch]:
            for count, batch in enumerate(super().__iter__()):
                if count == 5:
                    raise KeyboardInterrupt
                yield batch

    with contextlib.suppress(KeyboardInterrupt):
        train(folder, Broken(8 * BATCHES, 8), every=2)
    step = Checkpoints(folder / "checkpoint").states()[-1].name
    torch.manual_seed(99)
    return {"step": step, "end": train(folder, Signalling(None), every=2)}


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    meter.LOG_EVERY = 2
    torch.manual_seed(rank)
    drawn = [state["torch"] for state in states_of_all({"torch": torch.get_rng_state()}, CPU)]
    found = {
        "drawn": drawn,
        "own": torch.get_rng_state(),
        "beyond": state_of_this([{"torch": drawn[0]}], CPU)["torch"],
        "whole": train(folder / "whole", Signalling(None)),
        "stopped": {at: stopped(folder / f"at{at}", at) for at in (1, 4, BATCHES, BATCHES + 3)},
        "killed": killed(folder / "killed"),
    }
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
