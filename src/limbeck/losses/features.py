"""Distances of two features of the same shape: element by element, or row by row."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.inputs import is_read_at_once, pair, positive


def squared_error(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"]) -> Float[Tensor, ""]:
    """Half the squared distance: ``1/2 sum_{n,j} (z_s[n,j] - z_t[n,j])^2``.

    Rewards every feature for being near the teacher's, in the teacher's units: channels of large variance count most,
    and without a norm in front so does the mean. Ignores nothing. A sum: it grows with N and with D, and so does its
    gradient. This is the loss that the theory of the projector is written for; to train with, ``mean_squared_error``
    is easier to weight.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, or a side is not floating point.

    Deviates from: nothing.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 1.

    Example:
        >>> squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
        tensor(4.5000)
    """
    z_s, z_t = pair("squared_error", z_s, z_t)
    return (z_s - z_t).square().sum() / 2


def mean_squared_error(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"]) -> Float[Tensor, ""]:
    """Mean squared difference: ``1/(N D) sum_{n,j} (z_s[n,j] - z_t[n,j])^2``.

    Rewards and ignores what ``squared_error`` does. A mean: the value depends on neither N nor D, while the gradient
    of one element falls as 1/(N D). Behind batch norm on both sides it is ``2 (1 - mean_j c_j)`` of the
    ``correlation`` c, up to the norm's eps.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, or a side is not floating point.

    Deviates from: FitNets, which has half of the sum over the channels.

    References:
        A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep Nets",
        ICLR 2015, equation 3.

    Example:
        >>> mean_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
        tensor(4.5000)
    """
    z_s, z_t = pair("mean_squared_error", z_s, z_t)
    return (z_s - z_t).square().mean()


def l1(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"]) -> Float[Tensor, ""]:
    """Mean absolute difference: ``1/(N D) sum_{n,j} |z_s[n,j] - z_t[n,j]|``.

    Rewards closeness, in the teacher's units. Every element that is not matched pulls equally hard, however far off it
    is, so outliers do not own the gradient, and neither does it fade near a match: a step that is too long jumps back
    and forth there, which ``smooth_l1`` avoids. Ignores how far an element is when the direction is chosen. A mean: the
    value depends on neither N nor D.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.

    Returns:
        A scalar, in at least float32. Where elements are equal the gradient is zero.

    Raises:
        UserError: If the shapes differ, there are no rows, or a side is not floating point.

    Deviates from: the reference, which has the sum, of factors of unit length.

    References:
        J. Kim, S. Park, N. Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
        the factor transfer loss with p = 1.

    Example:
        >>> l1(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
        tensor(1.5000)
    """
    z_s, z_t = pair("l1", z_s, z_t)
    return (z_s - z_t).abs().mean()


def smooth_l1(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"], *, beta: float = 1.0) -> Float[Tensor, ""]:
    """Mean of a distance that is squared near zero and absolute far from it.

    With ``d = z_s[n,j] - z_t[n,j]``, the mean over n and j of ``d^2 / (2 beta)`` where ``|d| < beta`` and of
    ``|d| - beta/2`` elsewhere.

    Rewards closeness as ``mean_squared_error`` does, but no element pulls harder than any other once it is further
    off than beta, so outliers (the huge channels of large vision transformers) do not own the gradient. Ignores how
    far an outlier is when the direction is chosen. A mean: the value does not grow with N or D.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.
        beta: Where the square ends, in the units of the features.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, or beta is not positive.

    Deviates from: Fast R-CNN, which has beta = 1 and a sum.

    References:
        R. Girshick, "Fast R-CNN", ICCV 2015, equation 3.

    Example:
        >>> smooth_l1(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
        tensor(1.2500)
    """
    positive("smooth_l1", "beta", beta)
    z_s, z_t = pair("smooth_l1", z_s, z_t)
    return F.smooth_l1_loss(z_s, z_t, beta=beta)


def cosine(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"], *, eps: float = 1e-6) -> Float[Tensor, ""]:
    """One minus the cosine of the angle between the two features of a sample, averaged over the samples.

    ``mean_n (1 - <u(z_s[n]), u(z_t[n])>)`` with ``u`` the ``unit_rows``, ``u(z) = z / |z|``.

    Rewards the direction of each sample's feature. Ignores its length, on both sides. Between 0 and 2, whatever N and
    D are. Channels that are large in every sample (a large mean) leave little angle between any two samples.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.
        eps: A row that is no longer has no direction: it counts as orthogonal, 1, and gets no gradient.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, or eps is not positive.

    Deviates from: BYOL's form, which is twice this one.

    References:
        J.-B. Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
        equation 2.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
        tensor(0.5000)
    """
    positive("cosine", "eps", eps)
    z_s, z_t = pair("cosine", z_s, z_t)
    return 1 - (unit_rows(z_s, eps=eps) * unit_rows(z_t, eps=eps)).sum(-1).mean()


def unit_rows(z: Float[Tensor, "*n d"], *, eps: float = 1e-6) -> Float[Tensor, "*n d"]:
    """Direction of each row, ``z / |z|``: what ``cosine`` compares, and what :class:`limbeck.norms.L2` gives.

    A row no longer than eps gives zero and gets no gradient. Dividing it by eps, as ``F.normalize`` does, keeps the
    value finite too, but its gradient is ``1/eps``, a million, and so infinite in float16 and ruinous elsewhere: one
    dead row would decide the step.

    Args:
        z: Features, in at least float32.
        eps: Greatest length that counts as none.

    Returns:
        Rows of length 1 (or 0), whatever the length was. A row with a NaN or an infinity is NaN.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    # In units of the largest element, so that no square overflows. The unit cancels, so it needs no gradient.
    unit = z.detach().abs().amax(-1, keepdim=True).clamp(min=eps)
    scaled = z / unit
    length = cast(Tensor, torch.linalg.vector_norm(scaled, dim=-1, keepdim=True))  # pyright: ignore[reportUnknownMemberType]
    # NaN is not smaller than anything, so it passes: asked whether it is larger, a row of NaN would count as zero.
    return torch.where(length * unit <= eps, 0, scaled / length.clamp(min=1))


def log_sum(
    z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"], *, alpha: float = 4.0, eps: float = 1e-8
) -> Float[Tensor, ""]:
    """LogSum, elementwise form: ``log( sum_{n,j} |z_s[n,j] - z_t[n,j]|^alpha + eps N D )``.

    Rewards closeness, above all of the worst elements: the share of an element in the gradient is its ``|d|^(alpha -
    1)`` over the sum, a soft maximum, so matches that are good already are left alone. Ignores the common scale of
    the differences: halving them all subtracts ``alpha log 2`` and doubles the gradient, which therefore does not
    fade as training goes on. The value grows by ``log(N D)`` (twice the batch adds ``log 2``), the gradient does not
    depend on N and D as a sum's does; subtract ``log(N D)`` to compare runs. Meant for batch-normalized sides.

    Args:
        z_s: Student features, projected and normalized.
        z_t: Teacher features, normalized.
        alpha: Power, at least 1. The paper finds 4 to 5 best.
        eps: Floor of the mean of the powers. At equality the value is ``log(eps N D)`` and the gradient zero.

    Returns:
        A scalar, in at least float32. Powers are taken in units of the largest difference, so they do not overflow.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, alpha is below 1 or eps is
            not positive.

    Deviates from: the paper and its ImageNet code, which have no eps (minus infinity at equality). Ours is per element,
        so that it means the same for every batch and width.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 9 (6.12 in the reprint in R. Miles's thesis); alpha is from its table 3 (6.2).

    Example:
        >>> log_sum(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]), alpha=2.0)  # log 9
        tensor(2.1972)
    """
    z_s, z_t = pair("log_sum", z_s, z_t)
    return log_sum_of_powers("log_sum", z_s - z_t, alpha=alpha, eps=eps, count=z_s.numel())


def log_sum_of_powers(name: str, x: Tensor, *, alpha: float, eps: float, count: int) -> Tensor:
    """``log( sum |x|^alpha + eps count )``, for both forms of LogSum."""
    if not alpha >= 1:  # below 1 the gradient of the power is infinite at equality
        raise UserError(f"{name}: alpha is {alpha}; expected at least 1")
    positive(name, "eps", eps)
    value: Tensor = _LogSumOfPowers.apply(x, alpha, eps * count)  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    return value


class _LogSumOfPowers(torch.autograd.Function):
    """With its gradient written out, ``alpha sign(x) |x|^(alpha - 1) / sum``.

    In half the passes over x that autograd takes, and without a copy of x between forward and backward. |x| = 1e10,
    possible without a norm, has no 4th power in float32: powers are then taken in a unit, the largest |x|. Never below
    1, since the floor would overflow in its place. On a CPU that is done only where the plain sum is found not to be
    finite; a GPU would have to be waited for to find it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float, floor: float) -> Tensor:
        ctx.alpha = alpha
        if alpha == 4 and is_read_at_once(x):
            squares = x.square()
            total = squares.square_().sum() + floor
            if math.isfinite(total):
                ctx.save_for_backward(x, None, total)
                return torch.log(total)
        low, high = x.aminmax()
        unit = torch.maximum(-low, high).clamp(min=1)
        scaled = x * (1 / unit)
        powers = scaled.square_().square_() if alpha == 4 else scaled.abs_().pow_(alpha)
        total = powers.sum() + floor * unit.pow(-alpha)
        ctx.save_for_backward(x, unit, total)
        return torch.log(total) + alpha * torch.log(unit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, unit, total = ctx.saved_tensors
        if unit is None:
            return x.square().mul_(x).mul_(grads[0] * ctx.alpha / total), None, None
        factor = grads[0] * ctx.alpha / (unit * total)
        scaled = x * (1 / unit)
        if ctx.alpha == 4:  # the general power of the framework takes ten times as long as two products
            return scaled.square().mul_(scaled).mul_(factor), None, None
        if ctx.alpha == 1:
            return scaled.sign_().mul_(factor), None, None
        return scaled.abs().pow_(ctx.alpha - 1).copysign_(scaled).mul_(factor), None, None
