"""What every loss asks of its inputs, and the precision that it computes in."""

import torch
from torch import Tensor

from limbeck.errors import UserError


def pair(name: str, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in their common precision, at least float32, after the checks that every loss shares."""
    if not (z_s.is_floating_point() and z_t.is_floating_point()):
        raise UserError(f"{name}: student is {z_s.dtype} and teacher {z_t.dtype}; expected floating point")
    # Without this check (n, 1) against (n, d) would broadcast, and train on nonsense.
    if z_s.shape != z_t.shape:
        raise UserError(f"{name}: student is {tuple(z_s.shape)} and teacher {tuple(z_t.shape)}; expected equal shapes")
    if z_s.ndim < 2 or z_s.numel() == 0:
        raise UserError(f"{name}: both sides are {tuple(z_s.shape)}; expected (n, d) with at least one row and column")
    dtype = torch.promote_types(torch.promote_types(z_s.dtype, z_t.dtype), torch.float32)
    return z_s.to(dtype), z_t.to(dtype)


def positive(name: str, argument: str, value: float) -> None:
    """Refuse an argument that is not above 0."""
    if not value > 0:
        raise UserError(f"{name}: {argument} is {value}; expected a number above 0")
