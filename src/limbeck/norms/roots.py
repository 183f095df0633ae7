"""The inverse square root of a positive semidefinite matrix, for whitening and for orthonormal projectors."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def widest(device: torch.device) -> torch.dtype:
    """Float64, or float32 on the one device (MPS) that has no float64.

    For means, and to factorize matrices of the width of a feature: in float32 a covariance's small eigenvalues would
    have no digits left.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def inverse_square_root(c: Float[Tensor, "d d"], ridge: Float[Tensor, ""]) -> Float[Tensor, "d d"]:
    """The symmetric ``(C + ridge I)^(-1/2)``.

    With eigenvalues ``l`` and eigenvectors ``V`` of C and ``r = sqrt(l + ridge)`` it is ``V diag(1/r) V^T``, and its
    differential ``V (K * V^T dC V) V^T`` with ``K_ij = -1 / (r_i r_j (r_i + r_j))``, the divided difference of
    ``1/sqrt``. There is no difference of eigenvalues in the denominator, as there is in the derivative of the
    eigenvectors, so equal eigenvalues are nothing special; a constant batch or an orthonormal matrix has all of them
    equal. Eigenvalues that rounding has made negative count as 0.

    Args:
        c: A symmetric positive semidefinite matrix.
        ridge: Added to its eigenvalues, above 0.

    Returns:
        The root, in the dtype of c. It can be differentiated once.

    Example:
        >>> inverse_square_root(torch.diag(torch.tensor([3.0, 15.0])), torch.tensor(1.0))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])
    """
    root: Tensor = _InverseSquareRoot.apply(c, ridge)  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    return root


class _InverseSquareRoot(torch.autograd.Function):
    """See :func:`inverse_square_root`."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, ridge: Tensor) -> Tensor:
        values, vectors = cast(tuple[Tensor, Tensor], torch.linalg.eigh(c))  # pyright: ignore[reportUnknownMemberType]
        r = (values.clamp(min=0) + ridge).sqrt()
        ctx.save_for_backward(r, vectors)
        return (vectors / r) @ vectors.mT

    @staticmethod
    @once_differentiable  # what is saved is not the input, so a second derivative would be wrong in silence
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        r, vectors = ctx.saved_tensors
        k = -1 / (r[:, None] * r * (r[:, None] + r))
        grad = vectors @ (k * (vectors.mT @ grads[0] @ vectors)) @ vectors.mT
        return grad, grad.diagonal().sum()  # the ridge moves along I
