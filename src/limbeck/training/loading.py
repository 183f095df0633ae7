"""A training's loader: the share of this process, and where an epoch goes on that was broken off."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate.data_loader import (  # pyright: ignore[reportMissingTypeStubs]
    prepare_data_loader,  # pyright: ignore[reportUnknownVariableType]
)
from torch.utils.data import DataLoader, IterableDataset

from limbeck.data.loader import Loader
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.storage.random_state import REWINDING, random_state, set_random_state
from limbeck.training.evaluation import arriving


@runtime_checkable
class ShardedLoader(Protocol):
    """A loader that gives each process its share of every global batch, and each epoch an order of its own."""

    def __len__(self) -> int:
        """Batches an epoch."""
        ...

    def __iter__(self) -> Any:
        """Iterate over the batches of one epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0."""
        ...

    def shard(self, rank: int, world_size: int) -> "ShardedLoader":
        """The share of one process."""
        ...


@runtime_checkable
class Seekable(Protocol):
    """A loader whose batches are a function of epoch and step, whatever was drawn before."""

    def iterate(self, start: int = 0) -> Iterator[Any]:
        """The batches of the epoch from one on."""
        ...


def remaining(
    loader: Iterable[Any], start: int, begun: Mapping[str, Any], device: torch.device, *, ahead: bool
) -> Iterator[Any]:
    """The batches of an epoch on the device, or what is left of them where it was broken off.

    A :class:`Seekable` loader begins at that batch. Any other, for instance a ``DataLoader``, begins where the random
    number generators stood when the epoch began, so that its order is the same, and its first batches are dropped.
    Either way the generators are then where they are now, at the batch behind which the epoch was broken off.

    Args:
        loader: Of the right epoch.
        start: Batches that are done.
        begun: The random states at the beginning of the epoch.
        device: Where the batches go.
        ahead: Whether a thread may make them.
    """
    if isinstance(loader, Loader) and loader.plan.own is not None:
        ahead = False  # a function of the user's draws from the generators that the step draws from
    if start == 0:
        return arriving(loader if isinstance(loader, Seekable) else _drawn(iter(loader)), device, ahead=ahead)
    now = random_state(device)
    if isinstance(loader, Seekable):
        batches = arriving(loader.iterate(start), device, ahead=ahead)
        first = list(itertools.islice(batches, 1))  # starting workers draws a number
        set_random_state(now, device)
        return itertools.chain(first, batches)
    set_random_state(begun, device)
    source = iter(loader)
    for _ in itertools.islice(source, start):
        pass
    set_random_state(now, device)
    return arriving(_drawn(source), device, ahead=ahead)


def _drawn(source: Iterator[Any]) -> Iterator[Any]:
    """Batches that may be drawn from the global generators, while nothing moves these back."""
    while True:
        with REWINDING:
            batch = next(source, source)
        if batch is source:
            return
        yield batch
        del batch


class _PreparedLoader:
    """A ``DataLoader`` that Accelerate has sharded, seen as a :class:`ShardedLoader`."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._loader = loader
        self._device = device

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Any:
        # Accelerate does this only where a whole Accelerator was set up, with what its environment says of precision.
        generator = getattr(self._loader, "synchronized_generator", None)
        if generator is not None and collectives.world_size() > 1:
            state = generator.get_state().to(self._device)
            collectives.copy_from_first([state])
            generator.set_state(state.cpu())
        return iter(self._loader)

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)


def _prepared(loader: DataLoader[Any], device: torch.device) -> DataLoader[Any]:
    """The share of this process; its batches stay where they are, for Accelerate would wait for each on its way."""
    if getattr(loader, "_is_accelerate_prepared", False):
        return loader
    return prepare_data_loader(  # pyright: ignore[reportUnknownVariableType]
        loader,
        device,
        num_processes=collectives.world_size(),
        process_index=collectives.rank(),
        put_on_device=isinstance(loader.dataset, IterableDataset),  # which the first process reads and sends on
    )


def sharded(loader: DataLoader[Any] | ShardedLoader, device: torch.device) -> Any:
    """The share of this process, seen as a :class:`ShardedLoader` that has been sharded.

    Args:
        loader: A ``DataLoader`` is sharded by Accelerate, and gives whole batches to each process.
        device: One that the processes can talk through.

    Raises:
        UserError: If it has no length, or no batch, or not as many on every process.
    """
    if isinstance(loader, DataLoader):
        share = _PreparedLoader(_prepared(loader, device), device)
    else:
        share = loader.shard(collectives.rank(), collectives.world_size())
    try:
        batches = len(share)
    except TypeError as error:
        raise UserError("the training loader has no length; the length of an epoch must be known") from error
    if batches == 0:
        raise UserError("the training loader gives no batch: it holds fewer images than one batch")
    least, most = (sign * int(collectives.max_across(torch.tensor(sign * batches, device=device))) for sign in (-1, 1))
    if least != most:
        raise UserError(
            f"the training loader gives {least} batches an epoch to one process and {most} to another; "
            "expected as many for each, be they of different lengths or empty"
        )
    return share
