"""What images with masks a run uses, as one value that needs no torch."""

from dataclasses import dataclass
from typing import Literal

from limbeck.data.problems import OnBad


@dataclass(frozen=True)
class SegmentationSpec:
    """Images with masks, and what is done to them.

    Attributes:
        source: A folder of images and masks, see `limbeck.segmentation.data.layouts`.
        val: A second source to validate on: its validation part, or all of it. None: the source's own validation part,
            or a share.
        val_share: The share of the images that is held back where the source has no validation part, chosen by a hash
            of the file name.
        size: Side of the square crops of training, a multiple of 32. None: by the images, at most 512.
        shorter: Pixels that the shorter side of every image gets first. None: images keep their size.
        scales: Smallest and largest factor on the images in training. None: 0.5 to 2, as in DeepLab's and later papers.
        augmentation: ``none`` or ``standard`` (scales, crops, mirror images, colors).
        flip: Whether mirror images are allowed.
        classes: Use these classes alone, in this order; the others are void. Empty: all.
        void: Numbers in the masks that are no class, besides 255 and what the list of classes calls void.
        subset: Use this share of the training images, chosen by a hash of the name.
        train_limit: Use at most this many training images.
        on_bad: ``refuse`` masks with faults, or ``skip`` the images that have them; both list the faults.
        skip_bad_images: Tolerate this many images that turn out to be unreadable in training.
        workers: Threads that decode. None: one for each processor, at most 16.
    """

    source: str
    val: str | None = None
    val_share: float = 0.1
    size: int | None = None
    shorter: int | None = None
    scales: tuple[float, float] | None = None
    augmentation: Literal["none", "standard"] = "standard"
    flip: bool = True
    classes: tuple[str, ...] = ()
    void: tuple[int, ...] = ()
    subset: float = 1.0
    train_limit: int | None = None
    on_bad: OnBad = "refuse"
    skip_bad_images: int = 0
    workers: int | None = None
