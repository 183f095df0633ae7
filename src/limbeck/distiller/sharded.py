"""A distiller of which each process holds a share: torch's FSDP2 around student, teacher and terms."""

import copy
from typing import Any

import torch
from torch import nn

from limbeck.distiller.interface import StepResult
from limbeck.distiller.module import Distiller
from limbeck.distributed import collectives, sharding


class ShardedDistiller(nn.Module):
    """What a training step calls of a distiller whose parameters are cut up; see :func:`shard_distiller`.

    The teacher is none of its modules: torch's FSDP takes what is in here for what the backward pass goes through.

    Args:
        distiller: Student and terms are cut up already.
    """

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.student = distiller.student
        self.terms = distiller.term_modules
        self._held = (distiller,)  # in a tuple, where nn.Module does not look

    @property
    def distiller(self) -> Distiller:
        """Student, teacher, task and terms; call this module in its place."""
        return self._held[0]

    def train(self, mode: bool = True) -> "ShardedDistiller":
        """Put the whole distiller in training mode or out of it."""
        super().train(mode)
        self.distiller.train(mode)
        return self

    def forward(self, batch: Any) -> StepResult:
        """One step on one batch, as of the distiller."""
        return self.distiller(batch)


def shard_distiller(distiller: Distiller, device: torch.device) -> ShardedDistiller:
    """Cut up a distiller so that each process holds a share of its parameters, gradients and optimizer state.

    Student and terms are gathered each as a whole in the forward pass, and let go at the end of the backward pass. The
    teacher is gathered part by part (:func:`limbeck.distributed.sharding.units_of`) and each part let go
    behind its forward pass, so that no device ever holds all of it: leave it in main memory until it is here. Loss and
    gradient are those of ``DistributedDataParallel``.

    Args:
        distiller: Is changed, and stays the one that has student, teacher and terms. Its values become those of the
            first process. On one process nothing happens to it.
        device: Of the training.

    Returns:
        What a step calls instead of the distiller. Build the optimizer behind this, over
        ``distiller.trainable_parameters()``: they are others now.

    Raises:
        UserError: If a parameter is a scalar or not contiguous.

    References:
        Y. Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023; torch's
        ``fully_shard`` is its second form.
    """
    if collectives.world_size() == 1:
        distiller.to(device)
        return ShardedDistiller(distiller)
    for name, part in (("student", distiller.student), ("terms", distiller.term_modules)):
        sharding.check_shardable(part, name)
    if distiller.teacher is not None:
        sharding.shard_frozen(distiller.teacher.model, device)
    distiller.to(device)
    for part in (distiller.student, distiller.term_modules):
        collectives.copy_from_first([*part.parameters(), *part.buffers()])
    for unit in (distiller.student, *distiller.term_modules.values()):
        if next(unit.parameters(), None) is not None:
            # Kept: a feature inside can be all that the loss depends on, and then nothing would ask for them again.
            sharding.shard(unit, device, keeps=True)
    model = ShardedDistiller(distiller)
    sharding.shard(model, device, keeps=True)
    return model


def beside(distiller: Distiller) -> Distiller:
    """A distiller with copies of student and terms, and with the same teacher, task and clock."""
    shared: list[Any] = [distiller.task, *(distiller.teacher.modules() if distiller.teacher is not None else ())]
    made = copy.deepcopy(distiller, {id(part): part for part in shared})
    made.clock = distiller.clock
    return made
