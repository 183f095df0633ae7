"""From an image and its mask to a frame and its mask, by torchvision's transforms; every number is given."""

from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from limbeck.segmentation.batch import VOID

FILL = (124.0, 116.0, 104.0)
"""Where a frame holds no image: the mean color of ImageNet, which is about zero behind the normalization."""

JITTER = 0.25
"""Brightness, contrast and saturation are multiplied by 1 minus to 1 plus this. Chosen; half of mmseg's 0.5."""


class Drawn(NamedTuple):
    """What is drawn for an image of training.

    Attributes:
        factor: On its size.
        corner: Two numbers from 0 to 1: which part is cut out, or where in the frame a smaller image lies.
        mirrored: Whether it is mirrored.
        colors: Factors of brightness, contrast and saturation.
    """

    factor: float = 1.0
    corner: tuple[float, float] = (0.5, 0.5)
    mirrored: bool = False
    colors: tuple[float, float, float] = (1.0, 1.0, 1.0)


class Laid(NamedTuple):
    """An image in its frame, its mask, and how far the image reaches down and to the right."""

    pixels: UInt8[Tensor, "3 h w"]
    mask: UInt8[Tensor, "a b"]
    size: tuple[int, int]


def crop(pixels: UInt8[Tensor, "3 a b"], mask: UInt8[Tensor, "a b"], side: int, ratio: float, drawn: Drawn) -> Laid:
    """A square frame of training: resized, cut out or surrounded, mirrored, recolored; the mask with the image.

    Args:
        pixels: The image.
        mask: Its mask.
        side: Of the frame.
        ratio: Pixels of a resized image for each of its own, before what is drawn.
        drawn: What is drawn.

    Example:
        >>> import torch
        >>> image, mask = torch.zeros(3, 4, 8, dtype=torch.uint8), torch.ones(4, 8, dtype=torch.uint8)
        >>> laid = crop(image, mask, 8, 1.0, Drawn())
        >>> laid.pixels.shape, laid.mask[:, 0].tolist()
        (torch.Size([3, 8, 8]), [255, 255, 1, 1, 1, 1, 255, 255])
    """
    height, width = (max(1, round(length * ratio * drawn.factor)) for length in mask.shape)
    image = tv_tensors.Image(_resized(pixels, height, width))
    # Nearest, by the pixels' centers, as the image is resized; that of v2 for masks is off by half a pixel.
    held = tv_tensors.Mask(_resized(mask[None], height, width, InterpolationMode.NEAREST_EXACT))
    below, right = max(0, side - height), max(0, side - width)
    if below or right:
        top, left = round(drawn.corner[0] * below), round(drawn.corner[1] * right)
        padding = [left, top, right - left, below - top]
        image, held = functional.pad(image, padding, fill=list(FILL)), functional.pad(held, padding, fill=VOID)
    if (height, width) != (side, side):
        top, left = round(drawn.corner[0] * max(0, height - side)), round(drawn.corner[1] * max(0, width - side))
        image, held = (functional.crop(each, top, left, side, side) for each in (image, held))
    if drawn.mirrored:
        image, held = (functional.horizontal_flip(each) for each in (image, held))
    for change, factor in zip(
        (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation),
        drawn.colors,
        strict=True,
    ):
        if factor != 1:
            image = change(image, factor)
    return Laid(image.as_subclass(Tensor).contiguous(), held.as_subclass(Tensor)[0].contiguous(), (side, side))


def whole(pixels: UInt8[Tensor, "3 a b"], mask: UInt8[Tensor, "a b"], divisor: int, ratio: float) -> Laid:
    """The whole image from the left top on, in a frame whose sides are multiples of the divisor; its mask as it is."""
    height, width = (max(1, round(length * ratio)) for length in mask.shape)
    frame = [-(-length // divisor) * divisor for length in (height, width)]
    image = functional.pad(
        _resized(pixels, height, width), [0, 0, frame[1] - width, frame[0] - height], fill=list(FILL)
    )
    return Laid(image.contiguous(), mask, (height, width))


def _resized(
    pixels: UInt8[Tensor, "c a b"],
    height: int,
    width: int,
    mode: InterpolationMode = InterpolationMode.BILINEAR,
) -> UInt8[Tensor, "c h w"]:
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    return functional.resize(pixels, [height, width], interpolation=mode, antialias=True)


def ratio_of(size: tuple[int, int], shorter: int | None) -> float:
    """Pixels of the resized image for each pixel of an image of this size."""
    return 1.0 if shorter is None else shorter / min(size)
