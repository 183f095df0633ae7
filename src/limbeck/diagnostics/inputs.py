"""What every diagnostic asks of its inputs, and the precision that it computes in."""

import functools

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.norms.roots import widest


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in at least float32, which autocast would lower."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype)


def check_shapes(name: str, c_s: Tensor, *wide: Tensor) -> None:
    """Refuse relations and projectors that do not fit each other."""
    if c_s.ndim != 2 or c_s.shape[0] != c_s.shape[1]:
        raise UserError(f"{name}: c_s is {tuple(c_s.shape)}; expected (d_s, d_s)")
    for x in wide:
        if x.ndim != 2 or x.shape[0] != c_s.shape[0] or x.shape != wide[0].shape:
            shapes = ", ".join(str(tuple(each.shape)) for each in wide)
            raise UserError(f"{name}: c_s is {tuple(c_s.shape)}, the rest {shapes}; expected (d_s, d_s), (d_s, d_t)")


def check_step(name: str, lr: float, decay: float) -> None:
    """Refuse a step that is none."""
    if not lr > 0:
        raise UserError(f"{name}: lr is {lr}; expected a number above 0")
    if not 0 <= decay < 1:
        raise UserError(f"{name}: decay is {decay}; expected 0 or more, below 1")


def check_finite(name: str, **arguments: Tensor) -> None:
    """Refuse what is not floating point, and NaN or infinity, which comparisons would turn into a number."""
    for argument, x in arguments.items():
        if not x.is_floating_point():
            raise UserError(f"{name}: {argument} is {x.dtype}; expected floating point")
        if not bool(x.isfinite().all()):
            raise UserError(f"{name}: {argument} has values that are not finite")


def same_shape(name: str, **arguments: Tensor) -> None:
    """Refuse matrices of different shapes, none at all, and values that are not finite."""
    shapes = [tuple(x.shape) for x in arguments.values()]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1 or 0 in shapes[0]:
        found = " and ".join(f"{argument} {shape}" for argument, shape in zip(arguments, shapes, strict=True))
        raise UserError(f"{name}: {found}; expected (d_s, d_t) twice")
    check_finite(name, **arguments)


def frobenius(x: Tensor) -> Tensor:
    """Frobenius norm, in at least float32; the squares are taken in float64 where the device has it."""
    return narrow(x.to(widest(x.device)).square().sum().sqrt(), x)


def centered_rows(name: str, *, least: int = 2, **features: Tensor) -> list[Tensor]:
    """Features as rows without their means, in float64 where the device has it.

    A channel that varies by less than the precision of its data type resolves is constant, and exactly zero: what is
    left of it would be noise, which correlations blow up to full size.
    """
    check_finite(name, **features)
    counts = {x.shape[:-1] for x in features.values()}
    first = next(iter(features.values()))
    if len(counts) > 1 or any(x.ndim < 2 or x.shape[-1] == 0 for x in features.values()):
        found = " and ".join(f"{argument} {tuple(x.shape)}" for argument, x in features.items())
        raise UserError(f"{name}: {found}; expected (n, d) with the same n")
    if (n := first.shape[:-1].numel()) < least:
        raise UserError(f"{name}: {n} rows; expected at least {least}")
    return [_centered(x.flatten(0, -2)) for x in features.values()]


def _centered(x: Tensor) -> Tensor:
    resolved = torch.finfo(x.dtype).eps * x.abs().amax(0).to(widest(x.device))
    x = x.to(widest(x.device))
    x = x - x[:1]  # first, so that a constant channel is exactly zero, whatever a mean is rounded to
    x = x - x.mean(0)
    return torch.where(x.square().mean(0).sqrt() > resolved, x, 0)


def standardized(x: Tensor) -> Tensor:
    """Centered rows with each channel divided by its (biased) deviation; constant channels stay zero."""
    deviation = x.square().mean(0).sqrt()
    return x / torch.where(deviation > 0, deviation, 1)


def narrow(x: Tensor, *like: Tensor) -> Tensor:
    """A result in the precision of what it was computed from, at least float32."""
    return x.to(functools.reduce(torch.promote_types, (each.dtype for each in like), torch.float32))
