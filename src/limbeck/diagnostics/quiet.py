"""Run a model in the middle of its training and leave no trace in it."""

import contextlib
from collections.abc import Generator, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from limbeck.distiller import Distiller, evaluating
from limbeck.distributed import collectives

SEED = 0
CPU = torch.device("cpu")


@contextlib.contextmanager
def undisturbed(distiller: Distiller, device: torch.device) -> Generator[None, None, None]:
    """Inside it the distiller can be run, by this process alone, and its training does not notice.

    It is in eval mode, without gradient and without autocast; random numbers are those of a fixed seed, so that two
    looks at one state see the same. Behind it modes, random state and the readings of terms are what they were.

    Nothing writes to a buffer in eval mode, so none is copied: a bank of CRD may hold a gigabyte. On a GPU the CPU's
    generator is left alone, since the thread that makes the next batches may draw from it meanwhile.
    """
    readings = {name: term.readings for name, term in distiller.terms.items()}
    with (
        _seeded(device),
        evaluating(distiller),
        collectives.alone(),
        torch.autocast(device.type, enabled=False),
    ):
        try:
            yield
        finally:
            for name, term in distiller.terms.items():
                term.readings = readings[name]


@contextlib.contextmanager
def _seeded(device: torch.device) -> Generator[None, None, None]:
    """The generator that a device draws from, seeded, and afterwards where it was."""
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
        torch.cuda.default_generators[device.index or 0].manual_seed(SEED)
        try:
            yield
        finally:
            torch.cuda.set_rng_state(state, device)
        return
    state, on_mps = torch.get_rng_state(), torch.mps.get_rng_state() if device.type == "mps" else None
    torch.default_generator.manual_seed(SEED)
    if on_mps is not None:
        torch.mps.manual_seed(SEED)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)


@contextlib.contextmanager
def batch_statistics(modules: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Inside it every batch norm of some modules uses the statistics of its batch, as in training, and keeps none.

    Running statistics lag behind, and before the first steps they are those of no batch at all: what a gradient or a
    feature is in training can only be seen with those of the batch. Layers that talk to other processes
    (``SyncBatchNorm``) stay as they are.
    """
    norms = [
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm) and layer.track_running_stats
    ]
    modes = [layer.training for layer in norms]
    try:
        for layer in norms:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, mode in zip(norms, modes, strict=True):
            layer.training, layer.track_running_stats = mode, True


def has_batch_norm(module: nn.Module) -> bool:
    """Whether :func:`batch_statistics` changes anything of a module."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def is_sharded(distiller: Distiller) -> bool:
    """Whether a forward pass needs the other processes, as under FSDP."""
    if collectives.world_size() == 1:
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    has_shards = any(isinstance(p, DTensor) for p in distiller.parameters())
    return has_shards or any(isinstance(m, FullyShardedDataParallel) for m in distiller.modules())


def device_of(distiller: Distiller) -> torch.device:
    """Where the student is."""
    return next((p.device for p in distiller.student.parameters()), CPU)


def wait_for(device: torch.device) -> None:
    """Until a device has done what is queued, so that the time of what follows, or came before, is its own."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
