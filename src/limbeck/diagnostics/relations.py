"""Relations of channels, summed over a batch: all that the dynamics of a projector see of features."""

from jaxtyping import Float
from torch import Tensor

from limbeck.diagnostics.inputs import product
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32


def self_relation(z_s: Float[Tensor, "*n d_s"], *, centered: bool = False) -> Float[Tensor, "d_s d_s"]:
    """Relation of the student's channels with each other: ``C_s = Z_s^T Z_s``.

    A sum over N (all leading dimensions), as in the paper, not a mean: it grows with N. Uncentered relations of two
    batches, or of two processes, add up to that of both. Divide by N for second moments.

    Args:
        z_s: Student features, in front of the projector.
        centered: Take the mean of each channel off first: N times the covariance, biased. It is what a projector
            behind which a batch norm follows sees.

    Returns:
        The matrix, symmetric and with no negative eigenvalue, in at least float32.

    Raises:
        UserError: If there are no rows or the features are not floating point.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 6.

    Example:
        >>> import torch
        >>> self_relation(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        tensor([[10.,  2.],
                [ 2.,  4.]])
    """
    return _relation("self_relation", z_s, z_s, centered)


def cross_relation(
    z_s: Float[Tensor, "*n d_s"], z_t: Float[Tensor, "*n d_t"], *, centered: bool = False
) -> Float[Tensor, "d_s d_t"]:
    """Relation of the student's channels with the teacher's: ``C_st = Z_s^T Z_t``.

    A sum over N, as :func:`self_relation`. It is not symmetric, not even where the widths are equal.

    Args:
        z_s: Student features, in front of the projector.
        z_t: Teacher features of the same rows.
        centered: Take the mean of each channel off first, on both sides.

    Returns:
        The matrix, in at least float32.

    Raises:
        UserError: If the rows differ, there are none, or a side is not floating point.

    Deviates from: the paper's text in what it is called there: the fixed point of a whitened student, which is this
        matrix, is said to be symmetric.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 6.

    Example:
        >>> import torch
        >>> cross_relation(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0], [1.0]]))
        tensor([[4.],
                [2.]])
    """
    return _relation("cross_relation", z_s, z_t, centered)


def _relation(name: str, z_s: Tensor, z_t: Tensor, centered: bool) -> Tensor:
    if not (z_s.is_floating_point() and z_t.is_floating_point()):
        raise UserError(f"{name}: features are {z_s.dtype} and {z_t.dtype}; expected floating point")
    if z_s.ndim < 2 or z_s.numel() == 0 or z_s.shape[:-1] != z_t.shape[:-1]:
        raise UserError(
            f"{name}: features are {tuple(z_s.shape)} and {tuple(z_t.shape)}; expected (n, d_s) and (n, d_t)"
        )
    z_s, z_t = at_least_float32(z_s).flatten(0, -2), at_least_float32(z_t).flatten(0, -2)
    if centered:  # before the product: afterwards, large means would have eaten the digits
        z_s, z_t = z_s - z_s.mean(0), z_t - z_t.mean(0)
    return product(z_s.T, z_t)
