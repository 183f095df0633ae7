"""Norms that rescale: each channel over the batch, or each row over its channels. None remembers anything."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck import losses
from limbeck.errors import UserError


@final
class BatchNorm(nn.Module):
    """Zero mean and unit variance of each channel over the batch: ``(x - mean_n x) / sqrt(var_n x + eps)``.

    The variance is the biased one (over N), and N counts all leading dimensions: samples, or samples times positions.
    The statistics are those of the batch, in training and in evaluation, on the teacher's side as well. It removes
    scale and mean of every channel, so that a loss behind it sees only how a channel varies over the batch, and weak
    channels count as much as strong ones. The output's scale depends on neither N nor D; its noise falls with N. A
    channel whose variance is far below eps, also a constant one, goes to zero.

    A bias before it is cancelled, and its input's scale too: under it, columns of a linear projector only turn.

    Args:
        d: Number of channels, the size of the last dimension.
        eps: Added to the variance. The paper's 1e-4 is ten times the framework's default.

    Raises:
        UserError: If d is below 1 or eps not positive; on a call, if the last dimension is not d or there are fewer
            than two rows (of one row every channel would be zero).

    Deviates from: the paper in nothing. The published DeiT code has eps = 0, which PyTorch refuses by now.

    References:
        S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
        Shift", ICML 2015, algorithm 1, without its last line.
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        section on normalization and implementation details.

    Example:
        >>> import torch
        >>> BatchNorm(2, eps=1e-12)(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """

    def __init__(self, d: int, *, eps: float = 1e-4) -> None:
        super().__init__()
        check_width("BatchNorm", d, least=1)
        check_eps("BatchNorm", eps)
        self.d = d
        self.eps = eps

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The normalized features, in at least float32; see the class."""
        rows = prepare("BatchNorm", x, self.d).reshape(-1, self.d)
        if rows.shape[0] < 2:
            raise UserError(f"BatchNorm: rows in the batch: {rows.shape[0]}; batch statistics need at least 2")
        # The kernel is careless of large means in float32 (on a CPU, with mean 10^4 and deviation 1, results are off by
        # 0.1, and a constant channel of 10^6 comes out as 1). Any constant may be taken off first, and a row of the
        # batch makes constant channels exactly zero. It cancels in the result, so it needs no gradient.
        rows = rows - rows[:1].detach()
        return F.batch_norm(rows, None, None, training=True, eps=self.eps).reshape(x.shape)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.d}, eps={self.eps}"


@final
class L2(nn.Module):
    """Unit length of each row: ``x / |x|``.

    It removes the length of every sample's feature and keeps its direction, so a common mean stays. Elements come out
    with a size of about ``1/sqrt(D)``: a sum of squared differences behind it is at most 4 a row, whatever D is, and a
    mean over elements falls as 1/D.

    Args:
        eps: A row that is no longer, also a zero one, becomes zero and gets no gradient.

    Raises:
        UserError: If eps is not positive.

    Deviates from: the framework's ``F.normalize`` for such rows; see :func:`limbeck.losses.unit_rows`.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        table 1 (6.1 in the reprint in R. Miles's thesis), row "L2".

    Example:
        >>> import torch
        >>> L2()(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__()
        check_eps("L2", eps)
        self.eps = eps

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The normalized features, in at least float32; see the class."""
        return losses.unit_rows(prepare("L2", x, None), eps=self.eps)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"eps={self.eps}"


@final
class LayerNorm(nn.Module):
    """Zero mean and unit variance of each row over its channels: ``(x - mean_j x) / sqrt(var_j x + eps)``.

    It removes the scale and the offset of every sample's feature, and keeps what distinguishes the channels, also
    their means over the batch. Rows do not see each other, so a batch of one is fine. Elements have unit size
    whatever N and D are.

    Args:
        d: Number of channels, the size of the last dimension.
        eps: Added to the variance.

    Raises:
        UserError: If d is below 2 (one channel would always give zero) or eps not positive; on a call, if the last
            dimension is not d.

    Deviates from: the reference's learned gain and bias, which are left out as they are from the other norms here.

    References:
        J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv 1607.06450, 2016, equation 3.

    Example:
        >>> import torch
        >>> LayerNorm(2)(torch.tensor([[1.0, 5.0], [3.0, 3.0]])).round(decimals=4)
        tensor([[-1.,  1.],
                [ 0.,  0.]])
    """

    def __init__(self, d: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        check_width("LayerNorm", d, least=2)
        check_eps("LayerNorm", eps)
        self.d = d
        self.eps = eps

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The normalized features, in at least float32; see the class."""
        return F.layer_norm(prepare("LayerNorm", x, self.d), (self.d,), eps=self.eps)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.d}, eps={self.eps}"


@final
class GroupNorm(nn.Module):
    """Zero mean and unit variance of each group of neighboring channels in each row.

    As :class:`LayerNorm`, which is the case of one group, but over ``d / groups`` channels at a time: it also removes
    the relative scale of the groups. Rows do not see each other. Elements have unit size whatever N and D are.

    Args:
        groups: Number of groups; divides d and leaves at least two channels each.
        d: Number of channels, the size of the last dimension.
        eps: Added to the variance.

    Raises:
        UserError: If the groups do not divide d or have one channel (its output would always be zero), or eps is not
            positive; on a call, if the last dimension is not d.

    Deviates from: the paper's code, which has 16 groups and eps = 0, where constant groups give NaN.

    References:
        Y. Wu, K. He, "Group Normalization", ECCV 2018, equations 1, 2 and 7, without gain and bias.
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        table 1 (6.1 in the reprint in R. Miles's thesis), row "GroupNorm".

    Example:
        >>> import torch
        >>> GroupNorm(2, 4)(torch.tensor([[1.0, 5.0, 30.0, 20.0]])).round(decimals=4)
        tensor([[-1.,  1.,  1., -1.]])
    """

    def __init__(self, groups: int, d: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        check_width("GroupNorm", d, least=2)
        check_eps("GroupNorm", eps)
        if groups < 1 or d % groups != 0 or groups == d:
            raise UserError(
                f"GroupNorm: got {groups} groups of {d} channels; expected a divisor of {d}, 2 or more channels each"
            )
        self.groups = groups
        self.d = d
        self.eps = eps

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The normalized features, in at least float32; see the class."""
        width = self.d // self.groups
        grouped = prepare("GroupNorm", x, self.d).reshape(*x.shape[:-1], self.groups, width)
        return F.layer_norm(grouped, (width,), eps=self.eps).reshape(x.shape)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.groups}, {self.d}, eps={self.eps}"


def prepare(name: str, x: Tensor, d: int | None) -> Tensor:
    """The input in at least float32, after the checks that every norm shares."""
    if not x.is_floating_point():
        raise UserError(f"{name}: got {x.dtype}; expected floating point")
    if x.ndim < 2 or (d is not None and x.shape[-1] != d):
        raise UserError(f"{name}: got {tuple(x.shape)}; expected (n, {'d' if d is None else d})")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_width(name: str, d: int, *, least: int) -> None:
    """Refuse too few channels."""
    if d < least:
        raise UserError(f"{name}: d is {d}; expected at least {least}")


def check_eps(name: str, eps: float) -> None:
    """Refuse a floor that is none."""
    if not eps > 0:
        raise UserError(f"{name}: eps is {eps}; expected a number above 0")
