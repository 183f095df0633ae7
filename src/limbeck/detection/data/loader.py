"""Batches of images with boxes in a fixed order, the same for the same (seed, epoch, image)."""

from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch

from limbeck.data import augment, decode, keys, on_device
from limbeck.data.fetch import Skips
from limbeck.data.stream import Order, Stream
from limbeck.detection import DetectionBatch
from limbeck.detection.data.index import BoxIndex
from limbeck.detection.data.transforms import Frame, Placed, Placement, fill, lay, place


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
    """One image in its frame."""

    image: int
    placement: Placement
    placed: Placed


DetectionLoader = Stream[_Sample, DetectionBatch]
"""Frames that are not square are as large as the largest image of a batch, up to a multiple of the divisor, so that
there the padding depends on the batch."""


def detection_loader(plan: Plan, skips: Skips) -> DetectionLoader:
    """A loader; use `DetectionData.train_loader` and `DetectionData.val_loader`.

    Raises:
        UserError: The batch is larger than the set.
    """
    frames = _Frames(plan)
    order = Order(plan.index.names, plan.batch_size, plan.seed, plan.training, plan.workers)
    return Stream(order, frames.sample, frames.batch, skips)


@final
class _Frames:
    """Lays the images of a plan into frames, and these into batches.

    An image that is not as large as its annotations say cannot be used.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._most = max(1, int(plan.index.counts.max(initial=0)))

    def sample(self, image: int, epoch: int) -> _Sample:
        plan = self._plan
        index, (height, width) = plan.index, (int(side) for side in plan.index.sizes[image])
        picture = decode.rgb(index.read(image), bits=index.bits)
        if (picture.height, picture.width) != (height, width):
            raise decode.BadImageError(
                f"it has {picture.width} x {picture.height} pixels, its annotations say {width} x {height}"
            )
        placement = self._placement(image, epoch, height, width)
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

    def batch(self, samples: list[_Sample], device: torch.device) -> DetectionBatch:
        plan, count = self._plan, len(samples)
        height, width = (self._side(max(sample.placed.pixels.shape[axis] for sample in samples)) for axis in (1, 2))
        pixels = fill(height, width).repeat(count, 1, 1, 1)
        boxes, areas = torch.zeros(count, self._most, 4), torch.zeros(count, self._most)
        labels = torch.full((count, self._most), -1)
        crowd = torch.zeros(count, self._most, dtype=torch.bool)
        scales = torch.ones(count, 2)
        for row, sample in enumerate(samples):
            placed = sample.placed
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
        sizes = torch.tensor([self._valid(sample.placement) for sample in samples])
        numbers = (boxes, labels, crowd, areas, sizes, scales, torch.tensor([sample.image for sample in samples]))
        images = augment.to_float(on_device.send(pixels, device))
        return DetectionBatch(images, *(on_device.send(value, device) for value in numbers))

    def _valid(self, to: Placement) -> tuple[int, int]:
        """How far down and to the right an image reaches in its frame."""
        return min(to.frame[0], to.top + to.height), min(to.frame[1], to.left + to.width)

    def _side(self, side: int) -> int:
        return -(-side // self._plan.divisor) * self._plan.divisor
