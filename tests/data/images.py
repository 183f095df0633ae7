"""Tiny image folders for the tests of the data."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 12, height: int = 12) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def folder(root: Path, classes: dict[str, int], *, width: int = 12, height: int = 12, kind: str = "png") -> Path:
    """A folder of class folders with so many pictures each."""
    for c, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(1000 * c + i, width, height).save(root / name / f"{i:03d}.{kind}")
    return root
