"""What every norm asks of its arguments and inputs, and the precision that it computes in."""

import torch
from torch import Tensor

from limbeck.errors import UserError


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
