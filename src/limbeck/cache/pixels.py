"""One number an image by which its pixels are known again."""

import functools
import math

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from limbeck.data import keys


def sketch(images: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, " n"]:
    """A weighted sum of each image's pixels; the weights are fixed random numbers, 0.5 to 1 with a random sign.

    Up to 100 pixels a side a change of one pixel by one step of 255 moves it by more than `tolerance`; a shift or a
    mirror image moves it by far more. It costs a pass over the batch, about a thousandth of a training step.
    """
    flat = images.flatten(1)
    return flat @ _weights(flat.shape[1]).to(images.device)


def tolerance(images: Float32[Tensor, "n 3 h w"]) -> float:
    """What rounding may do to a sketch: sums are taken in another order on another machine."""
    return 1e-5 * math.sqrt(images[0].numel())


@functools.lru_cache(maxsize=2)
def _weights(count: int) -> Float32[Tensor, " count"]:
    size, sign = keys.uniforms(0, 0, keys.Stream.SKETCH, np.arange(count), 2).T
    return torch.from_numpy((0.5 + size / 2) * np.where(sign < 0.5, -1, 1)).to(torch.float32)
