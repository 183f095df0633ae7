"""The loss that wants channels of the student that do not correlate."""

import math

from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.features import unit_rows
from limbeck.losses.inputs import product, relation_rows


def decorrelation(
    z_s: Float[Tensor, "n d_s"], z_t: Float[Tensor, "n d_t"], *, standardized: bool = True
) -> Float[Tensor, ""]:
    """How far the student's channels are from uncorrelated: ``1/(D (D - 1)) sum_{i != j} C[i,j]^2``.

    C is the covariance of the student's features over the batch, or their correlation: of centered channels, which
    are divided by their standard deviation if ``standardized``.

    Rewards channels that each say something of their own. Ignores the teacher: its values are not read, and it is in
    the signature so that this plugs in as any other loss, beside one that does read it. It exists to test what theory
    says of the projector, that whitened features make its fixed point ``W = C_st``: it pushes ``Z_s^T Z_s`` of
    standardized features towards N times the identity. Also ignores the mean, and if standardized the scale, of every
    channel. A mean over pairs of channels, between 0 and 1 if standardized. It cannot be zero in a batch of N <= D
    rows, where C has no full rank: the least then is ``(D/(N-1) - 1)/(D - 1)``; channels that are independent by
    nature have about ``1/(N-1)``.

    Args:
        z_s: Student features, at least two channels.
        z_t: Teacher features, of any width.
        standardized: Correlations in the place of covariances. A channel whose root sum of squares, once centered, is
            no larger than 1e-6 is constant: it correlates with nothing, and it gets no gradient.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If a side is no (n, d), the rows differ in number or are fewer than two, the student has one
            channel, or a side is not floating point.

    Deviates from: VICReg, whose covariances have N - 1 in the denominator and whose sum is divided by D, and Barlow
        Twins, which has the correlation of two views, and a sum.

    References:
        A. Bardes, J. Ponce, Y. LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
        Learning", ICLR 2022, section 4, the covariance term.
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024, on
        whitened features.

    Example:
        >>> import torch
        >>> z_s = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, -1.0], [1.0, 2.0, -1.0], [2.0, 4.0, 1.0]])
        >>> decorrelation(z_s, z_s)  # the first two are the same channel, the third is independent of them
        tensor(0.3333)
    """
    z_s, z_t = relation_rows("decorrelation", z_s, z_t, least=2)
    n, d = z_s.shape
    if d < 2:
        raise UserError("decorrelation: student has 1 channel; expected at least 2")
    channels = (z_s - z_s.mean(0)).T  # (d, n)
    channels = unit_rows(channels) if standardized else channels / math.sqrt(n)
    # Each pair once. Not the sum of all squares less the diagonal's, of which nothing exact is left near zero.
    return 2 * product(channels, channels).triu(1).square().sum() / (d * (d - 1))
