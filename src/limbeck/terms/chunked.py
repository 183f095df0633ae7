"""Elementwise losses of projected features, block of rows by block of rows, so that memory does not grow with N.

The direct form makes several matrices of N x D_t; here only a block of each exists at a time. Every loss that is a
mean, a sum or a LogSum over rows splits so, exactly. The gradient of each block is taken in the forward pass, while the
block is there: what a block's share in the whole is (for LogSum it is known only at the end) is a number, with which
its gradient is multiplied later. So nothing is computed twice. Batch norm on the student's side is folded into the
projector: its statistics are known before any row is projected, as ``w^T mean`` and ``w^T S w``
(:mod:`limbeck.terms.moments`).
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck import norms
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.terms.moments import blocks, moments, projected_variance, rows

BLOCK_ELEMENTS_CPU = 2**20  # 4 MiB in float32: what a core's cache holds
BLOCK_ELEMENTS_GPU = 2**26


class Combine(enum.Enum):
    """How a loss of all rows comes from the losses of blocks."""

    MEAN = "mean"
    SUM = "sum"
    LOG_SUM = "log_sum"


class ChunkedValue(NamedTuple):
    """A loss, the mean product of both sides, which behind batch norms is their mean correlation, and all rows."""

    loss: Float[Tensor, ""]
    product: Float[Tensor, ""]
    rows: int


def chunked(
    compare: Callable[[Tensor, Tensor], Tensor],
    combine: Combine,
    z_s: Float[Tensor, "*n d_s"],
    z_t: Float[Tensor, "*n d_t"],
    weight: Float[Tensor, "d_t d_s"],
    *,
    bias: Float[Tensor, " d_t"] | None = None,
    student_norm: nn.Module,
    teacher_norm: nn.Module,
) -> ChunkedValue:
    """``compare(student_norm(z_s W + b), teacher_norm(z_t))`` of the global batch, in blocks.

    Differentiable in everything but the teacher's feature.

    Args:
        compare: Loss of two matrices of rows.
        combine: How its values over blocks, and over processes, become that of all rows.
        z_s: Student features in front of the last linear layer of the projector.
        z_t: Teacher features.
        weight: That layer's weight, in the layout of ``nn.Linear``.
        bias: Its bias.
        student_norm: :class:`limbeck.norms.BatchNorm`, or a norm that treats each row by itself.
        teacher_norm: The same for the other side.

    Returns:
        The loss, in at least float32, and the mean product of both sides (without gradient).

    Raises:
        UserError: If there are no rows on any process, or fewer than two and a side has batch norm.

    Deviates from: the direct form in rounding only.

    References:
        M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867, 2018 (a LogSum over
        blocks whose share is known at the end).
    """
    count = collectives.row_count(z_s)
    if count == 0:
        raise UserError(f"chunked: both sides have no rows ({tuple(z_s.shape)}); expected at least one")
    dtype = torch.promote_types(torch.promote_types(z_s.dtype, z_t.dtype), torch.float32)
    weight, bias = weight.to(dtype), bias.to(dtype) if bias is not None else None
    center_s, center_t = z_s.new_zeros(z_s.shape[-1], dtype=dtype), z_t.new_zeros(z_t.shape[-1], dtype=dtype)
    scale_t = torch.ones_like(center_t)
    folded = [norm for norm in (student_norm, teacher_norm) if isinstance(norm, norms.BatchNorm)]
    if folded:
        m = moments(z_s, z_t, cross=False, count=count)
        if isinstance(student_norm, norms.BatchNorm):
            variance = projected_variance(m, weight)
            weight = weight * torch.rsqrt(variance + student_norm.eps)[:, None]
            center_s, bias = m.mean_s, None
        if isinstance(teacher_norm, norms.BatchNorm):
            center_t, scale_t = m.mean_t.detach(), torch.rsqrt(m.var_t.detach() + teacher_norm.eps)
    rest_s = nn.Identity() if isinstance(student_norm, norms.BatchNorm) else student_norm
    rest_t = nn.Identity() if isinstance(teacher_norm, norms.BatchNorm) else teacher_norm

    def block_loss(a: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a, t = rest_s(a), rest_t(t)
        return compare(a, t), torch.vdot(a.detach().flatten(), t.detach().flatten())

    wanted = torch.is_grad_enabled()  # in an autograd.Function it never is
    # It takes gradients on its way, which a compiler reads for a minute, piece by piece, and gains nothing by.
    in_blocks: Callable[..., tuple[Tensor, Tensor]] = _InBlocks.apply  # pyright: ignore
    if torch.compiler.is_compiling():
        in_blocks = torch.compiler.disable(in_blocks)  # pyright: ignore
    value, product = in_blocks(z_s, z_t, weight, bias, center_s, center_t, scale_t, block_loss, combine, count, wanted)
    product = collectives.sum_across(product) / (count * z_t.shape[-1])
    if combine is not Combine.LOG_SUM:
        return ChunkedValue(collectives.all_sum(value), product, count)
    if collectives.world_size() == 1:
        return ChunkedValue(value, product, count)
    largest = collectives.max_across(value)
    return ChunkedValue(largest + torch.log(collectives.all_sum(torch.exp(value - largest))), product, count)


class _InBlocks(torch.autograd.Function):
    """This process's share of the loss; its gradients are made on the way and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        z_s: Tensor,
        z_t: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        center_s: Tensor,
        center_t: Tensor,
        scale_t: Tensor,
        block_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        combine: Combine,
        count: int,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        each = z_s.shape[1:-1].numel()
        elements = BLOCK_ELEMENTS_CPU if z_s.device.type == "cpu" else BLOCK_ELEMENTS_GPU
        # Wide: in half a precision small shares vanish, and a loss scale, which comes later, is not a number.
        grad_s = torch.empty_like(z_s, dtype=weight.dtype)
        # Gradients of weight and bias, in units of exp(total) for LogSum.
        sums = [torch.zeros_like(leaf) for leaf in (weight, bias) if leaf is not None] if wanted else []
        total = weight.new_full((), -torch.inf if combine is Combine.LOG_SUM else 0.0)
        product = weight.new_zeros(())
        scales: list[tuple[slice, Tensor]] = []
        with torch.autocast(z_s.device.type, enabled=False):
            for block in blocks(z_s.shape[0], each, least=max(1, elements // z_t.shape[-1])):
                s = rows(z_s[block], center_s)
                t = rows(z_t[block], center_t).mul_(scale_t)
                a = F.linear(s, weight, bias).requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    value, dot = block_loss(a, t)
                    (grad,) = torch.autograd.grad(value, a) if wanted else (a,)
                value = value.detach()
                product += dot
                if combine is Combine.LOG_SUM:
                    joint = torch.logaddexp(total, value)
                    share = torch.exp(value - joint)
                    for sum_ in sums:
                        sum_.mul_(torch.exp(total - joint))
                    scales.append((block, joint))
                    total = joint
                else:
                    share = s.shape[0] / count if combine is Combine.MEAN else 1.0
                    total = total + share * value
                if wanted:
                    # The share goes to the narrow matrices: one pass less over the wide one.
                    grad_s[block] = (grad @ weight).mul_(share).view(z_s[block].shape)
                    sums[0].addmm_(grad.T, s.mul_(share))
                    if len(sums) > 1:
                        sums[1] += grad.sum(0) * share
            for block, joint in scales:
                grad_s[block] *= torch.exp(joint - total)
        ctx.save_for_backward(grad_s, *sums)
        ctx.dtype = z_s.dtype
        ctx.mark_non_differentiable(product)
        return total, product

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_s, *sums = ctx.saved_tensors
        grad = grads[0]
        bias = grad * sums[1] if len(sums) > 1 else None
        center = -grad * grad_s.flatten(0, -2).sum(0, dtype=sums[0].dtype)
        return (grad * grad_s).to(ctx.dtype), None, grad * sums[0], bias, center, None, None, None, None, None, None
