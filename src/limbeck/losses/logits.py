"""Distances of logits, with and without labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.inputs import pair, positive


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
    positive("kl_divergence", "temperature", temperature)
    y_s, y_t = pair("kl_divergence", y_s, y_t)
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
    positive("decoupled_kl", "temperature", temperature)
    y_s, y_t = pair("decoupled_kl", y_s, y_t)
    label = _label("decoupled_kl", target, y_s)
    hidden = torch.arange(y_s.shape[-1], device=y_s.device) == label  # (*n, k): True at the labelled class
    binary_s, others_s = _decouple(y_s / temperature, label, hidden)
    binary_t, others_t = _decouple(y_t / temperature, label, hidden)
    rows = alpha * _kl_per_row(binary_s, binary_t) + beta * _kl_per_row(others_s, others_t)
    return rows.mean() * temperature**2


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
