"""From an image and its boxes to a frame and its boxes, by torchvision's transforms; every number is given."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

FILL = (124.0, 116.0, 104.0)
"""Where a frame holds no image: the mean color of ImageNet, which is about zero behind the normalization."""

LEAST_VISIBLE = 0.25
"""Share of a box that a crop has to leave for it to be learned. Chosen."""

LEAST_SIDE = 1.0
"""Pixels that a box has to have in both directions to be learned."""


@dataclass(frozen=True)
class Frame:
    """How images are laid into the frame of a batch.

    Attributes:
        size: Side of the square frame, or with ``longest`` the shorter side of the image.
        longest: Longer side that is not exceeded; None: a square frame.
    """

    size: int
    longest: int | None = None

    def ratio(self, height: int, width: int) -> float:
        """Pixels of the frame for each pixel of an image of this size."""
        longer, shorter = max(height, width), min(height, width)
        return self.size / longer if self.longest is None else min(self.size / shorter, self.longest / longer)


class Placement(NamedTuple):
    """Where an image comes to lie.

    Attributes:
        height: Of the resized image.
        width: Of the resized image.
        top: Of the image in the frame; below zero where it is cut off.
        left: Of the image in the frame.
        frame: Height and width of the frame.
        mirrored: Whether the image is mirrored, before it is placed.
    """

    height: int
    width: int
    top: int
    left: int
    frame: tuple[int, int]
    mirrored: bool


class Placed(NamedTuple):
    """An image in its frame.

    Attributes:
        pixels: The frame.
        boxes: In pixels of the frame, cut off at its edges.
        kept: Which of the boxes are still to be learned.
    """

    pixels: UInt8[Tensor, "3 h w"]
    boxes: Float32[Tensor, "m 4"]
    kept: Bool[Tensor, " m"]


def place(
    height: int,
    width: int,
    frame: Frame,
    *,
    factor: float = 1.0,
    mirrored: bool = False,
    corner: tuple[float, float] = (0.0, 0.0),
) -> Placement:
    """Where an image comes to lie.

    Args:
        height: Of the image.
        width: Of the image.
        frame: How it is laid.
        factor: Drawn scale, times that of the frame.
        mirrored: Whether it is mirrored.
        corner: Two numbers from 0 to 1: where in a square frame the image lies, or which part of it is cut out.
    """
    ratio = frame.ratio(height, width) * factor
    h, w = max(1, round(height * ratio)), max(1, round(width * ratio))
    if frame.longest is not None:
        return Placement(h, w, 0, 0, (h, w), mirrored)
    top, left = round(corner[0] * (frame.size - h)), round(corner[1] * (frame.size - w))
    return Placement(h, w, top, left, (frame.size, frame.size), mirrored)


def lay(pixels: UInt8[Tensor, "3 a b"], boxes: Float32[Tensor, "m 4"], to: Placement) -> Placed:
    """Resize, mirror and place an image with its boxes.

    Example:
        >>> to = place(4, 8, Frame(16))
        >>> placed = lay(torch.zeros(3, 4, 8, dtype=torch.uint8), torch.tensor([[1.0, 1.0, 3.0, 3.0]]), to)
        >>> placed.pixels.shape, placed.boxes.tolist()
        (torch.Size([3, 16, 16]), [[2.0, 2.0, 6.0, 6.0]])
    """
    held = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(pixels.shape[1:]))  # pyright: ignore[reportCallIssue, reportArgumentType]
    image: Tensor = pixels
    if tuple(pixels.shape[1:]) != (to.height, to.width):
        image = functional.resize(image, [to.height, to.width], antialias=True)
        held = functional.resize(held, [to.height, to.width])
    if to.mirrored:
        image, held = functional.horizontal_flip(image), functional.horizontal_flip(held)
    whole = _areas(held.as_subclass(Tensor))
    rows, columns = to.frame
    below, right = max(0, rows - to.top - to.height), max(0, columns - to.left - to.width)
    padding = [max(0, to.left), max(0, to.top), right, below]
    if any(padding):
        image = functional.pad(image, padding, fill=list(FILL))
        held = functional.pad(held, padding)
    window = [max(0, -to.top), max(0, -to.left), rows, columns]
    if tuple(image.shape[1:]) != to.frame:
        image = functional.crop(image, *window)
        held = functional.crop(held, *window)
    laid = functional.clamp_bounding_boxes(held).as_subclass(Tensor)
    sides = laid[:, 2:] - laid[:, :2]
    kept = (sides >= LEAST_SIDE).all(1) & (_areas(laid) >= LEAST_VISIBLE * whole)
    return Placed(image.contiguous(), laid, kept)


def _areas(boxes: Float32[Tensor, "m 4"]) -> Float32[Tensor, " m"]:
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0)
    return sides[:, 0] * sides[:, 1]


def fill(height: int, width: int) -> UInt8[Tensor, "3 h w"]:
    """A frame without an image."""
    return torch.tensor(FILL).to(torch.uint8)[:, None, None].expand(3, height, width).contiguous()
