"""The mean of several projectors."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.projectors.layers import check_at_least_one


def ensemble(d_s: int, d_t: int, *, count: int = 3, activation: Callable[[], nn.Module] = nn.ReLU) -> "Ensemble":
    """The mean of ``count`` projectors: ``z -> 1/q sum_k activation(z W_k + b_k)``.

    The members see the same features and the same loss, and differ by their first values only. Without the activation
    they would be one linear map; with ReLU the output is not negative, as a feature behind a ReLU and a pool is. Meant
    for such a teacher and a loss of the direction (cosine). Behind a batch norm its biases are not dead.

    Cost: ``count d_s d_t`` multiply-adds a row, ``count (d_s + 1) d_t`` parameters.
    Init: each member as :func:`limbeck.projectors.linear` with a bias, drawn one after the other.
    Weight decay: of the matrices under both optimizers; of the biases under ``sgd`` only.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.
        count: Number q of projectors. 3 is that of the published code.
        activation: Makes the module behind each linear layer; called once for each.

    Returns:
        The module; its ``members`` are the projectors, each a linear layer and its activation.

    Raises:
        UserError: If a width or the count is below 1.

    Deviates from: the published code in nothing but an untrained fourth projector there. The paper's formula has no
        bias, its code does.

    References:
        Y. Chen, S. Wang, J. Liu, X. Xu, F. de Hoog, Z. Huang, "Improved Feature Distillation via Projector Ensemble",
        NeurIPS 2022.

    Example:
        >>> ensemble(64, 256)(torch.randn(8, 64)).shape
        torch.Size([8, 256])
    """
    check_at_least_one("ensemble", {"d_s": d_s, "d_t": d_t, "count": count})
    return Ensemble([nn.Sequential(nn.Linear(d_s, d_t), activation()) for _ in range(count)])


@final
class Ensemble(nn.Module):
    """The mean of what its members compute; see :func:`ensemble`."""

    def __init__(self, members: list[nn.Sequential]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, z: Float[Tensor, "*n d_s"]) -> Float[Tensor, "*n d_t"]:
        """The mean over the members."""
        return torch.stack([member(z) for member in self.members]).mean(0)
