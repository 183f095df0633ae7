"""Roots of positive semidefinite matrices, for whitening and for orthonormal projectors."""

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
        with torch.autocast(vectors.device.type, enabled=False):  # compiled, it would be the forward pass's
            grad = vectors @ (k * (vectors.mT @ grads[0] @ vectors)) @ vectors.mT
        return grad, grad.diagonal().sum()  # the ridge moves along I


def whitened_by_factor(centered: Float[Tensor, "n d"], c: Float[Tensor, "d d"]) -> Float[Tensor, "n d"]:
    """``x L^-T`` for rows x, where ``L L^T = C``. It can be differentiated once.

    With g the gradient of the result y, and ``h = g L^-1``, the gradient of x is h, that of L is the lower triangle of
    ``-h^T y``, and that of C is ``L^-T P(L^T dL) L^-1``, where P takes the lower triangle and half the diagonal.

    Args:
        centered: The rows.
        c: A symmetric positive definite matrix, of their precision or a wider one.

    Example:
        >>> whitened_by_factor(torch.tensor([[2.0, 4.0]]), torch.tensor([[4.0, 2.0], [2.0, 2.0]]))
        tensor([[1., 3.]])
    """
    y: Tensor = _ByFactor.apply(centered, c)  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    return y


class _ByFactor(torch.autograd.Function):
    """See :func:`whitened_by_factor`. By hand, since compiled the gradients of torch's own run under autocast."""

    @staticmethod
    def forward(ctx: Any, centered: Tensor, c: Tensor) -> Tensor:
        factor = cast(Tensor, torch.linalg.cholesky(c))  # pyright: ignore[reportUnknownMemberType]
        y = _solved(factor.to(centered.dtype).mT, centered, upper=True)  # no inverse, no transposed copy of the rows
        ctx.save_for_backward(factor, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        factor, y = ctx.saved_tensors
        with torch.autocast(y.device.type, enabled=False):
            of_rows = _solved(factor.to(y.dtype), grads[0], upper=False)
            of_factor = -(of_rows.mT @ y).to(factor.dtype).tril()
            lower = (factor.mT @ of_factor).tril()
            lower = lower - lower.diagonal().diag() / 2
            half = _solved(factor, _solved(factor, lower, upper=False).mT, upper=False)
            return of_rows, (half + half.mT) / 2


def _solved(triangle: Tensor, rows: Tensor, *, upper: bool) -> Tensor:
    """``rows triangle^-1``."""
    return cast(Tensor, torch.linalg.solve_triangular(triangle, rows, upper=upper, left=False))  # pyright: ignore
