"""Batches of images with boxes in a fixed order, the same for the same (seed, epoch, image)."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from limbeck.data import augment, decode, keys, on_device
from limbeck.data.fetch import Skips
from limbeck.detection import DetectionBatch
from limbeck.detection.data.index import BoxIndex
from limbeck.detection.data.transforms import Frame, Placed, Placement, fill, lay, place
from limbeck.errors import UserError

_CPU = torch.device("cpu")
_AHEAD = 2  # batches that are decoded while one is used


@dataclass(frozen=True)
class Plan:
    """What a loader goes through.

    Attributes:
        index: The images and their boxes.
        frame: How they are laid into a frame.
        batch_size: Of the global batch, which the processes share.
        divisor: Height and width of a batch are multiples of it.
        seed: Of the order and the augmentation.
        training: Shuffled, crowds left out, the last short batch dropped.
        scales: Smallest and largest factor that is drawn; None: none is.
        flip: Mirror half of the images.
        workers: Threads that decode; 0 as 1.
    """

    index: BoxIndex
    frame: Frame
    batch_size: int
    divisor: int = 32
    seed: int = 0
    training: bool = False
    scales: tuple[float, float] | None = None
    flip: bool = False
    workers: int = 0


class _Sample(NamedTuple):
    """One image in its frame, or why it cannot be read."""

    image: int
    placement: Placement
    placed: Placed | str


@final
class DetectionLoader:
    """Iterates over the batches of one epoch.

    Everything is a function of (seed, epoch, image), as in :class:`limbeck.data.Loader`: an epoch can be gone through
    again, from any step on, in another number of processes, with the same pixels and boxes. Frames that are not square
    are as large as the largest image of a batch, up to a multiple of the divisor, so that there the padding depends on
    the batch.

    An image that cannot be read, or that is not as large as its annotations say, counts against ``skips``; its batch is
    shorter by one.
    """

    def __init__(
        self, plan: Plan, skips: Skips, *, rank: int = 0, world_size: int = 1, device: torch.device = _CPU
    ) -> None:
        """Make a loader; use `DetectionData.train_loader` and `DetectionData.val_loader`.

        Raises:
            UserError: The batch is larger than the set, or cannot be split evenly over the processes.
        """
        if plan.batch_size < 1:
            raise UserError(f"batch size {plan.batch_size}: expected 1 or more")
        if plan.training and plan.batch_size > len(plan.index):
            raise UserError(
                f"batch size {plan.batch_size} is larger than the training set of {len(plan.index)} images:"
                f" use --batch-size {len(plan.index)} or less"
            )
        if plan.training and plan.batch_size % world_size:
            raise UserError(f"batch size {plan.batch_size} cannot be split evenly over {world_size} processes")
        self._plan = plan
        self._skips = skips
        self._rank = rank
        self._world_size = world_size
        self._device = device
        self._epoch = 0
        self._most = max(1, int(plan.index.counts.max(initial=0)))

    @property
    def plan(self) -> Plan:
        """What is gone through."""
        return self._plan

    def __len__(self) -> int:
        """Steps of one pass of this process."""
        return len(self._slices())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the passes that follow."""
        self._epoch = epoch

    def shard(self, rank: int, world_size: int) -> "DetectionLoader":
        """The loader of one process of many: its contiguous slice of each global batch.

        Raises:
            UserError: The training batch cannot be split evenly.
            ValueError: The rank is out of range.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        loader = DetectionLoader(self._plan, self._skips, rank=rank, world_size=world_size, device=self._device)
        loader.set_epoch(self._epoch)
        return loader

    def to(self, device: torch.device) -> "DetectionLoader":
        """This loader with its batches on a device, where the bytes of the images become numbers."""
        self._device = device
        return self

    def __iter__(self) -> Iterator[DetectionBatch]:
        """One pass over the epoch."""
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[DetectionBatch]:
        """One pass from step `start` on; the steps before are not decoded (for resuming in the middle of an epoch)."""
        slices = self._slices()[start:]
        waiting: deque[list[Future[_Sample]]] = deque()
        pool = ThreadPoolExecutor(max(1, self._plan.workers))
        try:
            with decode.quiet_pillow():
                for rows in slices:
                    waiting.append([pool.submit(self._sample, int(i), self._epoch) for i in rows])
                    if len(waiting) > _AHEAD:
                        yield from self._collated(waiting.popleft())
                while waiting:
                    yield from self._collated(waiting.popleft())
        finally:  # also where the caller stops early
            pool.shutdown(cancel_futures=True)

    def _slices(self) -> list[Int64[np.ndarray, " _"]]:
        """The images of each batch of this process."""
        plan, count = self._plan, len(self._plan.index)
        order = np.arange(count)
        if plan.training:
            order = keys.generator(plan.seed, self._epoch, keys.Stream.ORDER).permutation(count)
            order = order[: count // plan.batch_size * plan.batch_size]
        batches = [order[at : at + plan.batch_size] for at in range(0, len(order), plan.batch_size)]
        rank, world = self._rank, self._world_size
        mine = [batch[len(batch) * rank // world : len(batch) * (rank + 1) // world] for batch in batches]
        return [batch for batch in mine if len(batch)]

    def _sample(self, image: int, epoch: int) -> _Sample:
        plan = self._plan
        index, (height, width) = plan.index, (int(side) for side in plan.index.sizes[image])
        placement = self._placement(image, epoch, height, width)
        try:
            picture = decode.rgb(index.read(image), bits=index.bits)
            if (picture.height, picture.width) != (height, width):
                raise decode.BadImageError(
                    f"it has {picture.width} x {picture.height} pixels, its annotations say {width} x {height}"
                )
        except (decode.BadImageError, OSError) as error:
            return _Sample(image, placement, str(error))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        boxes = torch.from_numpy(index.boxes[index.of(image)].astype(np.float32))
        return _Sample(image, placement, lay(pixels, boxes, placement))

    def _placement(self, image: int, epoch: int, height: int, width: int) -> Placement:
        plan, own = self._plan, np.array([image])
        factor, corner, mirrored = 1.0, (0.0, 0.0), False
        if plan.scales is not None:
            drawn = keys.uniforms(plan.seed, epoch, keys.Stream.SCALE, own, 3)[0]
            low, high = plan.scales
            factor, corner = low + (high - low) * float(drawn[0]), (float(drawn[1]), float(drawn[2]))
        if plan.flip:
            mirrored = bool(keys.uniforms(plan.seed, epoch, keys.Stream.FLIP, own, 1)[0, 0] < 0.5)
        return place(height, width, plan.frame, factor=factor, mirrored=mirrored, corner=corner)

    def _collated(self, futures: list["Future[_Sample]"]) -> Iterator[DetectionBatch]:
        """The batch; none where no image of it can be read."""
        good: list[tuple[_Sample, Placed]] = []
        for future in futures:
            sample = future.result()
            if isinstance(sample.placed, str):
                name = self._plan.index.names[sample.image]
                if name not in self._skips.found:
                    self._skips.add(name, sample.placed)
            else:
                good.append((sample, sample.placed))
        if good:
            yield self._batch(good)

    def _batch(self, samples: list[tuple[_Sample, Placed]]) -> DetectionBatch:
        plan, count = self._plan, len(samples)
        height, width = (self._side(max(placed.pixels.shape[axis] for _, placed in samples)) for axis in (1, 2))
        pixels = fill(height, width).repeat(count, 1, 1, 1)
        boxes, areas = torch.zeros(count, self._most, 4), torch.zeros(count, self._most)
        labels = torch.full((count, self._most), -1)
        crowd = torch.zeros(count, self._most, dtype=torch.bool)
        scales = torch.ones(count, 2)
        for row, (sample, placed) in enumerate(samples):
            pixels[row, :, : placed.pixels.shape[1], : placed.pixels.shape[2]] = placed.pixels
            own = plan.index.of(sample.image)
            marked = torch.from_numpy(plan.index.crowd[own])
            # In training a box that is cut off, or around a crowd, is none; in validation every box counts.
            keep = placed.kept & ~marked if plan.training else torch.ones_like(marked)
            there = int(keep.sum())
            boxes[row, :there] = placed.boxes[keep]
            labels[row, :there] = torch.from_numpy(plan.index.labels[own])[keep]
            crowd[row, :there] = marked[keep]
            areas[row, :there] = torch.from_numpy(plan.index.areas[own].astype(np.float32))[keep]
            original = plan.index.sizes[sample.image]
            scales[row] = torch.tensor(
                [sample.placement.width / float(original[1]), sample.placement.height / float(original[0])]
            )
        sizes = torch.tensor([self._valid(sample.placement) for sample, _ in samples])
        numbers = (boxes, labels, crowd, areas, sizes, scales, torch.tensor([sample.image for sample, _ in samples]))
        images = augment.to_float(on_device.send(pixels, self._device))
        return DetectionBatch(images, *(self._send(value) for value in numbers))

    def _send(self, value: Tensor) -> Tensor:
        return on_device.send(value, self._device)

    def _valid(self, to: Placement) -> tuple[int, int]:
        """How far down and to the right an image reaches in its frame."""
        return min(to.frame[0], to.top + to.height), min(to.frame[1], to.left + to.width)

    def _side(self, side: int) -> int:
        return -(-side // self._plan.divisor) * self._plan.divisor
