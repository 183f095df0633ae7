"""What the rivals share: maps of a common size, and a batch norm of maps that spans all processes."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32


def as_map(name: str, tap: str, x: Tensor, channels: int) -> Float[Tensor, "n c h w"]:
    """A tapped feature as a map of known width; a vector is a map of one position.

    Args:
        name: How messages call the term.
        tap: Where the feature comes from.
        x: The feature.
        channels: What its width has to be.

    Raises:
        UserError: If it is neither a map nor a vector, or of another width.
    """
    if x.ndim not in (2, 4) or x.shape[1] != channels:
        raise UserError(f'{name}: "{tap}" gave {tuple(x.shape)}; expected (n, {channels}) or (n, {channels}, h, w)')
    return x if x.ndim == 4 else x[:, :, None, None]


def to_common_size(
    x_s: Float[Tensor, "n c h_s w_s"], x_t: Float[Tensor, "n d h_t w_t"]
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n d h w"]]:
    """Both maps at the smaller of their sizes, the larger one averaged down."""
    height, width = (min(a, b) for a, b in zip(x_s.shape[2:], x_t.shape[2:], strict=True))
    resized = [x if x.shape[2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width)) for x in (x_s, x_t)]
    return resized[0], resized[1]


@final
class BatchNorm2d(nn.Module):
    """Batch norm of maps with a learned gain and offset, whose statistics are those of all processes' maps.

    As ``nn.BatchNorm2d`` in training: zero mean and unit (biased) variance of each channel over images and positions,
    then ``gain * x + offset``. As :class:`limbeck.norms.BatchNorm`, it has no running statistics: it uses the batch's
    in evaluation too, and computes in at least float32, also under autocast.

    Args:
        channels: Width of the maps.
        eps: Added to the variance; the framework's default, which the published codes have.

    Raises:
        UserError: On a call, if there is one value a channel only, whose variance has no meaning.

    Deviates from: ``nn.SyncBatchNorm``, which is for GPUs alone.

    References:
        S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
        Shift", ICML 2015, algorithm 1.

    Example:
        >>> BatchNorm2d(2)(torch.randn(8, 2, 4, 4)).mean((0, 2, 3)).abs().max().item() < 1e-5
        True
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The normalized maps, in at least float32; see the class."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            count = x.numel() // x.shape[1]
            if collectives.world_size() == 1:
                if count < 2:
                    raise UserError(
                        f"batch norm of a map of {tuple(x.shape)}: got 1 value a channel; expected at least 2"
                    )
                return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
            mean = collectives.global_mean(x.mean((0, 2, 3)), count)
            centered = x - mean[:, None, None]
            scale = self.weight * torch.rsqrt(
                collectives.global_mean(centered.square().mean((0, 2, 3)), count) + self.eps
            )
            return centered * scale[:, None, None] + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.weight.shape[0]}, eps={self.eps}"
