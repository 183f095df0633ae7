"""The modules of a training: what a step calls, what is kept of it, and what is scored and given back."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from limbeck import collectives, sharding
from limbeck.distiller import Distiller, beside, shard_distiller
from limbeck.errors import UserError

MakeOptimizer = Callable[[Distiller], Optimizer]
"""An optimizer over ``distiller.trainable_parameters()``."""


@dataclass(frozen=True)
class Trained:
    """What a training changes.

    Attributes:
        distiller: Whose parameters the optimizer has. Where they are sharded this is a copy of the user's.
        model: What a step calls: the distiller, or what wraps it.
        average: The moving average of its student, where one is asked for.
        evaluated: The student, or its average, that is scored and returned; whole on every process.
        given: The user's distiller, which scores the terms.
    """

    distiller: Distiller
    model: nn.Module
    average: AveragedModel | None
    evaluated: nn.Module
    given: Distiller

    @property
    def kept(self) -> dict[str, nn.Module]:
        """What a checkpoint has besides the optimizer, by name."""
        found: dict[str, nn.Module] = {"student": self.distiller.student, "terms": self.distiller.term_modules}
        return found | ({"average": self.average} if self.average is not None else {})

    def settle(self) -> None:
        """Make what is scored, kept and returned the same on every process; all of them call it.

        A batch norm of the student's own has seen one process's images: all get the first one's. What is sharded is
        put together in the modules that the user gave.
        """
        collectives.copy_from_first(buffer for module in self.kept.values() for buffer in module.buffers())
        if self.given is self.distiller:
            return
        self.given.progress = self.distiller.progress
        sharding.copy_whole(self.distiller.student, self.given.student)
        sharding.copy_whole(self.distiller.term_modules, self.given.term_modules)
        if self.average is not None:
            sharding.copy_whole(self.average.module, self.evaluated)


def in_whole(distiller: Distiller, accelerator: Any, ema_decay: float | None) -> Trained:
    """Every process has all of it; of several, ``DistributedDataParallel`` averages the gradients."""
    distiller.to(accelerator.device)
    model: nn.Module = accelerator.prepare_model(distiller)
    average = _average(distiller.student, ema_decay)
    evaluated: nn.Module = average.module if average is not None else distiller.student
    return Trained(distiller, model, average, evaluated, distiller)


def in_shares(distiller: Distiller, accelerator: Any, ema_decay: float | None) -> Trained:
    """Every process has a share of it, and all of student and terms once more, to be scored and given back.

    Raises:
        UserError: If the distiller is compiled, or a parameter cannot be cut up.
    """
    if distiller.compiled:
        raise UserError("shard: the distiller is compiled, and shards are not; leave compile_parts out")
    if accelerator.num_processes == 1:
        return in_whole(distiller, accelerator, ema_decay)
    device: torch.device = accelerator.device
    copied = beside(distiller)
    average = _average(copied.student.to(device), ema_decay)
    model = shard_distiller(copied, device)
    distiller.to(device)
    evaluated = distiller.student
    if average is not None:
        evaluated = copy.deepcopy(distiller.student)
        collectives.copy_from_first([*average.parameters(), *average.buffers()])
        sharding.shard(average.module, device, keeps=False)
    return Trained(copied, model, average, evaluated, distiller)


def _average(student: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    return AveragedModel(student, multi_avg_fn=sharding.blend(get_ema_multi_avg_fn(decay)), use_buffers=True)


def check_shards(*, optimizer: object, precision: torch.dtype, accumulate: int, probe: object) -> None:
    """Refuse what cannot be combined with shards.

    Raises:
        UserError: If the optimizer is not a function, in float16, with accumulation, or with a probe.
    """
    if isinstance(optimizer, Optimizer):
        raise UserError(
            "shard: the optimizer is over parameters that have not been cut up yet; give a function that makes it, "
            "optimizer=functools.partial(optim.sgd, lr=0.1)"
        )
    if precision == torch.float16:
        raise UserError("shard: the loss is not scaled in shards, which float16 needs; use bfloat16 or float32")
    if accumulate > 1:
        raise UserError(f"shard: accumulate is {accumulate}; expected 1: a share of a batch is smaller already")
    if probe is not None:
        raise UserError("shard: no process has the whole student that a probe looks at; expected probe=None")
