"""Images with their boxes as tensors of one shape, and detections in rows."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from limbeck.errors import UserError

NONE = -1
"""The label of a row that holds no box."""


class DetectionBatch(NamedTuple):
    """Images in one frame, and their boxes, each image with as many rows as the image with most boxes has.

    Attributes:
        images: In [0, 1], not normalized; what of the frame is no image has the mean color.
        boxes: Left, top, right, bottom in pixels of the frame; zero where there is none.
        labels: Class numbers; -1 where there is no box.
        crowd: Whether a box is around a crowd: it is not learned, and detections in it are not counted as wrong.
        areas: Area of each object in pixels of the file, for the average precision by size.
        sizes: Height and width of the image in the frame, which begins at the left top where it is not augmented.
        scales: Pixels of the frame for each pixel of the file, across and down.
        index: Which images of the part these are.
    """

    images: Float32[Tensor, "n 3 h w"]
    boxes: Float32[Tensor, "n m 4"]
    labels: Int64[Tensor, "n m"]
    crowd: Bool[Tensor, "n m"]
    areas: Float32[Tensor, "n m"]
    sizes: Int64[Tensor, "n 2"]
    scales: Float32[Tensor, "n 2"]
    index: Int64[Tensor, " n"]  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index)


class Detections(NamedTuple):
    """What was found, a row each, the rows of an image in the order of their scores.

    Attributes:
        image: Which image.
        boxes: Left, top, right, bottom.
        scores: Confidence, 0 to 1.
        labels: Class numbers.
    """

    image: Int64[Tensor, " k"]
    boxes: Float[Tensor, "k 4"]
    scores: Float[Tensor, " k"]
    labels: Int64[Tensor, " k"]


class Truth(NamedTuple):
    """What is there, a row each.

    Attributes:
        images: Every image that was looked at, with objects or without.
        image: Which image an object is in.
        boxes: Left, top, right, bottom, in pixels of the file.
        labels: Class numbers.
        crowd: Whether it is a crowd.
        areas: Area in pixels of the file.
    """

    images: Int64[Tensor, " n"]
    image: Int64[Tensor, " k"]
    boxes: Float[Tensor, "k 4"]
    labels: Int64[Tensor, " k"]
    crowd: Bool[Tensor, " k"]
    areas: Float[Tensor, " k"]


def truth_of(batch: DetectionBatch) -> Truth:
    """The objects of a batch in pixels of their files.

    Example:
        >>> batch = DetectionBatch(
        ...     images=torch.zeros(1, 3, 8, 8),
        ...     boxes=torch.tensor([[[2.0, 2.0, 6.0, 8.0], [0.0, 0.0, 0.0, 0.0]]]),
        ...     labels=torch.tensor([[4, -1]]),
        ...     crowd=torch.zeros(1, 2, dtype=torch.bool),
        ...     areas=torch.tensor([[6.0, 0.0]]),
        ...     sizes=torch.tensor([[8, 8]]),
        ...     scales=torch.tensor([[2.0, 2.0]]),
        ...     index=torch.tensor([7]),
        ... )
        >>> truth_of(batch).boxes.tolist(), truth_of(batch).image.tolist()
        ([[1.0, 1.0, 3.0, 4.0]], [7])
    """
    there = (batch.labels != NONE).nonzero(as_tuple=True)  # by numbers: a mask is read from the device at each use
    row = there[0]
    return Truth(
        images=batch.index,
        image=batch.index[row],
        boxes=batch.boxes[there] / in_corners(batch.scales)[row],
        labels=batch.labels[there],
        crowd=batch.crowd[there],
        areas=batch.areas[there],
    )


def in_corners(pairs: Float[Tensor, "n 2"]) -> Float[Tensor, "n 4"]:
    """A value across and one down for each of the four numbers of a box."""
    return pairs.repeat(1, 2)


def learned(batch: DetectionBatch) -> list[dict[str, Tensor]]:
    """The boxes that are learned, as torchvision's detectors take them: a dictionary for each image."""
    wanted = (batch.labels != NONE) & ~batch.crowd
    order = wanted.int().argsort(dim=1, descending=True, stable=True)
    counts: list[int] = wanted.sum(1).tolist()  # the only read of the device
    return [
        {"boxes": boxes[rows[:count]], "labels": labels[rows[:count]]}
        for boxes, labels, rows, count in zip(batch.boxes, batch.labels, order, counts, strict=True)
    ]


def check_batch(batch: object) -> DetectionBatch:
    """The batch itself; UserError where it is of another kind."""
    if not isinstance(batch, DetectionBatch):
        raise UserError(f"detection reads limbeck.detection.DetectionBatch, got a {type(batch).__name__}")
    return batch


def joined(parts: list[Detections]) -> Detections:
    """The rows of all of them."""
    return Detections(*(torch.cat(column) for column in zip(*parts, strict=True)))
