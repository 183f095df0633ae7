"""The logarithm of a sum of powers: what both forms of LogSum have in common."""

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.inputs import positive


def log_sum_of_powers(name: str, x: Tensor, *, alpha: float, eps: float, count: int) -> Tensor:
    """``log( sum |x|^alpha + eps count )``, for both forms of LogSum."""
    if not alpha >= 1:  # below 1 the gradient of the power is infinite at equality
        raise UserError(f"{name}: alpha is {alpha}; expected at least 1")
    positive(name, "eps", eps)
    value: Tensor = _LogSumOfPowers.apply(x, alpha, eps * count)  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    return value


def is_read_at_once(x: Tensor) -> bool:
    """Whether a number can be read, and a branch taken by it, without waiting for a device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


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
