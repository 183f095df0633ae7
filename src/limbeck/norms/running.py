"""Mean and covariance over the batches of a training, for whitening and for the closed-form projector."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import UserError


@final
class Running(nn.Module):
    """Exponentially weighted mean and covariance of the batches so far.

    Batch number i of t has the weight ``w_i = m (1-m)^(t-i) / (1 - (1-m)^t)``; they sum to one from the first batch on,
    so no initial value is mixed in (the bias correction of Adam). Mean and covariance are those of all batches together
    under these weights: the covariance has, besides the average of the covariances within the batches, the covariance
    of their means, which a plain average of batch covariances leaves out. Every batch counts the same, whatever its
    number of rows.

    All three buffers are in the state dict. They are replaced, not overwritten, since a backward pass may still need
    the last ones, and in at least float32, even where the module has been moved to a half precision.

    Args:
        rows: The first so many channels are the rows of the covariance that is kept.
        columns: All channels, its columns.
        momentum: Weight m of a new batch, above 0 and at most 1.
        name: What this belongs to, for messages.

    Raises:
        UserError: If the momentum is out of its range; on reading, if no batch has been seen.

    References:
        T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances", COMPSTAT 1982 (moments of two parts together).
        D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 3 (bias correction).
    """

    mean: Tensor
    covariance: Tensor
    total: Tensor

    def __init__(self, rows: int, columns: int, *, momentum: float, name: str) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise UserError(f"{name}: momentum is {momentum}; expected a number above 0 and at most 1")
        self.momentum = momentum
        self.name = name
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("covariance", torch.zeros(rows, columns))
        self.register_buffer("total", torch.zeros(()))  # 1 - (1-m)^t
        self._has_seen = False

    def blended(
        self, mean: Float[Tensor, " columns"], covariance: Float[Tensor, "rows columns"]
    ) -> tuple[Float[Tensor, " columns"], Float[Tensor, "rows columns"], Float[Tensor, ""]]:
        """Mean, covariance and total weight with one batch more; gradients flow to that batch alone."""
        dtype = mean.dtype
        total = (1 - self.momentum) * self.total.to(dtype) + self.momentum
        share = self.momentum / total
        shift = mean - self.mean.to(dtype)
        between = (1 - share) * torch.outer(shift[: covariance.shape[0]], shift)
        old = self.covariance.to(dtype)
        return self.mean.to(dtype) + share * shift, old + share * (covariance - old + between), total

    def keep(self, mean: Tensor, covariance: Tensor, total: Tensor) -> None:
        """Make what :meth:`blended` gave the state."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        self.mean = mean.detach().to(dtype)
        self.covariance = covariance.detach().to(dtype)
        self.total = total.detach().to(dtype)
        self._has_seen = True

    def check_seen(self, missing: str) -> None:
        """Refuse to go on before the first batch; ``missing`` says what is then missing and how to get it."""
        if not self._has_seen:  # a flag, so that the device is asked once, not in every step
            if not float(self.total) > 0:
                raise UserError(f"{self.name}: {missing}")
            self._has_seen = True

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"momentum={self.momentum}"
