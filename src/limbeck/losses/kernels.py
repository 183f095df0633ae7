"""Losses that compare how alike the samples of a batch are to each other, by a kernel of their directions.

As with all relations, widths may differ, and the rows of several processes have to be gathered first.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.features import unit_rows
from limbeck.losses.inputs import positive, product, relation_rows


def probabilistic_transfer(
    z_s: Float[Tensor, "n d_s"], z_t: Float[Tensor, "n d_t"], *, eps: float = 1e-7
) -> Float[Tensor, ""]:
    """PKT: ``1/N^2 sum_{i,j} p_t[i,j] log( p_t[i,j] / p_s[i,j] )``.

    ``p[i,j] = k[i,j] / sum_j k[i,j]`` is the probability to choose j as the neighbor of i, by the cosine kernel
    ``k[i,j] = (1 + < u(z[i]), u(z[j]) >) / 2 + eps``, ``u(z) = z / |z|``.

    Rewards the same neighborhoods: the teacher's near neighbors count most. Ignores rotations and the length of every
    feature; not the mean, which pulls all cosines together. The 1/N of a mean over the rows is there twice, so the
    value falls as 1/N; hence the large weights in use (30,000 in RepDistiller).

    Args:
        z_s: Student features.
        z_t: Teacher features, of any width.
        eps: Least kernel value, so that opposite features are possible neighbors. A feature no longer than 1e-6 has
            no direction: its cosines are zero, and it gets no gradient.

    Returns:
        A scalar, in at least float32, never below zero but for rounding; zero at equality.

    Raises:
        UserError: If a side is no (n, d), the rows differ in number or are fewer than two, a side is not floating
            point, or eps is not positive.

    Deviates from: the paper, where no sample is its own neighbor and the divergence is a sum; the authors' code has the
        diagonal and the mean over N^2 entries, as here. That code adds eps to the probabilities inside the logarithm,
        so that the gradient is not zero at equality; here eps is in the kernel, and the probabilities sum to 1.

    References:
        N. Passalis, A. Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
        section 3.

    Example:
        >>> z_t = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # neighbors 2/3 and 1/3, against 1/2 and 1/2
        >>> probabilistic_transfer(torch.ones(2, 3), z_t), probabilistic_transfer(9 * z_t, z_t)
        (tensor(0.0283), tensor(0.))
    """
    positive("probabilistic_transfer", "eps", eps)
    z_s, z_t = relation_rows("probabilistic_transfer", z_s, z_t, least=2)
    p_s, p_t = _neighbors(z_s, eps), _neighbors(z_t, eps)
    return (p_t * (p_t.log() - p_s.log())).mean()


def correlation_congruence(
    z_s: Float[Tensor, "n d_s"], z_t: Float[Tensor, "n d_t"], *, gamma: float = 0.4, order: int = 2
) -> Float[Tensor, ""]:
    """CC: ``1/N^2 sum_{i,j} ( k_s[i,j] - k_t[i,j] )^2``, k a Gaussian kernel of unit vectors by its Taylor series.

    With c the cosine of two samples, ``exp(-gamma |u(z[i]) - u(z[j])|^2) = exp(-2 gamma) exp(2 gamma c)``, of which
    the last factor is taken to its P-th order: ``k = exp(-2 gamma) sum_{p=0..P} (2 gamma c)^p / p!``.

    Rewards the same similarity of every pair, near ones the more so the larger gamma is. Ignores rotations and the
    length of every feature; not the mean. A mean over pairs, at most 1: the value depends on neither N nor D.

    Args:
        z_s: Student features.
        z_t: Teacher features, of any width.
        gamma: Inverse width of the kernel; 0.4 as in the paper.
        order: P, at least 1; 2 as in the paper. Even orders are no monotonic kernel if gamma is large.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If a side is no (n, d), the rows differ in number or are fewer than two, a side is not floating
            point, gamma is not positive or the order is below 1.

    Deviates from: the paper, which embeds both sides by learned layers of one width first; that is a projector's
        business. A feature no longer than 1e-6 has no direction: its cosines are zero, and it gets no gradient. The
        codes differ more: torchdistill takes the root of the sum of squares (then divides by N^2), and leaves unit
        vectors to the layers before; RepDistiller's ``Correlation`` is another loss, the product of the absolute
        errors of neighbors in the batch, which needs equal widths.

    References:
        B. Peng, X. Jin, J. Liu, D. Li, Y. Wu, Y. Liu, S. Zhou, Z. Zhang, "Correlation Congruence for Knowledge
        Distillation", ICCV 2019, section 3.

    Example:
        >>> correlation_congruence(torch.eye(2), torch.ones(2, 5), gamma=0.5, order=1)  # 1/e against 2/e, for i != j
        tensor(0.0677)
    """
    positive("correlation_congruence", "gamma", gamma)
    if order < 1:
        raise UserError(f"correlation_congruence: order is {order}; expected at least 1")
    z_s, z_t = relation_rows("correlation_congruence", z_s, z_t, least=2)
    return (_gaussian(z_s, gamma, order) - _gaussian(z_t, gamma, order)).square().mean()


def _cosines(z: Tensor) -> Tensor:
    directions = unit_rows(z)
    return product(directions, directions)


def _neighbors(z: Tensor, eps: float) -> Tensor:
    """Each row: the probabilities of all rows as its neighbors."""
    kernel = ((1 + _cosines(z)) / 2).clamp(min=0) + eps  # rounding leaves cosines a little below -1
    return kernel / kernel.sum(1, keepdim=True)


def _gaussian(z: Tensor, gamma: float, order: int) -> Tensor:
    """Gaussian kernel of unit vectors to some order of its Taylor series, by Horner's rule."""
    x = 2 * gamma * _cosines(z)
    series = torch.ones_like(x)
    for p in range(order, 0, -1):
        series = 1 + x / p * series
    return math.exp(-2 * gamma) * series
