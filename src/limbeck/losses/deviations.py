"""What distinguishes the elements of a row: the common part of z-scores and of Pearson's correlation."""

import math

from torch import Tensor

from limbeck.losses.features import unit_rows

# Deviations no larger than this share of the row's largest element are the rounding of float32, not a pattern.
ROUNDING = 1e-6
# Rows that are smaller throughout are constant as well: dividing by less would make gradients overflow in float32.
SMALLEST = 1e-20


def deviation_directions(x: Tensor) -> Tensor:
    """Direction of each row's deviations from its mean, of length 1: zero, without gradient, for a constant row.

    The inner product of two such directions is Pearson's correlation.
    """
    # In units of the largest element, so that no square overflows. The unit cancels, so it needs no gradient.
    x = x / x.detach().abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    return unit_rows(x - x.mean(-1, keepdim=True), eps=ROUNDING * math.sqrt(x.shape[-1]))
