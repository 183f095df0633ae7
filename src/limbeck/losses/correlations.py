"""The per-channel correlation of batch-normalized features, and losses that are a function of it."""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.features import log_sum_of_powers
from limbeck.losses.inputs import pair


def correlation(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"]) -> Float[Tensor, " d"]:
    """Per-channel correlation of batch-normalized features: ``c_j = 1/N sum_n z_s[n,j] z_t[n,j]``.

    The diagonal of the cross-correlation matrix, without the matrix. It is a correlation, between -1 and 1, only if
    both sides come out of a batch norm without affine, with biased variance; the norm's eps then keeps it a little
    below 1, and a constant channel has 0. With that norm ``mean_n (z_s[n,j] - z_t[n,j])^2 = 2 (1 - c_j)``, again up
    to eps. A mean over N (all leading dimensions): it does not depend on N or D.

    Args:
        z_s: Student features, projected and batch-normalized.
        z_t: Teacher features, batch-normalized.

    Returns:
        The vector c, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, or a side is not floating point.

    Deviates from: the published code's ``einsum("bx,bx->x")``, in speed only.

    References:
        J. Zbontar, L. Jing, I. Misra, Y. LeCun, S. Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
        Reduction", ICML 2021, equation 2 (the whole matrix).

    Example:
        >>> correlation(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        tensor([ 1., -1.])
    """
    z_s, z_t = pair("correlation", z_s, z_t)
    return (z_s * z_t).flatten(0, -2).mean(0)


def log_correlation(c: Float[Tensor, " d"], *, alpha: float = 4.0, eps: float = 1e-5) -> Float[Tensor, ""]:
    """LogSum, correlation form: ``log( sum_j |1 - c_j|^alpha + eps )``.

    Rewards channels that follow the teacher's over the batch, above all the worst of them (a soft maximum, as in
    ``log_sum``). Ignores the scale and the mean of every channel, which the batch norms in front have removed, and
    which samples are off. The value grows by ``log D`` and does not depend on N. Between ``log eps`` and
    ``log(2^alpha D + eps)``.

    It is no reparametrization of ``log_sum``: since ``1 - c_j`` is half the channel's mean squared difference, the
    power acts on channels here and on single elements there. The two agree, up to a constant, where this one's alpha
    is 1 and the other's 2.

    Args:
        c: Per-channel ``correlation``.
        alpha: Power, at least 1.
        eps: Floor of the sum. At c = 1 the value is ``log eps`` and the gradient zero.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If c is not a floating-point vector of at least one channel, alpha is below 1 or eps is not
            positive.

    Deviates from: the published DeiT code in nothing but an alpha that is used (there it is read, and the power fixed
        at 4). The paper's text has the elementwise form, its supplement this one.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        supplement, table of metric functions (6.9 in the reprint in R. Miles's thesis), last row.

    Example:
        >>> log_correlation(torch.tensor([1.0, 0.0, 0.0]), alpha=4.0, eps=1e-9)  # log 2
        tensor(0.6931)
    """
    return log_sum_of_powers("log_correlation", _residual("log_correlation", c), alpha=alpha, eps=eps, count=1)


def correlation_power(c: Float[Tensor, " d"], *, power: float) -> Float[Tensor, ""]:
    """Power of what lacks to a correlation of one: ``sum_j |1 - c_j|^power``.

    ``log_correlation`` without the logarithm. Rewards channels that follow the teacher's over the batch; a higher power
    leaves well matched ones alone, as it does there. But here the gradient fades as the match gets better, with
    ``|1 - c_j|^(power - 1)``. Ignores the scale and the mean of every channel, which the batch norms in front have
    removed, and which samples are off. A sum: the value grows with D and does not depend on N. Between 0 and
    ``2^power D``. With power 1 it is half of D times ``mean_squared_error`` of the batch-normalized sides, up to the
    norm's eps.

    Args:
        c: Per-channel ``correlation``.
        power: At least 1. The paper tries 2 and 4.

    Returns:
        A scalar, in at least float32. At c = 1 value and gradient are zero.

    Raises:
        UserError: If c is not a floating-point vector of at least one channel, or power is below 1.

    Deviates from: nothing known. The paper's table names the power only; the sum over the channels is that of its last
        row, of which this is the inside.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        supplement, table of metric functions (6.9 in the reprint in R. Miles's thesis), the rows above the last.

    Example:
        >>> correlation_power(torch.tensor([1.0, 0.0, -1.0]), power=2)  # 0 + 1 + 4
        tensor(5.)
    """
    if not power >= 1:  # below 1 the gradient is infinite at c = 1
        raise UserError(f"correlation_power: power is {power}; expected at least 1")
    return _residual("correlation_power", c).abs().pow(power).sum()


def _residual(name: str, c: Tensor) -> Tensor:
    """``1 - c``, in at least float32, after the checks that losses of c share."""
    if c.ndim != 1 or c.numel() == 0 or not c.is_floating_point():
        raise UserError(f"{name}: c is {tuple(c.shape)}, {c.dtype}; expected (d,), floating point")
    return 1 - c.to(torch.promote_types(c.dtype, torch.float32))
