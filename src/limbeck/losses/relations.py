"""Losses that compare relations: how the samples of a batch lie to each other, by products, distances and angles.

Widths of student and teacher may differ, so none of them needs a projector. A row is a sample; whoever has maps
flattens or pools them first. None is a mean over samples that do not see each other: two halves of a batch have fewer
relations than the whole, so the rows of several processes have to be gathered first.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from limbeck.losses.features import unit_rows
from limbeck.losses.inputs import positive, product, relation_rows

# The N^3 cosines are made in blocks of at most as many (8 MB in float32): on a CPU, whose cache they fit, they are then
# quicker than all at once, although the backward pass makes them again.
_MOST_ELEMENTS = 2**21


def similarity_preserving(
    z_s: Float[Tensor, "n d_s"], z_t: Float[Tensor, "n d_t"], *, eps: float = 1e-6
) -> Float[Tensor, ""]:
    """SP: ``1/N^2 || G_s - G_t ||_F^2`` with ``G = Z Z^T``, each row of G divided by its length.

    Rewards a student that finds the same samples alike as the teacher does, in proportion. Ignores rotations of the
    features, a common scale, and, in a row of G, the length of that row's own sample; not the lengths of the others,
    nor the mean: features that are large in every sample (behind a ReLU) make all samples alike. The rows of G have
    length 1, so the value is at most 4/N and falls as 1/N with the batch, whatever D is; hence the large weights in
    use (3000 in RepDistiller).

    Args:
        z_s: Student features; maps are flattened to ``(n, c h w)`` first.
        z_t: Teacher features, of any width.
        eps: A feature that is no longer has no direction: its similarities are zero, and it gets no gradient.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If a side is no (n, d), the rows differ in number or are fewer than two, a side is not floating
            point, or eps is not positive.

    Deviates from: nothing but the way to G: from unit vectors on one side, which changes the rows by a factor that
        their normalization removes, and keeps squares of lengths out. Paper, RepDistiller and mdistiller agree;
        torchdistill divides each row by the sum of its absolute values in the place of its length.

    References:
        F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, section 3.

    Example:
        >>> similarity_preserving(torch.eye(2), torch.ones(2, 5))  # rows (1, 0) against (1, 1) / sqrt 2
        tensor(0.2929)
    """
    positive("similarity_preserving", "eps", eps)
    z_s, z_t = relation_rows("similarity_preserving", z_s, z_t, least=2)
    g_s, g_t = (unit_rows(product(unit_rows(z, eps=eps), z), eps=eps) for z in (z_s, z_t))
    return (g_s - g_t).square().mean()


def relational_distance(
    z_s: Float[Tensor, "n d_s"], z_t: Float[Tensor, "n d_t"], *, eps: float = 1e-6
) -> Float[Tensor, ""]:
    """RKD by distances: ``1/N^2 sum_{i,j} h( d_s[i,j] - d_t[i,j] )``, h the Huber function with its bend at 1.

    ``d[i,j] = |z[i] - z[j]| / m``, m being the mean of the lengths over all pairs of two samples.

    Rewards the same distances between samples, in units of their mean. Ignores the mean of the features, a common
    scale, and rotations. A mean over pairs: the value depends on neither N nor D. Costs N^2 D in time and N^2 in
    memory.

    Args:
        z_s: Student features.
        z_t: Teacher features, of any width.
        eps: A side whose mean distance is no larger has collapsed: its distances are zero, and it gets no gradient.

    Returns:
        A scalar, in at least float32; zero at equality. Two samples that coincide pull at each other with no gradient.

    Raises:
        UserError: If a side is no (n, d), the rows differ in number or are fewer than three (the one distance of two
            samples is always its own mean), a side is not floating point, or eps is not positive.

    Deviates from: the paper, which has a sum over the pairs; the published codes have the mean over N^2 entries with
        the zero diagonal among them, as here. The codes take distances from products of the features, exact to about
        ``3e-4 |z|`` in float32, and none below 1e-6; here the products are of centered features in float64 (not on
        MPS, which has none). The codes give no gradient to the teacher at all, here it gets one if it asks.

    References:
        W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, section 3.2.1.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [2.0]])
        >>> relational_distance(line * 10 - 7, line), relational_distance(line.abs().clamp(max=1.0), line)
        (tensor(0.), tensor(0.1250))
    """
    positive("relational_distance", "eps", eps)
    z_s, z_t = relation_rows("relational_distance", z_s, z_t, least=3)
    return _distance_error(_distances(z_s), _distances(z_t), eps)


def relational_angle(
    z_s: Float[Tensor, "n d_s"], z_t: Float[Tensor, "n d_t"], *, eps: float = 1e-6
) -> Float[Tensor, ""]:
    """RKD by angles: ``1/N^3 sum_{i,j,k} h( cos_s[i,j,k] - cos_t[i,j,k] )``, h as in ``relational_distance``.

    ``cos[i,j,k] = < u(z[i] - z[j]), u(z[k] - z[j]) >`` with ``u(z) = z / |z|``: the angle at j in the triangle of
    three samples.

    Rewards the same shape of every triangle, far and near alike. Ignores what ``relational_distance`` does. A mean over
    triples: the value depends on neither N nor D. The law of cosines gives the angles from the distances, so it costs
    N^2 D and N^3 in time, not N^3 D. The cosines are made in blocks, and again in the backward pass if there are
    several, so that the memory is N^2 and one block.

    Args:
        z_s: Student features.
        z_t: Teacher features, of any width.
        eps: Two samples that are no further apart, or than 1e-7 of their distances from the mean, have no direction
            from one to the other: cosines with it are zero, and it has no gradient.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If a side is no (n, d), the rows differ in number or are fewer than three, a side is not floating
            point, or eps is not positive.

    Deviates from: the paper, which has a sum over triples of three different samples; the published codes have the
        mean over N^3 entries, those with equal indices (always equal on both sides) among them, as here. The codes
        have eps = 1e-12, and so gradients of 1e12 at samples that all but coincide, and they make the N^2 D unit
        vectors and the N^3 cosines at once. From distances, a cosine has a rounding error in proportion to the ratio of
        the two that meet at j. As for distances, a teacher that asks for a gradient gets one.

    References:
        W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, section 3.2.2.

    Example:
        >>> corner, line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        >>> relational_angle(corner, line)  # 90, 45 and 45 degrees against 0, 180 and 0
        tensor(0.1296)
    """
    positive("relational_angle", "eps", eps)
    z_s, z_t = relation_rows("relational_angle", z_s, z_t, least=3)
    return _angle_error(_distances(z_s), _distances(z_t), eps)


def relational(
    z_s: Float[Tensor, "n d_s"],
    z_t: Float[Tensor, "n d_t"],
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    eps: float = 1e-6,
) -> Float[Tensor, ""]:
    """RKD: ``distance_weight relational_distance + angle_weight relational_angle``.

    Rewards and ignores what the two do. Depends on neither N nor D.

    Args:
        z_s: Student features.
        z_t: Teacher features, of any width.
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles. The paper has 25 and 50 for classification, as RepDistiller and mdistiller
            do, and 1 and 2 for metric learning.
        eps: As in the two.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If a side is no (n, d), the rows differ in number or are fewer than three, a side is not floating
            point, or eps is not positive.

    Deviates from: what the two deviate from.

    References:
        W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, section 3.2.

    Example:
        >>> corner, line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        >>> relational(corner, line), relational(corner, line, distance_weight=0.0, angle_weight=1.0)
        (tensor(8.2740), tensor(0.1296))
    """
    positive("relational", "eps", eps)
    z_s, z_t = relation_rows("relational", z_s, z_t, least=3)
    d_s, d_t = _distances(z_s), _distances(z_t)
    return distance_weight * _distance_error(d_s, d_t, eps) + angle_weight * _angle_error(d_s, d_t, eps)


def _distances(z: Tensor) -> Tensor:
    """Distances of all pairs of rows, ``(n, n)``. The gradient of a distance of zero is zero."""
    # From products, since the differences are n times as many elements. In float32 those would know nothing of what is
    # close together.
    exact = z if z.device.type == "mps" else z.double()  # MPS has no float64
    exact = exact - exact.mean(0)
    products = product(exact, exact)
    lengths = products.diagonal()
    sums = lengths.unsqueeze(1) + lengths
    squares = sums - 2 * products
    together = squares <= 64 * torch.finfo(squares.dtype).eps * sums  # that is rounding; NaN is not among them
    return squares.masked_fill(together, 1).sqrt().masked_fill(together, 0).to(z.dtype)


def _distance_error(d_s: Tensor, d_t: Tensor, eps: float) -> Tensor:
    """Mean of the Huber function over all pairs, from the distances."""
    return F.smooth_l1_loss(_relative(d_s, eps), _relative(d_t, eps))


def _relative(d: Tensor, eps: float) -> Tensor:
    """Distances in units of their mean over pairs of two samples."""
    n = d.shape[0]
    mean = (d / (n * (n - 1))).sum()  # divided first, so that the sum does not overflow
    return torch.where(mean <= eps, 0, d / mean.clamp(min=eps))


def _angle_error(d_s: Tensor, d_t: Tensor, eps: float) -> Tensor:
    """Mean of the Huber function over all triples, from the distances."""
    n = d_s.shape[0]
    block = max(1, _MOST_ELEMENTS // n**2)
    if block >= n:
        return _angle_error_at(d_s, d_t, 0, n, eps) / n**3
    total = d_s.new_zeros(())
    for start in range(0, n, block):
        error: Tensor = checkpoint(
            _angle_error_at, d_s, d_t, start, start + block, eps, use_reentrant=False, preserve_rng_state=False
        )
        total = total + error
    return total / n**3


def _angle_error_at(d_s: Tensor, d_t: Tensor, start: int, stop: int, eps: float) -> Tensor:
    """Sum of the Huber function over the triples whose vertex is one of the rows from start to stop."""
    return F.smooth_l1_loss(_cosines_at(d_s, start, stop, eps), _cosines_at(d_t, start, stop, eps), reduction="sum")


def _cosines_at(d: Tensor, start: int, stop: int, eps: float) -> Tensor:
    """Cosines ``(vertices, n, n)`` of the angles at each vertex, from the three sides of each triangle."""
    legs = d[start:stop]
    inverse = torch.where(legs <= eps, 0, 1 / legs.clamp(min=eps))
    squares = legs.square()
    doubled = squares.unsqueeze(2) + squares.unsqueeze(1) - d.square()  # 2 a b cos = a^2 + b^2 - c^2
    return doubled * (inverse.unsqueeze(2) * inverse.unsqueeze(1) / 2)
