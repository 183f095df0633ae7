"""The logarithm of a sum of powers: what both forms of LogSum have in common."""

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.inputs import positive


def log_sum_of_powers(name: str, x: Tensor, *, alpha: float, eps: float, count: int) -> Tensor:
    """``log( sum |x|^alpha + eps count )``, for both forms of LogSum."""
    if not alpha >= 1:  # below 1 the gradient of the power is infinite at equality
        raise UserError(f"{name}: alpha is {alpha}; expected at least 1")
    positive(name, "eps", eps)
    x = x.abs()
    # |x| = 1e10, possible without a norm, has no 4th power in float32; the unit cancels, so it needs no gradient.
    # Never below 1, since eps / unit^alpha would overflow in its place.
    unit = x.detach().amax().clamp(min=1)
    return torch.log((x / unit).pow(alpha).sum() + eps * count * unit.pow(-alpha)) + alpha * torch.log(unit)
