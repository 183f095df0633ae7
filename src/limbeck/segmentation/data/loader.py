"""Batches of images with masks in a fixed order, the same for the same (seed, epoch, image)."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from limbeck.data import augment, decode, keys, on_device
from limbeck.data.fetch import Skips
from limbeck.data.stream import Order, Stream
from limbeck.segmentation.batch import SegmentationBatch
from limbeck.segmentation.data.index import MaskIndex
from limbeck.segmentation.data.transforms import JITTER, Drawn, Laid, crop, ratio_of, whole

Sample = tuple[int, Laid]
SegmentationLoader = Stream[Sample, SegmentationBatch]


@dataclass(frozen=True)
class Plan:
    """What a loader goes through.

    Attributes:
        index: The images and their masks.
        side: Of the square frames of training; outside of it images are whole.
        divisor: Height and width of a frame are multiples of it.
        shorter: Pixels that the shorter side of every image gets first; None: it keeps its size.
        batch_size: Of the global batch, which the processes share.
        seed: Of the order and the augmentation.
        training: Shuffled, cropped, the last short batch dropped.
        scales: Smallest and largest factor that is drawn; None: nothing is drawn, and crops are central.
        flip: Mirror half of the images.
        workers: Threads that decode; 0 as 1.
    """

    index: MaskIndex
    side: int
    divisor: int
    shorter: int | None
    batch_size: int
    seed: int = 0
    training: bool = False
    scales: tuple[float, float] | None = None
    flip: bool = False
    workers: int = 0


def segmentation_loader(plan: Plan, skips: Skips) -> SegmentationLoader:
    """A loader; outside of training a batch has images of one size alone, so that none is padded for another.

    Raises:
        UserError: The batch is larger than the set.
    """
    frames = _Frames(plan)
    groups = np.unique(plan.index.sizes, axis=0, return_inverse=True)[1].ravel().tolist() if len(plan.index) else []
    order = Order(plan.index.names, plan.batch_size, plan.seed, plan.training, plan.workers, tuple(groups))
    return Stream(order, frames.sample, frames.batch, skips)


@final
class _Frames:
    """Lays the images of a plan into frames, and these into batches."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def sample(self, image: int, epoch: int) -> Sample:
        plan = self._plan
        picture = decode.rgb(plan.index.read(image), bits=plan.index.bits)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        mask = torch.from_numpy(plan.index.mask(image))
        if pixels.shape[1:] != mask.shape:
            raise decode.BadImageError(f"it has {tuple(pixels.shape[1:])} pixels, its mask {tuple(mask.shape)}")
        ratio = ratio_of((mask.shape[0], mask.shape[1]), plan.shorter)
        if plan.training:
            return image, crop(pixels, mask, plan.side, ratio, self._drawn(image, epoch))
        return image, whole(pixels, mask, plan.divisor, ratio)

    def _drawn(self, image: int, epoch: int) -> Drawn:
        plan, own = self._plan, np.array([image])
        if plan.scales is None:
            return Drawn()
        factor, top, left = keys.uniforms(plan.seed, epoch, keys.Stream.SCALE, own, 3)[0].tolist()
        colors = 1 + JITTER * (2 * keys.uniforms(plan.seed, epoch, keys.Stream.COLOR, own, 3)[0] - 1)
        mirrored = plan.flip and bool(keys.uniforms(plan.seed, epoch, keys.Stream.FLIP, own, 1)[0, 0] < 0.5)
        low, high = plan.scales
        brightness, contrast, saturation = colors.tolist()
        return Drawn(low + (high - low) * factor, (top, left), mirrored, (brightness, contrast, saturation))

    def batch(self, samples: list[Sample], device: torch.device) -> SegmentationBatch:
        pixels = torch.stack([laid.pixels for _, laid in samples])
        masks = torch.stack([laid.mask for _, laid in samples])
        index = torch.tensor([image for image, _ in samples])
        return SegmentationBatch(
            augment.to_float(on_device.send(pixels, device)),
            on_device.send(masks, device),
            samples[0][1].size,
            on_device.send(index, device),
        )
