"""Distances of two features of the same shape as distributions: over the channels, or a Gaussian over the positions."""

from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.inputs import pair, positive
from limbeck.losses.logits import softmax_kl


def feature_kl(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"], *, temperature: float) -> Float[Tensor, ""]:
    """Features as distributions: ``T^2 mean_n KL( softmax(z_t[n] / T) || softmax(z_s[n] / T) )`` over the channels.

    Rewards the order and the distances of a sample's channels, the largest channels first: at a low temperature only
    which channel leads, at a high one (the units of the features decide what that is) half the squared error of the
    centered features, over D. Ignores a constant added to all channels of a sample. A mean over N and a sum over the
    D channels. It is ``kl_divergence`` for something that was no logit, hence without a default temperature.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.
        temperature: T, in the units of the features; behind a norm 1 is a start.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, or the temperature is not
            positive.

    Deviates from: the reference, which has it for logits, and the cross-entropy in the place of the divergence.

    References:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning
        Workshop, equation 1 and the end of section 2.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> feature_kl(z + 3.0, z, temperature=1.0), feature_kl(-z, z, temperature=1.0)
        (tensor(0.), tensor(1.5232))
    """
    return softmax_kl("feature_kl", z_s, z_t, temperature=temperature)


def gaussian_wasserstein(
    z_s: Float[Tensor, "n positions d"],
    z_t: Float[Tensor, "n positions d"],
    *,
    mean_weight: float = 2.0,
    eps: float = 1e-5,
) -> Float[Tensor, ""]:
    """Wasserstein distance of Gaussians (WKD-F): ``mean_n ( w |m_s[n] - m_t[n]|^2 + |s_s[n] - s_t[n]|^2 )``.

    Each sample's positions are summed up by their mean m and standard deviation s, per channel (``s^2`` is the variance
    with positions - 1, plus eps). With w = 1 this is the squared 2-Wasserstein distance of the two Gaussians with these
    diagonal covariances.

    Rewards what is in the image and how much it varies over it. Ignores where it is: the positions of a side may be
    shuffled, and how channels vary together. Its units are the teacher's. A mean over N and a sum over the D channels;
    the number of positions does not matter. For the dense pools (``spatial_positions``, ``token_positions``) on both
    sides; behind the default pool there is one position and no variance.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.
        mean_weight: w, the paper's ratio of mean to covariance. The authors' code has 2 by default and on ImageNet,
            4 on the CIFAR-100 pair ResNet-32x4 to ResNet-8x4.
        eps: Added to the variances, so that a constant channel has a gradient.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If the shapes differ or are not (n, positions, d) with two or more positions, a side is not floating
            point, or eps is not positive.

    Deviates from: the published code in nothing but its grid, where one Gaussian is fitted to each cell of a map: for
        that, let the samples be cells.

    References:
        J. Lv, H. Yang, P. Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation",
        NeurIPS 2024, section on feature distillation, with diagonal covariances.

    Example:
        >>> import torch
        >>> z_t = torch.tensor([[[1.0], [3.0]]])  # mean 2, standard deviation sqrt(2)
        >>> gaussian_wasserstein(z_t + 1.0, z_t), gaussian_wasserstein(2 * z_t - 2.0, z_t, eps=1e-9)
        (tensor(2.), tensor(2.0000))
    """
    positive("gaussian_wasserstein", "eps", eps)
    z_s, z_t = pair("gaussian_wasserstein", z_s, z_t)
    if z_s.ndim != 3 or z_s.shape[1] < 2:
        raise UserError(
            f"gaussian_wasserstein: both sides are {tuple(z_s.shape)}; expected (n, positions, d), 2 positions or more"
        )
    means = (z_s.mean(1) - z_t.mean(1)).square().sum(-1)
    spreads = ((z_s.var(1) + eps).sqrt() - (z_t.var(1) + eps).sqrt()).square().sum(-1)
    return (mean_weight * means + spreads).mean()
