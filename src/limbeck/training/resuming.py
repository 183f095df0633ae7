"""Where a training goes on that was stopped, and how it stops."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from limbeck.distributed import collectives, sharding
from limbeck.errors import Stopped, UserError
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints, Counters
from limbeck.storage.random_state import state_of_this


class Midway(NamedTuple):
    """What is needed to go on within an epoch.

    Attributes:
        begun: The random states at the beginning of the epoch.
        processes: How many there were.
        meter: State of the :class:`limbeck.training.meter.Meter`.
    """

    begun: dict[str, Any]
    processes: int
    meter: dict[str, Any]


def resume(
    checkpoints: Checkpoints | None,
    checkpointed: Mapping[str, nn.Module],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    log: RunLog,
) -> tuple[Counters, Midway | None]:
    """Where the run stands, and within an epoch what is needed to go on there.

    Raises:
        UserError: If the checkpoint is of another run.
    """
    if checkpoints is None:
        return Counters(), None
    state = checkpoints.load(checkpointed, device)
    if checkpoints.skipped:
        log.note(f"skipped damaged checkpoints: {'; '.join(checkpoints.skipped)}")
    if state is None:
        log.rewind(0)  # a run that was killed in its first epoch begins again
        return Counters(), None
    trainer, counters = state
    try:
        sharding.load_optimizer(optimizer, trainer["optimizer"])
        scaler.load_state_dict(trainer["scaler"])
    except (ValueError, KeyError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"the checkpoint in {checkpoints.folder} is of another optimizer: {first}") from error
    log.rewind(counters.step)
    where = f"batch {counters.batches} of epoch {counters.epoch + 1}"
    where = where if counters.batches else f"the end of epoch {counters.epoch}"
    log.note(f"continuing from {where}, step {counters.step}")
    if counters.batches == 0:
        return counters, None
    begun = trainer["begun"]
    return counters, Midway(state_of_this(begun, device), len(begun), trainer["meter"])


def check_processes(midway: Midway | None, loader: object, processes: int) -> None:
    """Refuse to go on within an epoch with other batches than it began with."""
    if midway is not None and isinstance(loader, DataLoader) and midway.processes != processes:
        raise UserError(
            f"the checkpoint is of {midway.processes} processes in mid-epoch, here are {processes}; "
            "a DataLoader gives each of them batches of its own, so resuming takes as many"
        )


def stop(signum: int, counters: Counters, log: RunLog) -> None:
    """End a training that has just been saved, on every process when the first one is done with it."""
    collectives.barrier()
    stopped = Stopped(signum)
    log.note(f"stopped by {stopped.reason} after step {counters.step}; the checkpoint is written")
    raise stopped
