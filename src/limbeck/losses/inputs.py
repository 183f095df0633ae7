"""What every loss asks of its inputs, and the precision that it computes in."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError


def pair(name: str, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in their common precision, at least float32, after the checks that every loss shares."""
    z_s, z_t = in_one_precision(name, z_s, z_t)
    # Without this check (n, 1) against (n, d) would broadcast, and train on nonsense.
    if z_s.shape != z_t.shape:
        raise UserError(f"{name}: student is {tuple(z_s.shape)} and teacher {tuple(z_t.shape)}; expected equal shapes")
    if z_s.ndim < 2 or z_s.numel() == 0:
        raise UserError(f"{name}: both sides are {tuple(z_s.shape)}; expected (n, d) with at least one row and column")
    return z_s, z_t


def positive(name: str, argument: str, value: float) -> None:
    """Refuse an argument that is not above 0."""
    if not value > 0:
        raise UserError(f"{name}: {argument} is {value}; expected a number above 0")


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions as float32, the others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def is_read_at_once(x: Tensor) -> bool:
    """Whether a number can be read, and a branch taken by it, without waiting for a device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def in_one_precision(name: str, x_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in their common precision, at least float32; their shapes may differ."""
    if not (x_s.is_floating_point() and x_t.is_floating_point()):
        raise UserError(f"{name}: student is {x_s.dtype} and teacher {x_t.dtype}; expected floating point")
    dtype = torch.promote_types(torch.promote_types(x_s.dtype, x_t.dtype), torch.float32)
    return x_s.to(dtype), x_t.to(dtype)


def product(a: Float[Tensor, "*b m k"], b: Float[Tensor, "*c n k"]) -> Float[Tensor, "*b m n"]:
    """``a b^T``, in the precision of the two also under autocast, which lowers matrix products.

    So is its gradient. Compiled by ``torch.compile``, a backward pass runs under the autocast that was on where the
    compiled function was called, whatever the function switched off; outside of the compiler it runs under none.

    Args:
        a: Rows.
        b: Rows of the same width; as many matrices of them as of a, or one for all.
    """
    with torch.autocast(a.device.type, enabled=False):
        if not torch.compiler.is_compiling():
            return a @ b.mT
        value: Tensor = _Product.apply(a, b.mT)  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
        return value


class _Product(torch.autograd.Function):
    """A product whose backward pass switches autocast off by itself."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        (grad,) = grads
        with torch.autocast(a.device.type, enabled=False):
            if b.ndim < a.ndim:  # one matrix for all
                return grad @ b.mT, a.flatten(0, -2).mT @ grad.flatten(0, -2)
            return grad @ b.mT, a.mT @ grad


def relation_rows(name: str, z_s: Tensor, z_t: Tensor, *, least: int) -> tuple[Tensor, Tensor]:
    """Both sides in one precision, of any two widths, after the checks that every relation shares."""
    z_s, z_t = in_one_precision(name, z_s, z_t)
    if z_s.ndim != 2 or z_t.ndim != 2 or z_s.shape[0] != z_t.shape[0]:
        raise UserError(
            f"{name}: student is {tuple(z_s.shape)} and teacher {tuple(z_t.shape)}; "
            "expected (n, d_s) and (n, d_t), with the same rows"
        )
    if z_s.shape[0] < least or z_s.shape[1] < 1 or z_t.shape[1] < 1:
        raise UserError(
            f"{name}: student is {tuple(z_s.shape)} and teacher {tuple(z_t.shape)}; "
            f"expected at least {least} rows, and a column"
        )
    return z_s, z_t
