"""Crops, flips and float pixels for batches that are on an accelerator: no loop over images, each one call or two.

What `augment` does on a CPU, from the same numbers and with the same pixels; where a GPU is allowed to multiply float32
with fewer bits (TF32), those of `crop_resize` may differ by one level of 255. Everything here also runs on a CPU, which
is how it is tested, but slower than the forms made for it.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional


def send(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. A GPU fetches it from pinned memory, so that no thread waits for what is queued."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def pad_crop(images: UInt8[Tensor, "n 3 s s"], corners: Int64[np.ndarray, "n 2"], pad: int) -> UInt8[Tensor, "n 3 s s"]:
    """Windows of the padded images, from (top, left) on."""
    side = images.shape[-1]
    top, left = send(torch.from_numpy(corners), images.device).view(-1, 2, 1, 1, 1).unbind(1)
    inside = torch.arange(side, device=images.device)
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(3, device=images.device).view(-1, 1, 1)
    padded = functional.pad(images, (pad, pad, pad, pad))
    return padded[image, channel, top + inside.view(-1, 1), left + inside]


def flip(images: UInt8[Tensor, "n 3 s s"], mirrored: Bool[np.ndarray, " n"]) -> UInt8[Tensor, "n 3 s s"]:
    """Mirror the chosen images left to right."""
    chosen = send(torch.from_numpy(mirrored), images.device).view(-1, 1, 1, 1)
    return torch.where(chosen, images.flip(-1), images)


def to_float(images: UInt8[Tensor, "n 3 h w"]) -> Float32[Tensor, "n 3 h w"]:
    """0..255 to [0, 1]. Divided by a tensor: by a number, a GPU would multiply with a rounded 1/255."""
    return images.float().div_(torch.full((), 255.0, device=images.device))


def crop_resize(
    images: UInt8[Tensor, "n 3 t t"], edges: Int64[np.ndarray, "n 4"], side: int
) -> UInt8[Tensor, "n 3 s s"]:
    """Cut out each image's (left, top, right, bottom) and resize it (bicubic, antialiased), by two matrix products."""
    left, top, right, bottom = edges.T
    across = _weights(left, right, images.shape[-1], side, images.device)
    down = _weights(top, bottom, images.shape[-1], side, images.device)
    half = images.float() @ across.transpose(2, 3)
    half = half.add_(0.5).floor_().clamp_(0, 255)  # in between, a CPU keeps 8 bits as well
    return (down @ half).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def _weights(
    start: Int64[np.ndarray, " n"], end: Int64[np.ndarray, " n"], stored: int, side: int, device: torch.device
) -> Float32[Tensor, "n 1 s t"]:
    """What each of `stored` pixels gives to each of `side` when [start, end) is resized: Keys' cubic with a = -1/2."""
    kind = torch.float32 if device.type == "mps" else torch.float64  # float32 would be off by a unit of the weights
    length = send(torch.from_numpy(end - start), device).to(kind).view(-1, 1, 1)
    first = send(torch.from_numpy(start), device).to(kind).view(-1, 1, 1)
    scale = length / side
    center = (torch.arange(side, device=device, dtype=kind).view(-1, 1) + 0.5) * scale
    position = torch.arange(stored, device=device, dtype=kind) - first
    x = ((position + 0.5 - center) / scale.clamp(min=1)).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = torch.where((position >= 0) & (position < length), weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    # A CPU's are whole numbers of 15 bits; so are these, and their sums are exact in float32.
    bits = (math.log2(2**15 - 0.5) - weights.amax((1, 2), keepdim=True).log2()).ceil() - 1
    unit = torch.exp2(bits.clamp(max=22))
    return ((weights * unit).round_() / unit).float().unsqueeze(1)
