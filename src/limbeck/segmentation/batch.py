"""Images with their masks as tensors of one shape."""

from typing import NamedTuple

from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from limbeck.errors import UserError

VOID = 255
"""The number of a place that belongs to no class: it is not learned and not scored."""

UNKNOWN = 254
"""What a number becomes that the classes do not know."""

MOST_CLASSES = 254


class SegmentationBatch(NamedTuple):
    """Images in one frame, and their masks.

    Attributes:
        images: In [0, 1], not normalized; what of the frame is no image has the mean color.
        masks: The class of each pixel, or ``VOID``. In training of the frame; in validation of the image's file, whose
            size may differ.
        size: Height and width of the images in the frame, from the left top on; in training all of it.
        index: Which images of the part these are.
    """

    images: Float32[Tensor, "n 3 h w"]
    masks: UInt8[Tensor, "n a b"]
    size: tuple[int, int]
    index: Int64[Tensor, " n"]  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index)


def check_batch(batch: object) -> SegmentationBatch:
    """The batch itself; UserError where it is of another kind."""
    if not isinstance(batch, SegmentationBatch):
        raise UserError(f"segmentation reads limbeck.segmentation.SegmentationBatch, got a {type(batch).__name__}")
    return batch
