"""Bright rectangles on dark images with their masks, which a small net learns in a few steps; for tests."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from limbeck.segmentation.batch import VOID, SegmentationBatch

CLASSES = ("ground", "red", "green")
HEIGHT, WIDTH = 40, 48


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask: a red and a green rectangle, and a column of void at the right."""
    random = np.random.default_rng(number)
    image = (40 + 20 * random.random((height, width, 3))).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for label in (1, 2):
        top, left = random.integers(0, height - 20), (label - 1) * width // 2
        across = slice(left, left + int(random.integers(12, 20)))
        image[top : top + 18, across, label - 1] = 220
        mask[top : top + 18, across] = label
    mask[:, -2:] = VOID
    return image, mask


def write(folder: Path, *, train: int = 16, val: int = 6) -> Path:
    """``train`` and ``val``, each with ``images`` and ``masks``, and ``classes.txt``."""
    number = 0
    for part, count in (("train", train), ("val", val)):
        for name in ("images", "masks"):
            (folder / part / name).mkdir(parents=True)
        for _ in range(count):
            image, mask = picture(number)
            Image.fromarray(image).save(folder / part / "images" / f"{number:02}.png")
            Image.fromarray(mask).save(folder / part / "masks" / f"{number:02}.png")
            number += 1
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def batch(count: int, *, side: int = 32, first: int = 0) -> SegmentationBatch:
    """Square images of the same kind."""
    pairs = [picture(number, side, side) for number in range(first, first + count)]
    images, masks = (torch.from_numpy(np.stack(column)) for column in zip(*pairs, strict=True))
    return SegmentationBatch(
        images.permute(0, 3, 1, 2).float() / 255, masks, (side, side), torch.arange(first, first + count)
    )
