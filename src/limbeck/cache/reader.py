"""The training loader with the teacher's outputs from a cache."""

import functools
from collections.abc import Iterator
from typing import NamedTuple, final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from limbeck.cache.identity import sketch, tolerance
from limbeck.cache.store import Cache, View
from limbeck.data.loader import Batch, Loader
from limbeck.distiller import Clock
from limbeck.errors import UserError
from limbeck.features.taps import Captured


class TaughtBatch(NamedTuple):
    """A :class:`limbeck.data.Batch` that brings what the teacher computed on it.

    Attributes:
        images: In [0, 1], not normalised.
        target: Class numbers, or shares of each class when images were mixed, or None without labels.
        index: Which images of the part these are.
        teacher: The teacher's output and features.
    """

    images: Float32[Tensor, "n 3 s s"]
    target: Int64[Tensor, " n"] | Float32[Tensor, "n k"] | None
    index: Int64[Tensor, " n"]  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index)
    teacher: Captured


@final
class CachedLoader:
    """Goes through the batches of a loader and adds what the teacher gave for them; a ``ShardedLoader``.

    Of every image the pixels are compared with those that the teacher saw, by a number that is stored with its outputs
    (`limbeck.cache.identity`): what belongs to other pixels is never handed out, whatever made them differ.

    Args:
        loader: The training loader, with as many `views` as the cache has, or fewer.
        cache: A filled cache.
        clock: Times the reading of outputs and the comparison of pixels.

    Raises:
        UserError: If the loader does not say how many views it goes through, or the cache has fewer.
    """

    def __init__(self, loader: Loader, cache: Cache, clock: Clock | None = None) -> None:
        views = loader.plan.views
        if views is None:
            raise UserError("a loader without `views` has new pixels in each epoch, which no cache can have")
        if lost := cache.missing(views):
            raise UserError(f"the cache in {cache.folder} is not complete: {cache.path(lost[0]).name} is missing")
        self._loader = loader
        self._cache = cache
        self._clock = clock if clock is not None else Clock()
        self._open: View | None = None  # one view at a time: the number of open files does not grow

    def __len__(self) -> int:
        """Steps of one pass of this process."""
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the view of the passes that follow."""
        self._loader.set_epoch(epoch)

    def shard(self, rank: int, world_size: int) -> "CachedLoader":
        """The loader of one process of many, which reads the outputs of its own slice."""
        return CachedLoader(self._loader.shard(rank, world_size), self._cache, self._clock)

    def __iter__(self) -> Iterator[TaughtBatch]:
        """One pass over the epoch."""
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[TaughtBatch]:
        """One pass from step `start` on; the steps before are not decoded.

        Raises:
            UserError: If a batch has other pixels than those that the teacher saw.
        """
        if self._open is None or self._open.number != self._loader.view:
            self._open = self._cache.view(self._loader.view)
        view = self._open
        for batch in self._loader.iterate(start):
            teacher = self._clock(torch.device("cpu"), functools.partial(self._read, view, batch))
            yield TaughtBatch(batch.images, batch.target, batch.index, teacher)

    def _read(self, view: View, batch: Batch) -> Captured:
        rows = view.rows(batch.index)
        check_pixels(batch, rows["pixels"], view.number, self._cache)
        return self._cache.unpack(rows)


def check_pixels(batch: Batch, stored: Float32[Tensor, " n"], view: int, cache: Cache) -> None:
    """Refuse a batch whose pixels are not those that the teacher saw.

    Raises:
        UserError: If there is one; the message names an image.
    """
    wrong = (sketch(batch.images).cpu() - stored).abs() > tolerance(batch.images)
    if bool(wrong.any()):
        image = int(batch.index[wrong.nonzero()[0, 0]])
        raise UserError(
            f"training image {image} has other pixels in view {view} than when the cache in {cache.folder} was made; "
            "were image files changed, or a library that decodes them? Delete the folder to make the cache again"
        )
