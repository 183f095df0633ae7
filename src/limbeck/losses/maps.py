"""Losses of feature maps ``(n, c, h, w)``.

Where the two maps differ in height or width, the larger is average-pooled to the smaller, in each direction, as the
published codes do. ``limbeck.features.pooling.unpooled`` and ``token_map`` give such maps.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.features import unit_rows
from limbeck.losses.inputs import in_one_precision, positive, product


def attention_transfer(
    x_s: Float[Tensor, "n c_s h_s w_s"], x_t: Float[Tensor, "n c_t h_t w_t"], *, power: float = 2.0, eps: float = 1e-12
) -> Float[Tensor, ""]:
    """AT: ``1/(N H W) sum_n | a_s[n] - a_t[n] |^2``, a being where a map is large.

    ``a[n] = q[n] / |q[n]|`` with ``q[n,y,x] = mean_c |x[n,c,y,x]|^p``, over the H W positions.

    Rewards a student that is active where the teacher is. Ignores which channels are (so their numbers may differ),
    their signs, and the scale of each map. The a have length 1, so the value is at most 2/(H W): it falls with the
    size of the map, not with N, and does not depend on the number of channels; hence the large weights in use (1000
    in RepDistiller).

    Args:
        x_s: Student map.
        x_t: Teacher map; of another size, the larger is average-pooled, before the power, to the smaller.
        power: p, at least 1; 2 in the paper and all published codes. The larger, the more the peaks count.
        eps: A q that is no longer, in units of the features to the power p, is no attention: zero, without gradient.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If a side is no (n, c, h, w), the images differ in number, one of the sizes is zero, a side is not
            floating point, power is below 1 or eps not positive.

    Deviates from: the paper's equation 2, which has the distance of the two and not its square, with a factor 1/2; the
        authors' code has the mean of squares over images and positions, as here, and so have RepDistiller, mdistiller
        and (unless it is told to follow the paper) torchdistill. The paper's sum over the channels is a mean in the
        codes, which the normalization makes the same. The sum over the layers of a network is left to the terms.

    References:
        S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional
        Neural Networks via Attention Transfer", ICLR 2017, equations 1 and 2.

    Example:
        >>> import torch
        >>> x_s, x_t = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]], [[0.0, -1.0]]]])
        >>> attention_transfer(x_s, x_t), attention_transfer(x_s, -x_s)
        (tensor(1.), tensor(0.))
    """
    positive("attention_transfer", "eps", eps)
    if not power >= 1:  # below 1 the gradient of the power is infinite at zero, and half of a map is zero behind a ReLU
        raise UserError(f"attention_transfer: power is {power}; expected at least 1")
    x_s, x_t = _maps("attention_transfer", x_s, x_t)
    a_s, a_t = (unit_rows(x.abs().pow(power).mean(1).flatten(1), eps=eps) for x in (x_s, x_t))
    return (a_s - a_t).square().mean()


def neuron_selectivity(
    x_s: Float[Tensor, "n c_s h_s w_s"], x_t: Float[Tensor, "n c_t h_t w_t"], *, eps: float = 1e-6
) -> Float[Tensor, ""]:
    """NST: squared maximum mean discrepancy of the channels of both sides, under the kernel ``k(a, b) = <a, b>^2``.

    A channel is a vector over the H W positions, of length 1. With f the channels of one image, the mean over the
    images of::

        mean_{i,i'} k(f_s[i], f_s[i']) + mean_{j,j'} k(f_t[j], f_t[j']) - 2 mean_{i,j} k(f_s[i], f_t[j])

    Rewards a student whose channels respond to the same places as the teacher's, as a set: for this kernel the same
    mean of ``f f^T``. Ignores which channel does (so their numbers may differ), its sign, and its scale. A mean over N,
    between 0 and 2, that depends neither on the number of channels nor, by itself, on the size of the map.

    The three means are ``| F_s F_s^T / C_s - F_t F_t^T / C_t |^2`` with F the matrix of positions by channels. That
    form is taken where it makes the smaller matrices, (H W, H W), otherwise those of channels by channels.

    Args:
        x_s: Student map.
        x_t: Teacher map; of another size, the larger is average-pooled to the smaller.
        eps: A channel of one image that is no longer is dead: its kernels are zero, and it gets no gradient.

    Returns:
        A scalar, in at least float32, never below zero but for rounding; zero at equality.

    Raises:
        UserError: If a side is no (n, c, h, w), the images differ in number, one of the sizes is zero, a side is not
            floating point, or eps is not positive.

    Deviates from: RepDistiller and mdistiller in nothing but their gradient, which the teacher's own mean never has
        there. The paper tries other kernels, of which this one (d = 2, c = 0) is best, and has a factor 1/2 in front.

    References:
        Z. Huang, N. Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219,
        2017, section 4.

    Example:
        >>> import torch
        >>> x_s, x_t = torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]], [[0.0, -1.0]]]])
        >>> neuron_selectivity(x_s, x_t), neuron_selectivity(torch.cat([x_t, -x_t], 1), x_t)
        (tensor(2.), tensor(0.))
    """
    positive("neuron_selectivity", "eps", eps)
    x_s, x_t = _maps("neuron_selectivity", x_s, x_t)
    f_s, f_t = unit_rows(x_s.flatten(2), eps=eps), unit_rows(x_t.flatten(2), eps=eps)  # (n, c, positions)
    c_s, c_t, positions = f_s.shape[1], f_t.shape[1], f_s.shape[2]
    if 2 * positions**2 <= c_s**2 + c_t**2 + c_s * c_t:
        g_s, g_t = product(f_s.mT, f_s.mT) / c_s, product(f_t.mT, f_t.mT) / c_t
        return (g_s - g_t).square().sum((1, 2)).mean()
    k_ss, k_tt, k_st = (product(a, b).square().mean() for a, b in ((f_s, f_s), (f_t, f_t), (f_s, f_t)))
    return k_ss + k_tt - 2 * k_st


def hierarchical_context(
    x_s: Float[Tensor, "n c h_s w_s"], x_t: Float[Tensor, "n c h_t w_t"], *, levels: Sequence[int] = (4, 2, 1)
) -> Float[Tensor, ""]:
    """HCL of ReviewKD: mean squared differences of the maps and of their averages over ever larger regions.

    ``sum_l w_l mean( (A_l x_s - A_l x_t)^2 ) / sum_l w_l``: first the whole map, A the identity and w = 1; then, for
    each level l that is smaller than the map in both directions, A the average pooling to l x l and w half of the
    weight before.

    Rewards closeness at every place, and once more of what larger regions have on average, where noise of single
    positions is gone. Ignores nothing; a channel of large variance or mean counts most. A mean: the value depends on
    neither N, the number of channels, nor the size of the map.

    Args:
        x_s: Student map, projected to the teacher's channels.
        x_t: Teacher map; of another size, the larger is average-pooled to the smaller.
        levels: Sides of the pooled maps, in the order of their weights 1/2, 1/4, ...; those of a map that is too small
            for a level pass over it.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If a side is no (n, c, h, w), the images or channels differ in number, one of the sizes is zero, a
            side is not floating point, or a level is below 1.

    Deviates from: the published code where sizes differ (there the student is enlarged by nearest neighbors before the
        loss, inside of the fusion module) and for maps that are not square (there the height alone decides on a
        level). The paper gives no weights; they are the code's. The sum over the stages of a network is left to the
        terms.

    References:
        P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3, on the
        hierarchical context loss.

    Example:
        >>> import torch
        >>> x_t = torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]])
        >>> hierarchical_context(0 * x_t, x_t)  # 1 for the map, 0 for its mean, with weights 1 and 1/2
        tensor(0.6667)
    """
    if any(level < 1 for level in levels):
        raise UserError(f"hierarchical_context: levels are {tuple(levels)}; expected numbers of at least 1")
    x_s, x_t = _maps("hierarchical_context", x_s, x_t)
    if x_s.shape[1] != x_t.shape[1]:
        raise UserError(
            f"hierarchical_context: student has {x_s.shape[1]} channels and teacher {x_t.shape[1]}; "
            "expected the same after the projector"
        )
    error, weight, total = F.mse_loss(x_s, x_t), 1.0, 1.0
    for level in levels:
        if level < min(x_s.shape[2:]):
            weight /= 2
            total += weight
            error = error + weight * F.mse_loss(_averaged(x_s, level, level), _averaged(x_t, level, level))
    return error / total


def _maps(name: str, x_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in one precision and of one size, after the checks that every loss of maps shares."""
    x_s, x_t = in_one_precision(name, x_s, x_t)
    if x_s.ndim != 4 or x_t.ndim != 4 or x_s.shape[0] != x_t.shape[0] or 0 in (x_s.numel(), x_t.numel()):
        raise UserError(
            f"{name}: student is {tuple(x_s.shape)} and teacher {tuple(x_t.shape)}; "
            "expected (n, c_s, h_s, w_s) and (n, c_t, h_t, w_t), of the same images, none empty"
        )
    h, w = min(x_s.shape[2], x_t.shape[2]), min(x_s.shape[3], x_t.shape[3])
    return _averaged(x_s, h, w), _averaged(x_t, h, w)


def _averaged(x: Tensor, h: int, w: int) -> Tensor:
    """The map average-pooled to a height and width, itself where it has them already."""
    return x if x.shape[2:] == (h, w) else F.adaptive_avg_pool2d(x, (h, w))
