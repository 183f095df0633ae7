"""What images with boxes a run uses, as one value that needs no torch."""

from dataclasses import dataclass
from typing import Literal

FORMATS = ("coco:FILE", "yolo:FOLDER", "voc:FOLDER")
"""Spellings that say the format; a bare path is looked at, and what it is, is said."""


@dataclass(frozen=True)
class DetectionSpec:
    """Images with boxes, and what is done to them.

    Attributes:
        source: ``coco:FILE.json``, ``yolo:FOLDER``, ``voc:FOLDER``, or a file or folder whose format shows.
        val: A second source to validate on: its validation part, or all of it; classes are matched by their names.
            None: the source's own validation part, or a share.
        val_share: The share of the images that is held back where the source has no validation part, chosen by a hash
            of the file name.
        size: With ``longest`` the shorter side of the images in pixels, else the side of the square frame into which
            the whole image is fitted. None: by the images, at most 640.
        longest: The longer side that is not exceeded, as in the COCO literature (800 and 1333).
        scales: Smallest and largest factor on ``size`` in training. None: 0.8 to 1 with ``longest`` (640 to 800 of
            800, detectron2's), else 0.8 to 1.25 (torchvision's and RetinaNet's scale jitter).
        augmentation: ``none`` or ``standard`` (mirror images and scales).
        flip: Whether mirror images are allowed.
        classes: Use these classes alone, in this order. Empty: all.
        subset: Use this share of the training images, chosen by a hash of the name.
        train_limit: Use at most this many training images.
        on_bad: ``refuse`` annotations with faults, or ``skip`` the images that have them; both list the faults.
        skip_bad_images: Tolerate this many images that turn out to be unreadable in training.
        workers: Threads that decode. None: one for each processor, at most 16.
    """

    source: str
    val: str | None = None
    val_share: float = 0.1
    size: int | None = None
    longest: int | None = None
    scales: tuple[float, float] | None = None
    augmentation: Literal["none", "standard"] = "standard"
    flip: bool = True
    classes: tuple[str, ...] = ()
    subset: float = 1.0
    train_limit: int | None = None
    on_bad: Literal["refuse", "skip"] = "refuse"
    skip_bad_images: int = 0
    workers: int | None = None
