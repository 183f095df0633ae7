"""Moments of a batch: all that a loss of per-channel correlations sees of it, however many rows it has.

With batch norm on both sides and a linear map W between them, the correlation c_j of channel j, and with it every loss
of c, depends on the batch through five moments only: the two means, the variance of each teacher channel, the
covariance S of the student's feature and its cross-covariance C with the teacher's::

    c_j = w_j^T C[:, j] / sqrt( (w_j^T S w_j + eps) (var_t[j] + eps) )

An identity, not an approximation. The projected matrix of N x D_t is never made, memory beyond the inputs is D_s^2 +
D_s D_t whatever N is, and several processes need only add up their moments to get the loss of the global batch. The
products cost ``4 N D_s (D_s + D_t)`` in place of ``6 N D_s D_t`` multiply-adds, so it pays where N is several times D_s
(the positions of maps, tokens); :class:`limbeck.terms.FeatureTerm` chooses.

Rows are centered before they are multiplied: with means a thousand times the deviation, the plain sums of squares would
have no digit left in float32.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.losses.inputs import product

BLOCK_ROWS = 512  # at the least; measured: 256 lose time to the accumulation, 2048 of wide features leave the cache
BLOCK_ELEMENTS_CPU = 2**17  # of both sides; narrow features gain a tenth by more rows
BLOCK_ELEMENTS_GPU = 2**24  # 64 MiB in float32; not measured: 512 rows are done before the next kernel is launched


class Moments(NamedTuple):
    """The moments of a batch, over all processes.

    Attributes:
        count: Rows, N.
        mean_s: Mean of the student's feature.
        mean_t: Mean of the teacher's.
        cov_s: S, the student's covariance (biased, over N).
        cov_st: C, the cross-covariance, student by teacher.
        var_t: Biased variance of each of the teacher's channels.
    """

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.count)
    mean_s: Float[Tensor, " d_s"]
    mean_t: Float[Tensor, " d_t"]
    cov_s: Float[Tensor, "d_s d_s"]
    cov_st: Float[Tensor, "d_s d_t"]
    var_t: Float[Tensor, " d_t"]


def moments(
    z_s: Float[Tensor, "*n d_s"], z_t: Float[Tensor, "*n d_t"], *, cross: bool = True, count: int | None = None
) -> Moments:
    """The five moments of the global batch; differentiable in both arguments.

    All leading dimensions are rows. Each process reads its own; the moments are added up over the processes, their
    gradients too, so that the loss and its gradient are those of one process with all rows, local batches of unequal
    length included.

    Args:
        z_s: Features of the side that is projected, in front of its projector.
        z_t: Features of the other side.
        cross: Also take the cross-covariance; without it ``cov_st`` is zero, and most of the work and of what crosses
            processes is saved.
        count: Rows of all processes, if they were counted before: to count them again makes a GPU wait.

    Returns:
        The moments, in at least float32.

    Raises:
        UserError: If the sides have different rows, are not floating point, or there are fewer than two rows in all.

    Deviates from: nothing; in exact arithmetic the same as batch norm's own sums.

    References:
        T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for Computing the Sample Variance", The American
        Statistician 37, 1983 (adding up centered moments of parts).

    Example:
        >>> m = moments(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0, 0.0], [9.0, 0.0]]))
        >>> m.cov_s.tolist(), m.cov_st.tolist(), m.var_t.tolist()
        ([[1.0]], [[2.0, 0.0]], [4.0, 0.0])
    """
    if z_s.ndim < 2 or z_s.shape[:-1] != z_t.shape[:-1]:
        raise UserError(f"moments: student is {tuple(z_s.shape)} and teacher {tuple(z_t.shape)}; expected equal rows")
    if not (z_s.is_floating_point() and z_t.is_floating_point()):
        raise UserError(f"moments: student is {z_s.dtype} and teacher {z_t.dtype}; expected floating point")
    mean_s, mean_t, scatter_s, scatter_st, scatter_t = _Scatter.apply(z_s, z_t, cross)  # pyright: ignore
    count = count if count is not None else collectives.row_count(z_s)
    if count < 2:
        raise UserError(f"moments: rows in the batch: {count}; batch statistics need at least 2")
    if collectives.world_size() > 1:
        local = z_s.shape[:-1].numel()
        joint_s = collectives.all_sum(local * mean_s) / count
        joint_t = collectives.all_sum(local * mean_t) / count
        off_s, off_t = mean_s - joint_s, mean_t - joint_t
        own_s, own_t = scatter_s + local * torch.outer(off_s, off_s), scatter_t + local * off_t.square()
        if cross:
            own_st = scatter_st + local * torch.outer(off_s, off_t)
            scatter_s, scatter_t, scatter_st = _all_sum(own_s, own_t, own_st)
        else:
            scatter_s, scatter_t = _all_sum(own_s, own_t)
        mean_s, mean_t = joint_s, joint_t
    return Moments(count, mean_s, mean_t, scatter_s / count, scatter_st / count, scatter_t / count)


def correlation(
    m: Moments, weight: Float[Tensor, "d_t d_s"], *, eps_s: float = 1e-4, eps_t: float = 1e-4
) -> Float[Tensor, " d_t"]:
    """Per-channel correlation of the two batch-normalized sides, from moments: the c of the module's head.

    Equal to :func:`limbeck.losses.correlation` of ``BatchNorm(z_s W)`` and ``BatchNorm(z_t)``, in value and in
    gradient. A bias would cancel, and there is none.

    Args:
        m: Moments of the feature in front of the projector and of the teacher's.
        weight: The projector, in the layout of ``nn.Linear``: the transposed W of the paper.
        eps_s: The eps of the student's batch norm.
        eps_t: The eps of the teacher's.

    Returns:
        The vector c, in at least float32.

    Example:
        >>> m = moments(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0, 2.0], [9.0, 0.0]]))
        >>> correlation(m, torch.tensor([[0.5], [0.5]]), eps_s=1e-9, eps_t=1e-9)
        tensor([ 1., -1.])
    """
    covariance, variance = _projected(m, weight)
    return _correlation(m, covariance, variance, eps_s, eps_t)


def mean_squared_error(
    m: Moments, weight: Float[Tensor, "d_t d_s"], *, eps_s: float = 1e-4, eps_t: float = 1e-4
) -> tuple[Float[Tensor, ""], Float[Tensor, " d_t"]]:
    """Mean squared difference of the two batch-normalized sides, from moments, and their correlation.

    With v the variance of a channel, batch norm leaves ``v / (v + eps)`` of it, and ``mean_n (a - t)^2`` of a channel
    is the sum of what is left on both sides minus ``2 c_j``.

    Args:
        m: As for :func:`correlation`.
        weight: As there.
        eps_s: As there.
        eps_t: As there.

    Returns:
        A scalar, equal to :func:`limbeck.losses.mean_squared_error` of the two normalized sides, and the c of
        :func:`correlation`.

    Example:
        >>> m = moments(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [0.0]]))
        >>> round(mean_squared_error(m, torch.tensor([[1.0]]))[0].item(), 3)
        4.0
    """
    covariance, variance = _projected(m, weight)
    c = _correlation(m, covariance, variance, eps_s, eps_t)
    return (variance / (variance + eps_s) + m.var_t / (m.var_t + eps_t) - 2 * c).mean(), c


def _projected(m: Moments, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance with the teacher, and variance, of each projected channel."""
    weight = weight.to(m.cov_s.dtype)
    return (weight * m.cov_st.T).sum(1), projected_variance(m, weight)


def projected_variance(m: Moments, weight: Tensor) -> Tensor:
    """Variance ``w_j^T S w_j`` of each projected channel; rounding may leave a constant one below zero."""
    return (product(weight, m.cov_s) * weight).sum(1).clamp(min=0)


def _correlation(m: Moments, covariance: Tensor, variance: Tensor, eps_s: float, eps_t: float) -> Tensor:
    # One factor after the other: the product of two variances overflows where neither does.
    return covariance * torch.rsqrt(variance + eps_s) * torch.rsqrt(m.var_t + eps_t)


def block_rows(device: torch.device, width: int) -> int:
    """Rows of a block of features that have so many channels together.

    Example:
        >>> [block_rows(torch.device("cpu"), width) for width in (48, 192, 1024)]
        [2730, 682, 512]
    """
    elements = BLOCK_ELEMENTS_CPU if device.type == "cpu" else BLOCK_ELEMENTS_GPU
    return max(BLOCK_ROWS, elements // width)


def blocks(count: int, rows_each: int, *, least: int) -> Generator[slice, None, None]:
    """Stretches of the first dimension of about ``least`` rows, for tensors with ``rows_each`` rows in each entry."""
    step = max(1, least // max(rows_each, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def rows(x: Tensor, origin: Tensor) -> Tensor:
    """A block as a matrix of rows relative to an origin, in the origin's precision."""
    return torch.sub(x, origin).reshape(-1, x.shape[-1])


class _Scatter(torch.autograd.Function):
    """Means and centered sums of products of this process's rows, in one pass over blocks of them.

    The first block's mean stands in for the mean, and the difference is taken off at the end: exact, and as stable as
    centering first, since a mean of a stretch of the rows is never far off. The backward pass reads the inputs again,
    from the same origin: the mean itself, rounded, would be off by more where it is large.
    """

    @staticmethod
    def forward(ctx: Any, z_s: Tensor, z_t: Tensor, cross: bool) -> tuple[Tensor, ...]:
        dtype = torch.promote_types(torch.promote_types(z_s.dtype, z_t.dtype), torch.float32)
        n, each, d_s, d_t = z_s.shape[0], z_s.shape[1:-1].numel(), z_s.shape[-1], z_t.shape[-1]
        count = n * each
        with torch.autocast(z_s.device.type, enabled=False):
            origin_s, origin_t = _origin(z_s, each, dtype), _origin(z_t, each, dtype)
            sum_s, sum_t = origin_s.new_zeros(d_s), origin_t.new_zeros(d_t)
            scatter_s, scatter_st = origin_s.new_zeros(d_s, d_s), origin_s.new_zeros(d_s, d_t)
            scatter_t = origin_t.new_zeros(d_t)
            for block in blocks(n, each, least=block_rows(z_s.device, d_s + d_t)):
                s, t = rows(z_s[block], origin_s), rows(z_t[block], origin_t)
                sum_s += s.sum(0)
                sum_t += t.sum(0)
                scatter_s.addmm_(s.T, s)
                if cross:
                    scatter_st.addmm_(s.T, t)
                scatter_t += (t * t).sum(0)
            if count:
                sum_s /= count
                sum_t /= count
                scatter_s.addr_(sum_s, sum_s, alpha=-count)
                if cross:
                    scatter_st.addr_(sum_s, sum_t, alpha=-count)
                scatter_t = (scatter_t - count * sum_t.square()).clamp(min=0)
            mean_s, mean_t = origin_s + sum_s, origin_t + sum_t
        ctx.save_for_backward(z_s, z_t, origin_s, origin_t, sum_s, sum_t)
        ctx.cross = cross
        return mean_s, mean_t, scatter_s, scatter_st, scatter_t

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z_s, z_t, origin_s, origin_t, off_s, off_t = ctx.saved_tensors
        g_mean_s, g_mean_t, g_s, g_st, g_t = grads
        if not ctx.cross:
            g_st = torch.zeros_like(g_st)  # it was never computed
        n, each = z_s.shape[0], z_s.shape[1:-1].numel()
        count = max(n * each, 1)
        grad_s = torch.empty_like(z_s) if ctx.needs_input_grad[0] else None
        grad_t = torch.empty_like(z_t) if ctx.needs_input_grad[1] else None
        with torch.autocast(z_s.device.type, enabled=False):
            both, across = g_s + g_s.T, g_st.T.contiguous()
            at_s = g_mean_s / count - off_s @ both - off_t @ across
            at_t = g_mean_t / count - off_s @ g_st - 2 * off_t * g_t
            for block in blocks(n, each, least=block_rows(z_s.device, z_s.shape[-1] + z_t.shape[-1])):
                s, t = rows(z_s[block], origin_s), rows(z_t[block], origin_t)
                if grad_s is not None:
                    part = torch.addmm(at_s, s, both)
                    grad_s[block] = (part.addmm_(t, across) if ctx.cross else part).view(z_s[block].shape)
                if grad_t is not None:
                    part = torch.addmm(at_t, s, g_st).addcmul_(t, g_t, value=2)
                    grad_t[block] = part.view(z_t[block].shape)
        return grad_s, grad_t, None


def _origin(z: Tensor, each: int, dtype: torch.dtype) -> Tensor:
    """A point near the mean: the mean of the first block, taken from its first row, exact for constant channels."""
    if z.shape[:-1].numel() == 0:
        return z.new_zeros(z.shape[-1], dtype=dtype)
    first = z.reshape(-1, z.shape[-1])[0] if z.ndim == 2 else z[0].reshape(-1, z.shape[-1])[0]
    first = first.to(dtype)
    block = next(blocks(z.shape[0], each, least=BLOCK_ROWS))
    return first + rows(z[block], first).mean(0)


def _all_sum(*parts: Tensor) -> list[Tensor]:
    """Sums over all processes, in one message."""
    flat = collectives.all_sum(torch.cat([part.flatten() for part in parts]))
    found: list[Tensor] = []
    start = 0
    for part in parts:
        found.append(flat[start : start + part.numel()].view(part.shape))
        start += part.numel()
    return found
