"""Batches in a fixed order whose samples are made by threads, for images with boxes and images with masks."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import numpy as np
import torch
from jaxtyping import Int64

from limbeck.data import decode, keys
from limbeck.data.fetch import Skips
from limbeck.errors import UserError

S = TypeVar("S")
B = TypeVar("B")

_CPU = torch.device("cpu")
_AHEAD = 2  # batches that are decoded while one is used


@dataclass(frozen=True)
class Order:
    """Which images are gone through, and how.

    Attributes:
        names: Of the images, for messages.
        batch_size: Of the global batch, which the processes share.
        seed: Of the order.
        training: Shuffled, the last short batch dropped; else in their order.
        workers: Threads that make samples; 0 as 1.
        groups: Group of each image; outside of training a batch has images of one group alone. Empty: all are one.
    """

    names: Sequence[str]
    batch_size: int
    seed: int = 0
    training: bool = False
    workers: int = 0
    groups: Sequence[int] = ()

    def batches(self, epoch: int) -> list[Int64[np.ndarray, " _"]]:
        """The images of each global batch of an epoch."""
        count, size = len(self.names), self.batch_size
        order = np.arange(count)
        if self.training:
            order = keys.generator(self.seed, epoch, keys.Stream.ORDER).permutation(count)[: count // size * size]
            runs = [order]
        elif self.groups:
            groups = np.asarray(self.groups)
            runs = [np.flatnonzero(groups == group) for group in dict.fromkeys(self.groups)]
        else:
            runs = [order]
        return [run[at : at + size] for run in runs for at in range(0, len(run), size)]


@final
class Stream(Generic[S, B]):
    """Iterates over the batches of one epoch.

    Where ``sample`` is a function of (image, epoch), all is one of (seed, epoch, image), as in
    :class:`limbeck.data.Loader`: an epoch can be gone through again, from any step on, in another number of processes,
    with the same numbers. An image whose sample cannot be made counts against ``skips``; its batch is shorter by one.

    Args:
        order: Which images, and how.
        sample: Makes the sample of an image in an epoch; raises ``BadImageError`` or ``OSError`` if it cannot.
        collate: From samples to a batch on a device.
        skips: The unreadable images met so far.
        rank: This process.
        world_size: All processes.
        device: Where the batches go.

    Raises:
        UserError: The batch is larger than the set, or cannot be split evenly over the processes.
    """

    def __init__(
        self,
        order: Order,
        sample: Callable[[int, int], S],
        collate: Callable[[list[S], torch.device], B],
        skips: Skips,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
    ) -> None:
        if order.batch_size < 1:
            raise UserError(f"batch size {order.batch_size}: expected 1 or more")
        if order.training and order.batch_size > len(order.names):
            raise UserError(
                f"batch size {order.batch_size} is larger than the training set of {len(order.names)} images:"
                f" use --batch-size {len(order.names)} or less"
            )
        if order.training and order.batch_size % world_size:
            raise UserError(f"batch size {order.batch_size} cannot be split evenly over {world_size} processes")
        self.order = order
        self._sample = sample
        self._collate = collate
        self._skips = skips
        self._rank = rank
        self._world_size = world_size
        self._device = device
        self._epoch = 0

    def __len__(self) -> int:
        """Steps of one pass of this process."""
        return len(self._mine())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the passes that follow."""
        self._epoch = epoch

    def shard(self, rank: int, world_size: int) -> "Stream[S, B]":
        """The loader of one process of many: its contiguous slice of each global batch.

        Raises:
            UserError: The training batch cannot be split evenly.
            ValueError: The rank is out of range.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        own = Stream(
            self.order,
            self._sample,
            self._collate,
            self._skips,
            rank=rank,
            world_size=world_size,
            device=self._device,
        )
        own.set_epoch(self._epoch)
        return own

    def to(self, device: torch.device) -> "Stream[S, B]":
        """This loader with its batches on a device, where the bytes of the images become numbers."""
        self._device = device
        return self

    def __iter__(self) -> Iterator[B]:
        """One pass over the epoch."""
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[B]:
        """One pass from step `start` on; the steps before are not decoded (for resuming in the middle of an epoch)."""
        waiting: deque[list[tuple[int, Future[S]]]] = deque()
        pool = ThreadPoolExecutor(max(1, self.order.workers))
        try:
            with decode.quiet_pillow():
                for rows in self._mine()[start:]:
                    waiting.append([(int(i), pool.submit(self._sample, int(i), self._epoch)) for i in rows])
                    if len(waiting) > _AHEAD:
                        yield from self._collated(waiting.popleft())
                while waiting:
                    yield from self._collated(waiting.popleft())
        finally:  # also where the caller stops early
            pool.shutdown(cancel_futures=True)

    def _mine(self) -> list[Int64[np.ndarray, " _"]]:
        """The images of each batch of this process."""
        rank, world = self._rank, self._world_size
        batches = self.order.batches(self._epoch)
        mine = [batch[len(batch) * rank // world : len(batch) * (rank + 1) // world] for batch in batches]
        return [batch for batch in mine if len(batch)]

    def _collated(self, futures: "list[tuple[int, Future[S]]]") -> Iterator[B]:
        """The batch; none where no image of it can be read."""
        good: list[S] = []
        for image, future in futures:
            try:
                good.append(future.result())
            except (decode.BadImageError, OSError) as error:
                name = self.order.names[image]
                if name not in self._skips.found:
                    self._skips.add(name, str(error))
        if good:
            yield self._collate(good, self._device)
