"""Augmentation of whole batches: crops, flips, erasing, mixing; parameters come from `keys`, a row for each sample."""

import math

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8, UInt64
from torch import Tensor
from torch.nn import functional

ATTEMPTS = 10
BOX_NUMBERS = 2 * ATTEMPTS + 2
"""Uniform numbers that `random_boxes` and `erase` need for each sample."""

# Noise of random erasing: standard normal after the usual normalisation, as in timm, where images are normalised first.
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def pad_crop(
    images: UInt8[Tensor, "n 3 s s"], numbers: Float64[np.ndarray, "n 2"], pad: int
) -> UInt8[Tensor, "n 3 s s"]:
    """Pad with `pad` black pixels and cut out a window of the old size anywhere (CIFAR's protocol: 4 pixels at 32).

    One copy of what stays visible of each image; measured 1.5 to 2 times as fast as a gather on a view of all windows.
    """
    side = images.shape[-1]
    out = torch.zeros_like(images)
    source, target = images.numpy(), out.numpy()
    for i, (down, right) in enumerate((numbers * (2 * pad + 1)).astype(np.int64) - pad):
        rows, columns = slice(max(0, down), side + min(0, down)), slice(max(0, right), side + min(0, right))
        to_rows, to_columns = slice(max(0, -down), side - max(0, down)), slice(max(0, -right), side - max(0, right))
        target[i, :, to_rows, to_columns] = source[i, :, rows, columns]
    return out


def flip_(images: UInt8[Tensor, "n 3 s s"], numbers: Float64[np.ndarray, "n 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Mirror half of the images left to right, in place."""
    rows = torch.from_numpy(np.flatnonzero(numbers[:, 0] < 0.5))
    images[rows] = images[rows].flip(-1)
    return images


def random_boxes(width: float, height: float, numbers: Float64[np.ndarray, "n 22"]) -> Float64[np.ndarray, "n 4"]:
    """Boxes of RandomResizedCrop as fractions (left, top, right, bottom): area 0.08 to 1, aspect 3/4 to 4/3.

    As in torchvision: the first of ten proposals that fits into the image, else the largest centred box whose aspect is
    allowed.
    """
    n = len(numbers)
    area = width * height * (0.08 + 0.92 * numbers[:, :ATTEMPTS])
    aspect = np.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * numbers[:, ATTEMPTS : 2 * ATTEMPTS])
    widths, heights = np.sqrt(area * aspect), np.sqrt(area / aspect)
    fits = (widths <= width) & (heights <= height)
    first = fits.argmax(1)
    row = np.arange(n)
    ok = fits[row, first]
    w = np.where(ok, widths[row, first], min(width, height * 4 / 3))
    h = np.where(ok, heights[row, first], min(height, width * 4 / 3))
    left = np.where(ok, numbers[:, -2], 0.5) * (width - w)
    top = np.where(ok, numbers[:, -1], 0.5) * (height - h)
    return np.stack([left / width, top / height, (left + w) / width, (top + h) / height], 1)


def crop_resize(
    images: UInt8[Tensor, "n 3 t t"], boxes: Float64[np.ndarray, "n 4"], side: int
) -> UInt8[Tensor, "n 3 s s"]:
    """Cut out each image's box (rounded to whole pixels) and resize it to side x side (bicubic, antialiased)."""
    stored = images.shape[-1]
    edges = np.rint(boxes * stored).astype(int)
    out = torch.empty(len(images), 3, side, side, dtype=torch.uint8)
    for i, (left, top, right, bottom) in enumerate(edges.tolist()):
        cut = images[i : i + 1, :, top : max(bottom, top + 1), left : max(right, left + 1)]
        out[i] = functional.interpolate(cut, size=(side, side), mode="bicubic", antialias=True)[0]
    return out


def erase(
    images: Float32[Tensor, "n 3 s s"],
    numbers: Float64[np.ndarray, "n 23"],
    noise: UInt64[np.ndarray, "n 1"],
    *,
    probability: float = 0.25,
) -> Float32[Tensor, "n 3 s s"]:
    """Random erasing: a box of 2% to 33% of the area, aspect 0.3 to 3.3, is filled with noise, a value for each pixel.

    Deviates from: timm, which erases normalised images; here the same noise is put through the inverse of ImageNet's
    normalisation and clamped to [0, 1], because one batch serves models with different normalisations.

    References:
        Zhong et al.: Random Erasing Data Augmentation. AAAI 2020.
    """
    side = images.shape[-1]
    area = side * side * (0.02 + (1 / 3 - 0.02) * numbers[:, 1 : 1 + ATTEMPTS])
    aspect = np.exp(math.log(0.3) * (1 - 2 * numbers[:, 1 + ATTEMPTS : 1 + 2 * ATTEMPTS]))
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < side) & (widths < side)
    first = fits.argmax(1)
    out = images.clone()
    for i in np.flatnonzero((numbers[:, 0] < probability) & fits.any(1)):
        h, w = int(heights[i, first[i]]), int(widths[i, first[i]])
        top, left = int(numbers[i, -2] * (side - h + 1)), int(numbers[i, -1] * (side - w + 1))
        own = torch.Generator().manual_seed(int(noise[i, 0]) & (2**63 - 1))
        pixels = torch.randn(3, h, w, generator=own) * _STD + _MEAN
        out[i, :, top : top + h, left : left + w] = pixels.clamp(0, 1).to(out.device)
    return out


def mix(
    images: Float32[Tensor, "n 3 s s"],
    target: Int64[Tensor, " n"] | None,
    classes: int,
    random: np.random.Generator,
    *,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
) -> tuple[Float32[Tensor, "n 3 s s"], Float32[Tensor, "n k"] | None]:
    """Mixup or cutmix of the batch with itself in reverse order; one ratio for the batch.

    mixup: lam x + (1 - lam) x', lam ~ Beta(0.8, 0.8). Cutmix: a box of area 1 - lam, lam ~ Beta(1, 1), comes from x',
    and lam is then the share that really stayed. The target is lam y + (1 - lam) y'; a batch without labels mixes
    images only.

    Deviates from: timm's `Mixup` (mode "batch") only in where the numbers come from: it draws from numpy's global
    generator and so cannot be used here. Label smoothing is the task's, not applied here.

    References:
        Zhang et al.: mixup: Beyond Empirical Risk Minimization. ICLR 2018. Yun et al.: CutMix. ICCV 2019.
    """
    use_cutmix = bool(random.random() < switch)
    lam = float(random.beta(cutmix, cutmix) if use_cutmix else random.beta(mixup, mixup))
    partner = images.flip(0)
    if use_cutmix:
        side = images.shape[-1]
        cut = int(side * math.sqrt(1 - lam))
        y, x = (int(v) for v in random.integers(0, side, size=2))
        top, bottom = max(0, y - cut // 2), min(side, y + (cut + 1) // 2)
        left, right = max(0, x - cut // 2), min(side, x + (cut + 1) // 2)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / side**2
    else:
        mixed = torch.lerp(partner, images, lam)
    if target is None:
        return mixed, None
    one_hot = functional.one_hot(target, classes).to(torch.float32)
    return mixed, torch.lerp(one_hot.flip(0), one_hot, lam)


def to_float(images: UInt8[Tensor, "n 3 s s"]) -> Float32[Tensor, "n 3 s s"]:
    """0..255 to [0, 1]."""
    return torch.div(images, 255)
