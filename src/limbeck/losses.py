"""Losses: functions of two same-shaped tensors, student first, teacher second, that give one number.

Three families. Of features: ``squared_error``, ``mean_squared_error``, ``smooth_l1``, ``cosine``, ``log_sum``. Of the
per-channel ``correlation`` of batch-normalized features: ``log_correlation``. Of logits: ``kl_divergence``,
``decoupled_kl``.

All of them compute in at least float32, whatever comes in. None has a matrix product, so autocast, which lowers
nothing else, leaves them alone. All are finite in value and gradient where both sides are equal. The gradient goes to
both arguments, and to the teacher's only if it asks for one.
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck.errors import UserError


def squared_error(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"]) -> Float[Tensor, ""]:
    """Half the squared distance: ``1/2 sum_{n,j} (z_s[n,j] - z_t[n,j])^2``.

    Rewards every feature for being near the teacher's, in the teacher's units: channels of large variance count most,
    and without a norm in front so does the mean. Ignores nothing. A sum: it grows with N and with D, and so does its
    gradient. This is the loss that the theory of the projector is written for; to train with, ``mean_squared_error``
    is easier to weight.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, or a side is not floating point.

    Deviates from: nothing.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 1.

    Example:
        >>> squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
        tensor(4.5000)
    """
    z_s, z_t = _pair("squared_error", z_s, z_t)
    return (z_s - z_t).square().sum() / 2


def mean_squared_error(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"]) -> Float[Tensor, ""]:
    """Mean squared difference: ``1/(N D) sum_{n,j} (z_s[n,j] - z_t[n,j])^2``.

    Rewards and ignores what ``squared_error`` does. A mean: the value depends on neither N nor D, while the gradient
    of one element falls as 1/(N D). Behind batch norm on both sides it is ``2 (1 - mean_j c_j)`` of the
    ``correlation`` c, up to the norm's eps.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, or a side is not floating point.

    Deviates from: FitNets, which has half of the sum over the channels.

    References:
        A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep Nets",
        ICLR 2015, equation 3.

    Example:
        >>> mean_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
        tensor(4.5000)
    """
    z_s, z_t = _pair("mean_squared_error", z_s, z_t)
    return (z_s - z_t).square().mean()


def smooth_l1(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"], *, beta: float = 1.0) -> Float[Tensor, ""]:
    """Mean of a distance that is squared near zero and absolute far from it.

    With ``d = z_s[n,j] - z_t[n,j]``, the mean over n and j of ``d^2 / (2 beta)`` where ``|d| < beta`` and of
    ``|d| - beta/2`` elsewhere.

    Rewards closeness as ``mean_squared_error`` does, but no element pulls harder than any other once it is further
    off than beta, so outliers (the huge channels of large vision transformers) do not own the gradient. Ignores how
    far an outlier is when the direction is chosen. A mean: the value does not grow with N or D.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.
        beta: Where the square ends, in the units of the features.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, or beta is not positive.

    Deviates from: Fast R-CNN, which has beta = 1 and a sum.

    References:
        R. Girshick, "Fast R-CNN", ICCV 2015, equation 3.

    Example:
        >>> smooth_l1(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]))
        tensor(1.2500)
    """
    _positive("smooth_l1", "beta", beta)
    z_s, z_t = _pair("smooth_l1", z_s, z_t)
    return F.smooth_l1_loss(z_s, z_t, beta=beta)


def cosine(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"], *, eps: float = 1e-6) -> Float[Tensor, ""]:
    """One minus the cosine of the angle between the two features of a sample, averaged over the samples.

    ``mean_n (1 - <u(z_s[n]), u(z_t[n])>)`` with ``u`` the ``unit_rows``, ``u(z) = z / |z|``.

    Rewards the direction of each sample's feature. Ignores its length, on both sides. Between 0 and 2, whatever N and
    D are. Channels that are large in every sample (a large mean) leave little angle between any two samples.

    Args:
        z_s: Student features, projected.
        z_t: Teacher features.
        eps: A row that is no longer has no direction: it counts as orthogonal, 1, and gets no gradient.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, or eps is not positive.

    Deviates from: BYOL's form, which is twice this one.

    References:
        J.-B. Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
        equation 2.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
        tensor(0.5000)
    """
    _positive("cosine", "eps", eps)
    z_s, z_t = _pair("cosine", z_s, z_t)
    return 1 - (unit_rows(z_s, eps=eps) * unit_rows(z_t, eps=eps)).sum(-1).mean()


def unit_rows(z: Float[Tensor, "*n d"], *, eps: float = 1e-6) -> Float[Tensor, "*n d"]:
    """Direction of each row, ``z / |z|``: what ``cosine`` compares, and what :class:`limbeck.norms.L2` gives.

    A row no longer than eps gives zero and gets no gradient. Dividing it by eps, as ``F.normalize`` does, keeps the
    value finite too, but its gradient is ``1/eps``, a million, and so infinite in float16 and ruinous elsewhere: one
    dead row would decide the step.

    Args:
        z: Features, in at least float32.
        eps: Greatest length that counts as none.

    Returns:
        Rows of length 1 (or 0).

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    length = cast(Tensor, torch.linalg.vector_norm(z, dim=-1, keepdim=True))  # pyright: ignore[reportUnknownMemberType]
    return torch.where(length > eps, z / length.clamp(min=eps), 0)


def log_sum(
    z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"], *, alpha: float = 4.0, eps: float = 1e-8
) -> Float[Tensor, ""]:
    """LogSum, elementwise form: ``log( sum_{n,j} |z_s[n,j] - z_t[n,j]|^alpha + eps N D )``.

    Rewards closeness, above all of the worst elements: the share of an element in the gradient is its ``|d|^(alpha -
    1)`` over the sum, a soft maximum, so matches that are good already are left alone. Ignores the common scale of
    the differences: halving them all subtracts ``alpha log 2`` and doubles the gradient, which therefore does not
    fade as training goes on. The value grows by ``log(N D)`` (twice the batch adds ``log 2``), the gradient does not
    depend on N and D as a sum's does; subtract ``log(N D)`` to compare runs. Meant for batch-normalized sides.

    Args:
        z_s: Student features, projected and normalized.
        z_t: Teacher features, normalized.
        alpha: Power, at least 1. The paper finds 4 to 5 best.
        eps: Floor of the mean of the powers. At equality the value is ``log(eps N D)`` and the gradient zero.

    Returns:
        A scalar, in at least float32. Powers are taken in units of the largest difference, so they do not overflow.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, alpha is below 1 or eps is
            not positive.

    Deviates from: the paper and its ImageNet code, which have no eps (minus infinity at equality). Ours is per element,
        so that it means the same for every batch and width.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 9 (6.12 in the reprint in R. Miles's thesis); alpha is from its table 3 (6.2).

    Example:
        >>> log_sum(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 5.0]]), alpha=2.0)  # log 9
        tensor(2.1972)
    """
    z_s, z_t = _pair("log_sum", z_s, z_t)
    return _log_sum_of_powers("log_sum", z_s - z_t, alpha=alpha, eps=eps, count=z_s.numel())


def correlation(z_s: Float[Tensor, "*n d"], z_t: Float[Tensor, "*n d"]) -> Float[Tensor, " d"]:
    """Per-channel correlation of batch-normalized features: ``c_j = 1/N sum_n z_s[n,j] z_t[n,j]``.

    The diagonal of the cross-correlation matrix, without the matrix. It is a correlation, between -1 and 1, only if
    both sides come out of a batch norm without affine, with biased variance; the norm's eps then keeps it a little
    below 1, and a constant channel has 0. With that norm ``mean_n (z_s[n,j] - z_t[n,j])^2 = 2 (1 - c_j)``, again up
    to eps. A mean over N (all leading dimensions): it does not depend on N or D.

    Args:
        z_s: Student features, projected and batch-normalized.
        z_t: Teacher features, batch-normalized.

    Returns:
        The vector c, in at least float32.

    Raises:
        UserError: If the shapes differ, there are no rows, or a side is not floating point.

    Deviates from: the published code's ``einsum("bx,bx->x")``, in speed only.

    References:
        J. Zbontar, L. Jing, I. Misra, Y. LeCun, S. Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
        Reduction", ICML 2021, equation 2 (the whole matrix).

    Example:
        >>> correlation(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        tensor([ 1., -1.])
    """
    z_s, z_t = _pair("correlation", z_s, z_t)
    return (z_s * z_t).flatten(0, -2).mean(0)


def log_correlation(c: Float[Tensor, " d"], *, alpha: float = 4.0, eps: float = 1e-5) -> Float[Tensor, ""]:
    """LogSum, correlation form: ``log( sum_j |1 - c_j|^alpha + eps )``.

    Rewards channels that follow the teacher's over the batch, above all the worst of them (a soft maximum, as in
    ``log_sum``). Ignores the scale and the mean of every channel, which the batch norms in front have removed, and
    which samples are off. The value grows by ``log D`` and does not depend on N. Between ``log eps`` and
    ``log(2^alpha D + eps)``.

    It is no reparametrization of ``log_sum``: since ``1 - c_j`` is half the channel's mean squared difference, the
    power acts on channels here and on single elements there. The two agree, up to a constant, where this one's alpha
    is 1 and the other's 2.

    Args:
        c: Per-channel ``correlation``.
        alpha: Power, at least 1.
        eps: Floor of the sum. At c = 1 the value is ``log eps`` and the gradient zero.

    Returns:
        A scalar, in at least float32.

    Raises:
        UserError: If c is not a floating-point vector of at least one channel, alpha is below 1 or eps is not
            positive.

    Deviates from: the published DeiT code in nothing but an alpha that is used (there it is read, and the power fixed
        at 4). The paper's text has the elementwise form, its supplement this one.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        supplement, table of metric functions (6.9 in the reprint in R. Miles's thesis), last row.

    Example:
        >>> log_correlation(torch.tensor([1.0, 0.0, 0.0]), alpha=4.0, eps=1e-9)  # log 2
        tensor(0.6931)
    """
    if c.ndim != 1 or c.numel() == 0 or not c.is_floating_point():
        raise UserError(f"log_correlation: c is {tuple(c.shape)}, {c.dtype}; expected (d,), floating point")
    residual = 1 - c.to(torch.promote_types(c.dtype, torch.float32))
    return _log_sum_of_powers("log_correlation", residual, alpha=alpha, eps=eps, count=1)


def kl_divergence(
    y_s: Float[Tensor, "*n k"], y_t: Float[Tensor, "*n k"], *, temperature: float = 4.0
) -> Float[Tensor, ""]:
    """Soft targets: ``T^2 mean_n KL( softmax(y_t[n] / T) || softmax(y_s[n] / T) )``.

    Rewards the teacher's probabilities, the small ones of the wrong classes the more the higher T is. Ignores a
    constant added to all logits of a sample. A mean over N and a sum over the K classes. The factor T^2 keeps the
    size of the gradient about the same for every T.

    Args:
        y_s: Student logits.
        y_t: Teacher logits.
        temperature: T. The CIFAR literature has 4, the paper's own logit term 1.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, or the temperature is not
            positive.

    Deviates from: the reference, which has the cross-entropy: the same gradient for the student, but not zero at
        equality.

    References:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning
        Workshop, equation 1 and the end of section 2.

    Example:
        >>> y = torch.tensor([[2.0, 0.0]])
        >>> kl_divergence(y, y + 3.0), kl_divergence(-y, y, temperature=1.0)
        (tensor(0.), tensor(1.5232))
    """
    _positive("kl_divergence", "temperature", temperature)
    y_s, y_t = _pair("kl_divergence", y_s, y_t)
    return (
        _kl_per_row(F.log_softmax(y_s / temperature, -1), F.log_softmax(y_t / temperature, -1)).mean() * temperature**2
    )


def decoupled_kl(
    y_s: Float[Tensor, "*n k"],
    y_t: Float[Tensor, "*n k"],
    target: Shaped[Tensor, "..."],
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Float[Tensor, ""]:
    """Decoupled distillation (DKD): ``T^2 mean_n ( alpha TCKD[n] + beta NCKD[n] )``.

    At temperature T, with ``p[n]`` the probability of the labelled class::

        TCKD = KL( (p_t, 1 - p_t) || (p_s, 1 - p_s) )                      labelled class against all others
        NCKD = KL of the softmax over the other classes, teacher || student

    ``kl_divergence`` is ``TCKD + (1 - p_t) NCKD``: a confident teacher hides what it knows about the other classes.
    Rewards that knowledge with the same weight beta on every sample. Ignores, as ``kl_divergence`` does, a constant
    added to the logits. A mean over N and a sum over the classes. With the usual beta it is several times larger
    than ``kl_divergence``; the authors' code raises its weight over the first epochs (20 on CIFAR-100, 1 on
    ImageNet), which is the business of the weights here.

    Args:
        y_s: Student logits.
        y_t: Teacher logits.
        target: Class labels ``(*n,)``, integers, or class probabilities ``(*n, k)`` (mixed images, smoothed labels):
            then the most probable class is the labelled one.
        temperature: T.
        alpha: Weight of the labelled class; 1 in every setting of the authors.
        beta: Weight of the others; the authors' code has 8 by default, 2 to 8 on the pairs of CIFAR-100, and 0.5 with
            T = 1 on ImageNet.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If the shapes differ, there are no rows, fewer than two classes, the target does not fit the logits,
            or the temperature is not positive.

    Deviates from: the published code, in precision only: it hides the labelled class by subtracting 1000 from its
        logit and takes the logarithm of probabilities; here both are exact, in log space.

    References:
        B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation", CVPR 2022, equations 6 and 7.

    Example:
        >>> y_s, y_t = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> decoupled_kl(y_s, y_t, torch.tensor([0]), temperature=1.0, alpha=0.0, beta=1.0)
        tensor(0.1109)
    """
    _positive("decoupled_kl", "temperature", temperature)
    y_s, y_t = _pair("decoupled_kl", y_s, y_t)
    label = _label("decoupled_kl", target, y_s)
    hidden = torch.arange(y_s.shape[-1], device=y_s.device) == label  # (*n, k): True at the labelled class
    binary_s, others_s = _decouple(y_s / temperature, label, hidden)
    binary_t, others_t = _decouple(y_t / temperature, label, hidden)
    rows = alpha * _kl_per_row(binary_s, binary_t) + beta * _kl_per_row(others_s, others_t)
    return rows.mean() * temperature**2


def _pair(name: str, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in their common precision, at least float32, after the checks that every loss shares."""
    if not (z_s.is_floating_point() and z_t.is_floating_point()):
        raise UserError(f"{name}: student is {z_s.dtype} and teacher {z_t.dtype}; expected floating point")
    # Without this check (n, 1) against (n, d) would broadcast, and train on nonsense.
    if z_s.shape != z_t.shape:
        raise UserError(f"{name}: student is {tuple(z_s.shape)} and teacher {tuple(z_t.shape)}; expected equal shapes")
    if z_s.ndim < 2 or z_s.numel() == 0:
        raise UserError(f"{name}: both sides are {tuple(z_s.shape)}; expected (n, d) with at least one row and column")
    dtype = torch.promote_types(torch.promote_types(z_s.dtype, z_t.dtype), torch.float32)
    return z_s.to(dtype), z_t.to(dtype)


def _positive(name: str, argument: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}: {argument} is {value}; expected a number above 0")


def _log_sum_of_powers(name: str, x: Tensor, *, alpha: float, eps: float, count: int) -> Tensor:
    """``log( sum |x|^alpha + eps count )``, for both forms of LogSum."""
    if not alpha >= 1:  # below 1 the gradient of the power is infinite at equality
        raise UserError(f"{name}: alpha is {alpha}; expected at least 1")
    _positive(name, "eps", eps)
    x = x.abs()
    # |x| = 1e10, possible without a norm, has no 4th power in float32; the unit cancels, so it needs no gradient.
    # Never below 1, since eps / unit^alpha would overflow in its place.
    unit = x.detach().amax().clamp(min=1)
    return torch.log((x / unit).pow(alpha).sum() + eps * count * unit.pow(-alpha)) + alpha * torch.log(unit)


def _kl_per_row(log_p_s: Tensor, log_p_t: Tensor) -> Tensor:
    """``KL(p_t || p_s)`` over the last dimension, from log-probabilities."""
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)


def _label(name: str, target: Tensor, y: Tensor) -> Tensor:
    """The labelled class of each row, ``(*n, 1)`` int64, from labels or probabilities."""
    rows, classes = y.shape[:-1], y.shape[-1]
    if classes < 2:
        raise UserError(f"{name}: got logits of {classes} class; expected at least 2")
    if target.shape == y.shape and target.is_floating_point():
        return target.argmax(-1, keepdim=True)
    if target.shape == rows and not target.is_floating_point() and target.dtype != torch.bool:
        return target.long().unsqueeze(-1)
    raise UserError(
        f"{name}: target is {tuple(target.shape)}, {target.dtype}; "
        f"expected integer labels {tuple(rows)} or probabilities {tuple(y.shape)}"
    )


def _decouple(y: Tensor, label: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (labelled, any other) and, without the labelled class, of the others."""
    # Instead of -inf: its probability is 0 as well, but 0 times it is 0 and not NaN. Half of the least number, so that
    # the softmax can still subtract the largest logit.
    others = y.masked_fill(hidden, torch.finfo(y.dtype).min / 2)
    total = y.logsumexp(-1, keepdim=True)
    labelled = y.gather(-1, label) - total
    rest = others.logsumexp(-1, keepdim=True) - total
    return torch.cat([labelled, rest], -1), F.log_softmax(others, -1)
