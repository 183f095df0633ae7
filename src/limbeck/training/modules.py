"""The modules of a training: what a step calls, what is kept of it, and what is scored and given back."""

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from limbeck.distiller import Distiller, beside, shard_distiller
from limbeck.distributed import collectives, sharding
from limbeck.errors import UserError


@final
class Average(nn.Module):
    """Moving average of a student: of its parameters and of its running statistics.

    The first update copies the student, each later one moves the average towards it by ``1 - decay``. Whole numbers
    (positions, counters) and buffers that hold an infinity (masks) have no mean: they are copied each time.

    Args:
        student: Is copied.
        decay: Share of the average that an update keeps, from 0 to 1.

    Raises:
        UserError: If the decay is out of its range.
    """

    n_averaged: Tensor  # stays on the CPU, where reading it costs nothing

    def __init__(self, student: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise UserError(f"ema_decay is {decay}; expected a number from 0 to 1")
        self.module = copy.deepcopy(student)
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.long))
        self._decay = decay
        floating = [name for name, buffer in student.named_buffers() if buffer.is_floating_point()]
        finite = sharding.finite(student.get_buffer(name) for name in floating)
        self._masks = {name for name, fine in zip(floating, finite, strict=True) if not fine}

    @torch.no_grad()
    def update_parameters(self, student: nn.Module) -> None:
        """Take the student as it is now into the average."""
        own = itertools.chain(self.module.named_parameters(), self.module.named_buffers())
        current = itertools.chain(student.parameters(), student.buffers())
        is_first = int(self.n_averaged) == 0
        moved: tuple[list[Tensor], list[Tensor]] = ([], [])
        for (name, average), value in zip(own, current, strict=True):
            pair = (sharding.local(average), sharding.local(value))
            if is_first or name in self._masks or not average.is_floating_point():
                pair[0].copy_(pair[1])
            else:
                moved[0].append(pair[0])
                moved[1].append(pair[1])
        if moved[0]:
            torch._foreach_lerp_(*moved, 1 - self._decay)  # pyright: ignore
        self.n_averaged += 1


MakeOptimizer = Callable[[Distiller], Optimizer]
"""An optimizer over ``distiller.trainable_parameters()``."""


@dataclass(frozen=True)
class TrainedModules:
    """What a training changes.

    Attributes:
        distiller: Whose parameters the optimizer has. Where they are sharded this is a copy of the user's.
        model: What a step calls: the distiller, or what wraps it.
        average: The moving average of its student, where one is asked for.
        evaluated: The student, or its average, that is scored and returned; whole on every process.
        original: The user's distiller, which scores the terms.
    """

    distiller: Distiller
    model: nn.Module
    average: Average | None
    evaluated: nn.Module
    original: Distiller

    @property
    def checkpointed(self) -> dict[str, nn.Module]:
        """What a checkpoint has besides the optimizer, by name."""
        found: dict[str, nn.Module] = {"student": self.distiller.student, "terms": self.distiller.term_modules}
        return found | ({"average": self.average} if self.average is not None else {})

    def no_sync(self) -> AbstractContextManager[Any]:
        """The context in which gradients stay on this process."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def synchronize(self) -> None:
        """Make what is scored, kept and returned the same on every process; all of them call it.

        A batch norm of the student's own has seen one process's images: all get the first one's. What is sharded is
        put together in the modules that the user gave.
        """
        own = [self.distiller.student, self.distiller.term_modules, *([self.average.module] if self.average else [])]
        collectives.copy_from_first(buffer for module in own for buffer in module.buffers())
        if self.original is self.distiller:
            return
        self.original.progress = self.distiller.progress
        sharding.copy_whole(self.distiller.student, self.original.student)
        sharding.copy_whole(self.distiller.term_modules, self.original.term_modules)
        if self.average is not None:
            sharding.copy_whole(self.average.module, self.evaluated)


# What DDP calls the broadcast of all buffers in each forward pass; the old name is deprecated since torch 2.15.
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters  # pyright: ignore
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


def in_whole(distiller: Distiller, device: torch.device, ema_decay: float | None) -> TrainedModules:
    """Every process has all of it; of several, ``DistributedDataParallel`` averages the gradients."""
    distiller.to(device)
    model: nn.Module = distiller
    if collectives.world_size() > 1:
        # Not in every step: a bank of CRD may hold a gigabyte, and what a term keeps is the same on every process.
        collectives.copy_from_first(distiller.buffers())
        devices = None if device.type == "cpu" else [device]
        model = DistributedDataParallel(distiller, device_ids=devices, **{_BUFFERS: False})  # pyright: ignore
        if carried := _carried(distiller.student):

            def share(*_: object) -> None:
                collectives.copy_from_first(module.get_buffer(name) for module, name in carried)

            model.register_forward_pre_hook(share)
    average = _average(distiller.student, ema_decay)
    evaluated: nn.Module = average.module if average is not None else distiller.student
    return TrainedModules(distiller, model, average, evaluated, distiller)


def in_shares(distiller: Distiller, device: torch.device, ema_decay: float | None) -> TrainedModules:
    """Every process has a share of it, and all of student and terms once more, to be scored and given back.

    Raises:
        UserError: If the distiller is compiled, or a parameter cannot be cut up.
    """
    if distiller.compiled:
        raise UserError("shard: the distiller is compiled, and shards are not; leave compile_parts out")
    if collectives.world_size() == 1:
        return in_whole(distiller, device, ema_decay)
    copied = beside(distiller)
    average = _average(copied.student.to(device), ema_decay)
    model = shard_distiller(copied, device)
    distiller.to(device)
    evaluated = distiller.student
    if average is not None:
        evaluated = copy.deepcopy(distiller.student)
        collectives.copy_from_first([*average.module.parameters(), *average.module.buffers()])
        sharding.shard(average.module, device, keeps=False)
    return TrainedModules(copied, model, average, evaluated, distiller)


def _carried(student: nn.Module) -> list[tuple[nn.Module, str]]:
    """Buffers that a training step may read and write, which each process would do by its own images.

    A batch norm reads its running statistics in evaluation alone, and what is no part of a checkpoint does not change.
    """
    return [
        (module, name)
        for module in student.modules()
        if not isinstance(module, _BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and name not in module._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]
    ]


def _average(student: nn.Module, decay: float | None) -> Average | None:
    return Average(student, decay) if decay is not None else None


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
