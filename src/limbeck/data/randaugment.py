"""RandAugment (magnitude 9, two operations, magnitude noise 0.5, increasing) on a whole uint8 batch at once."""

import math

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from limbeck.data.on_device import send

OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
LAYERS = 2
NUMBERS = 5 * LAYERS
"""Uniform numbers that `rand_augment` needs for each sample."""

_GEOMETRIC = frozenset({"rotate", "shear_x", "shear_y", "translate_x", "translate_y"})
_FILL = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1)  # ImageNet's mean color, as timm fills what moves in


def rand_augment(
    images: UInt8[Tensor, "n 3 s s"],
    numbers: Float64[np.ndarray, "n 10"],
    *,
    magnitude: float = 9.0,
    noise: float = 0.5,
    probability: float = 0.5,
) -> UInt8[Tensor, "n 3 s s"]:
    """Two operations for each image, each of fifteen with equal chance, each then applied with chance 1/2.

    The magnitude m ~ N(9, 0.5) is clipped to [0, 10]; the operations and what m means to each are those of timm's
    `rand-m9-mstd0.5-inc1`, the setting of DeiT. Images that drew the same operation are computed together, where they
    are; on an accelerator the geometric operations round as it does, and may differ from a CPU's by one level of 255.

    Deviates from: timm in the resampling of the five geometric operations (bilinear here, bicubic or bilinear there),
    and in that nothing is read from Python's and numpy's global generators, for which timm's own class cannot be used.

    Args:
        images: The batch.
        numbers: Five uniform numbers for each layer: operation, whether, two for the magnitude, sign.
        magnitude: Mean of m.
        noise: Standard deviation of m.
        probability: Chance that a drawn operation is applied.

    References:
        Cubuk et al.: RandAugment. NeurIPS 2020. Touvron et al.: Training data-efficient image transformers. ICML 2021.
    """
    out = images.clone()
    for layer in range(LAYERS):
        which, whether, u, v, sign = numbers[:, 5 * layer : 5 * layer + 5].T
        normal = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * math.pi * v)  # Box and Muller; 1 - u is never 0
        level = np.clip(magnitude + noise * normal, 0, 10) / 10
        signed = np.where(sign < 0.5, -level, level)
        drawn = np.where(whether < probability, (which * len(OPERATIONS)).astype(np.int64), -1)
        for number in np.unique(drawn[drawn >= 0]):
            rows = np.flatnonzero(drawn == number)
            here = send(torch.from_numpy(rows), out.device)
            changed = apply(OPERATIONS[number], out.index_select(0, here), level[rows], signed[rows])
            if out.device.type == "cpu":  # numpy writes single images eight times as fast as torch
                out.numpy()[rows] = changed.numpy()
            else:
                out.index_copy_(0, here, changed)
    return out


def apply(
    operation: str, x: UInt8[Tensor, "n 3 s s"], level: Float64[np.ndarray, " n"], signed: Float64[np.ndarray, " n"]
) -> UInt8[Tensor, "n 3 s s"]:
    """One operation at each image's own level (in [0, 1]; `signed` is the level or its negative)."""
    from torchvision.transforms.v2 import functional as images  # takes seconds, and most runs do not augment so

    if operation in _GEOMETRIC:
        return _geometric(operation, x, signed)
    enhance = _column(np.maximum(0.1, 1 + 0.9 * signed).astype(np.float32), x.device)
    match operation:
        case "autocontrast":
            return images.autocontrast(x)
        case "equalize":
            return images.equalize(x)
        case "invert":
            return 255 - x
        case "posterize":
            dropped = 4 + (level * 4).astype(np.int64)  # keeps 4 bits at level 0, none at level 1
            return x & _column(((0xFF << dropped) & 0xFF).astype(np.uint8), x.device)
        case "solarize":
            threshold = _column(256 - (level * 256).astype(np.int64), x.device)
            return torch.where(x < threshold, x, 255 - x)
        case "solarize_add":
            added = _column(np.minimum(128, (level * 110).astype(np.int64)), x.device)
            return torch.where(x < 128, (x + added).clamp(max=255).to(torch.uint8), x)
        case "color":
            return _blend(x, images.adjust_saturation(x, 0.0), enhance)
        case "contrast":
            return _blend(x, images.adjust_contrast(x, 0.0), enhance)
        case "brightness":
            return _blend(x, torch.zeros_like(x), enhance)
        case "sharpness":
            return _blend(x, _smooth(x), enhance)
        case _:
            raise ValueError(f"no operation {operation!r}")


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    return send(torch.from_numpy(np.ascontiguousarray(values)).view(-1, 1, 1, 1), device)


def _smooth(x: UInt8[Tensor, "n 3 s s"]) -> UInt8[Tensor, "n 3 s s"]:
    """Pillow's SMOOTH, (sum of the 3 x 3 + 4 x its middle) / 13, borders as they are; 2.8 times torchvision's speed."""
    wide = x.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = total.float().div_(13).round_().to(torch.uint8)  # k / 13 is never half-way
    return out


def _blend(
    x: UInt8[Tensor, "n 3 s s"], without: UInt8[Tensor, "n 3 s s"], factor: Float32[Tensor, "n 1 1 1"]
) -> UInt8[Tensor, "n 3 s s"]:
    """Pillow's enhancement: factor 0 is `without`, 1 is x, more overshoots."""
    base = without.float()
    return (base + (x.float() - base) * factor).clamp(0, 255).to(torch.uint8)


def _geometric(
    operation: str, x: UInt8[Tensor, "n 3 s s"], signed: Float64[np.ndarray, " n"]
) -> UInt8[Tensor, "n 3 s s"]:
    """Resample at an affine map of output coordinates in [-1, 1]; shears fix the upper left corner, as in Pillow."""
    a = torch.from_numpy(signed).float()
    theta = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat(len(x), 1, 1)  # on the CPU: a few numbers
    match operation:
        case "rotate":
            angle = -a * math.radians(30)  # counter-clockwise in the picture
            theta[:, 0, 0], theta[:, 0, 1] = angle.cos(), angle.sin()
            theta[:, 1, 0], theta[:, 1, 1] = -angle.sin(), angle.cos()
        case "shear_x":
            theta[:, 0, 1] = theta[:, 0, 2] = 0.3 * a
        case "shear_y":
            theta[:, 1, 0] = theta[:, 1, 2] = 0.3 * a
        case "translate_x":
            theta[:, 0, 2] = 2 * 0.45 * a
        case _:
            theta[:, 1, 2] = 2 * 0.45 * a
    grid = functional.affine_grid(send(theta, x.device), list(x.shape), align_corners=False)
    fill = send(_FILL, x.device)
    moved = functional.grid_sample(x.float() - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved + fill).round_().clamp_(0, 255).to(torch.uint8)
