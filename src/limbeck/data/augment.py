"""Augmentation of whole batches: crops, flips, erasing, mixing; parameters come from `keys`, a row for each sample.

Where the images are on an accelerator the work is done there (`on_device`), from the same numbers. On a CPU the byte
work is done by numpy, on one thread: for a batch this small that is as fast as torch on two quiet cores, and the
training step, or other runs, on the same cores do not stall it; torch's threads wait for each other after each call.
"""

import math

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8, UInt64
from torch import Tensor
from torch.nn import functional

from limbeck.data import on_device

ATTEMPTS = 10
BOX_NUMBERS = 2 * ATTEMPTS + 2
"""Uniform numbers that `random_boxes` and `erase` need for each sample."""

# Noise of random erasing: standard normal after the usual normalisation, as in timm, where images are normalised first.
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def pad_crop(
    images: UInt8[Tensor, "n 3 s s"], numbers: Float64[np.ndarray, "n 2"], pad: int
) -> UInt8[Tensor, "n 3 s s"]:
    """Pad with `pad` black pixels and cut out a window of the old size anywhere (CIFAR's protocol: 4 pixels at 32)."""
    corners = (numbers * (2 * pad + 1)).astype(np.int64)
    if images.device.type != "cpu":
        return on_device.pad_crop(images, corners, pad)
    n, _, side, _ = images.shape
    padded = np.zeros((n, 3, side + 2 * pad, side + 2 * pad), np.uint8)
    padded[:, :, pad : pad + side, pad : pad + side] = images.numpy()
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
    return torch.from_numpy(windows[np.arange(n), :, corners[:, 0], corners[:, 1]])


def flip(images: UInt8[Tensor, "n 3 s s"], numbers: Float64[np.ndarray, "n 1"]) -> UInt8[Tensor, "n 3 s s"]:
    """Mirror half of the images left to right; on a CPU in place."""
    mirrored = numbers[:, 0] < 0.5
    if images.device.type != "cpu":
        return on_device.flip(images, mirrored)
    pixels = images.numpy()
    pixels[mirrored] = pixels[mirrored][..., ::-1]
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


def whole_pixels(boxes: Float64[np.ndarray, "n 4"], stored: int) -> Int64[np.ndarray, "n 4"]:
    """Boxes of stored squares in whole pixels, at least one wide and high."""
    edges = np.rint(boxes * stored).astype(np.int64)
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
    return edges


def crop_resize(
    images: UInt8[Tensor, "m 3 t t"], index: Int64[np.ndarray, " n"], edges: Int64[np.ndarray, "n 4"], side: int
) -> UInt8[Tensor, "n 3 s s"]:
    """Cut (left, top, right, bottom) out of the images of these numbers and resize it (bicubic, antialiased).

    On a CPU; `on_device.crop_resize` is for accelerators. About twice as fast where the channels lie last in memory.
    """
    out = torch.empty(len(index), 3, side, side, dtype=torch.uint8)
    for row, i, (left, top, right, bottom) in zip(out, index.tolist(), edges.tolist(), strict=True):
        cut = images[i : i + 1, :, top:bottom, left:right]
        row.copy_(functional.interpolate(cut, size=(side, side), mode="bicubic", antialias=True)[0])
    return out


def erase(
    images: Float32[Tensor, "n 3 s s"],
    numbers: Float64[np.ndarray, "n 23"],
    noise: UInt64[np.ndarray, "n 1"],
    *,
    probability: float = 0.25,
) -> Float32[Tensor, "n 3 s s"]:
    """Random erasing, in place: a box of 2% to 33% of the area, aspect 0.3 to 3.3, is filled with noise for each pixel.

    The noise is drawn on the CPU wherever the images are, so that it is the same, and sent there at once.

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
    erased = np.flatnonzero((numbers[:, 0] < probability) & fits.any(1)).tolist()
    sizes = [(int(heights[i, first[i]]), int(widths[i, first[i]])) for i in erased]
    filled = [_noise(h, w, int(noise[i, 0])).flatten() for i, (h, w) in zip(erased, sizes, strict=True)]
    if not filled:
        return images
    pixels = on_device.send(torch.cat(filled), images.device).split([len(values) for values in filled])
    for i, (h, w), values in zip(erased, sizes, pixels, strict=True):
        top, left = int(numbers[i, -2] * (side - h + 1)), int(numbers[i, -1] * (side - w + 1))
        images[i, :, top : top + h, left : left + w] = values.view(3, h, w)
    return images


def _noise(height: int, width: int, word: int) -> Float32[Tensor, "3 h w"]:
    own = torch.Generator().manual_seed(word & (2**63 - 1))
    return torch.randn(3, height, width, generator=own).mul_(_STD).add_(_MEAN).clamp_(0, 1)


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
    """Mixup or cutmix of the batch with itself in reverse order, in place; one ratio for the batch.

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
    if use_cutmix:
        side = images.shape[-1]
        cut = int(side * math.sqrt(1 - lam))
        y, x = (int(v) for v in random.integers(0, side, size=2))
        top, bottom = max(0, y - cut // 2), min(side, y + (cut + 1) // 2)
        left, right = max(0, x - cut // 2), min(side, x + (cut + 1) // 2)
        box = images[:, :, top:bottom, left:right]
        box.copy_(box.flip(0))
        lam = 1 - (bottom - top) * (right - left) / side**2
    else:
        torch.lerp(images.flip(0), images, lam, out=images)
    if target is None:
        return images, None
    one_hot = functional.one_hot(target, classes).to(torch.float32)
    return images, torch.lerp(one_hot.flip(0), one_hot, lam)


def to_float(images: UInt8[Tensor, "n 3 h w"]) -> Float32[Tensor, "n 3 h w"]:
    """0..255 to [0, 1]."""
    if images.device.type != "cpu":
        return on_device.to_float(images)
    return torch.from_numpy(np.divide(images.numpy(), np.float32(255), dtype=np.float32))
