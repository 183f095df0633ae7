"""Distances of logits, sample by sample, with and without labels; see ``batch_logits`` for those that see the batch."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.features import unit_rows
from limbeck.losses.inputs import is_read_at_once, pair, positive

# Deviations no larger than this share of the row's largest element are the rounding of float32, not a pattern.
ROUNDING = 1e-6
# Rows that are smaller throughout are constant as well: dividing by less would make gradients overflow in float32.
SMALLEST = 1e-20


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
    return softmax_kl("kl_divergence", y_s, y_t, temperature=temperature)


def standardize(y: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
    """Logit standardization, the z-score of each sample's logits: ``(y[n] - mean_k y[n]) / std_k y[n]``.

    No loss itself, but put in front of one, on both sides, it makes that loss ignore the scale and the offset of a
    sample's logits: a student then need not be as confident as the teacher (its temperature is its own standard
    deviation), only rank and space the classes alike. Samples do not see each other. The temperature behind it counts
    in standard deviations. For ``kl_divergence`` there is :func:`standardized_kl`; with any other::

        decoupled_kl(standardize(y_s), standardize(y_t), target, temperature=2.0)

    The model's own logits, and the task's loss of them, stay as they are.

    Args:
        y: Logits of one side.

    Returns:
        Rows of mean 0 and standard deviation 1 (with K - 1), in at least float32. A constant row gives zero and gets no
        gradient.

    Raises:
        UserError: If y is not (n, k), floating point, with at least one row and two classes.

    Deviates from: the paper, whose standard deviation is over K where its code's (and ours) is over K - 1, a change of
        the temperature by 0.5% at 100 classes; and the code for constant rows, where its 1e-7 in the denominator makes
        gradients of ten million.

    References:
        S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024,
        algorithm 1 and the weighted z-score before it.

    Example:
        >>> standardize(torch.tensor([[0.0, 1.0, 2.0], [2.0, 4.0, 3.0]])).round(decimals=4)
        tensor([[-1.,  0.,  1.],
                [-1.,  1.,  0.]])
    """
    return _standardized("standardize", y)


def standardized_kl(
    y_s: Float[Tensor, "*n k"], y_t: Float[Tensor, "*n k"], *, temperature: float = 2.0
) -> Float[Tensor, ""]:
    """Soft targets of standardized logits: ``kl_divergence`` of both sides behind ``standardize``, T in deviations.

    Rewards the teacher's probabilities as they would be if all samples of both models had logits of the same spread.
    Ignores the scale and the offset of a sample's logits, on both sides. A mean over N and a sum over the K classes.
    It is small next to ``kl_divergence`` on confident logits; the authors give it a weight of 9 on CIFAR-100.

    Args:
        y_s: Student logits.
        y_t: Teacher logits.
        temperature: T, in standard deviations of a sample's logits; the authors' code has 2.

    Returns:
        A scalar, in at least float32; zero where the two sides differ in scale and offset only.

    Raises:
        UserError: If the shapes differ, there are no rows, fewer than two classes, a side is not floating point, or the
            temperature is not positive.

    Deviates from: what ``standardize`` deviates from.

    References:
        S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024,
        algorithm 1.

    Example:
        >>> y = torch.tensor([[3.0, 1.0, 2.0]])
        >>> round(standardized_kl(5 * y + 7.0, y).item(), 6), standardized_kl(-y, y, temperature=1.0)
        (0.0, tensor(1.1504))
    """
    y_s, y_t = pair("standardized_kl", y_s, y_t)
    y_s, y_t = _standardized("standardized_kl", y_s), _standardized("standardized_kl", y_t)
    return softmax_kl("standardized_kl", y_s, y_t, temperature=temperature)


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
    binary_s, others_s = _decouple(y_s / temperature, label)
    binary_t, others_t = _decouple(y_t / temperature, label)
    rows = alpha * kl_per_row(binary_s, binary_t) + beta * kl_per_row(others_s, others_t)
    return rows.mean() * temperature**2


def normalized_kl(
    y_s: Float[Tensor, "*n k"],
    y_t: Float[Tensor, "*n k"],
    target: Shaped[Tensor, "..."],
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Float[Tensor, ""]:
    """Normalized distillation (NKD): ``mean_n ( -p_t[n] log p_s[n] + gamma T^2 NCKD[n] )``.

    With ``p[n]`` the probability of the labelled class, at temperature 1, and::

        NCKD = KL of the softmax over the other classes at temperature T, teacher || student

    The second part is that of ``decoupled_kl``: the probabilities of the other classes are normalized to sum to one on
    both sides, for otherwise they could not become equal while the labelled class differs. The first one differs: it is
    the task's cross-entropy with each sample weighted by how sure the teacher is of the label, so it rewards the
    student for going past the teacher, and is least at ``p_s = 1``. Ignores a constant added to the logits. A mean over
    N and a sum over the classes.

    Args:
        y_s: Student logits.
        y_t: Teacher logits.
        target: Class labels ``(*n,)``, integers, or class probabilities ``(*n, k)`` (mixed images, smoothed labels):
            then the most probable class is the labelled one.
        temperature: T, of the other classes only. The authors' code has 1 by default and on ImageNet, and 3 with
            gamma = 3.5 on CIFAR-100.
        gamma: Weight of the other classes.

    Returns:
        A scalar, in at least float32. At equality the first part remains, which is not zero.

    Raises:
        UserError: If the shapes differ, there are no rows, fewer than two classes, the target does not fit the logits,
            or the temperature is not positive.

    Deviates from: the reference, which has the cross-entropy of the other classes: the same gradient for the student,
        but that part is not zero at equality.

    References:
        Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, "From Knowledge Distillation to Self-Knowledge Distillation:
        A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, the NKD loss.

    Example:
        >>> y_s, y_t = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> normalized_kl(y_s, y_t, torch.tensor([0]), gamma=1.0)  # 0.6652 * 0.2395 + 0.1109
        tensor(0.2703)
    """
    positive("normalized_kl", "temperature", temperature)
    y_s, y_t = pair("normalized_kl", y_s, y_t)
    label = _label("normalized_kl", target, y_s)
    labelled_s = F.log_softmax(y_s, -1).gather(-1, label)
    labelled_t = F.softmax(y_t, -1).gather(-1, label)
    others_s = F.log_softmax(_without(y_s / temperature, label), -1)
    others_t = F.log_softmax(_without(y_t / temperature, label), -1)
    return gamma * temperature**2 * kl_per_row(others_s, others_t).mean() - (labelled_t * labelled_s).mean()


def _standardized(name: str, y: Tensor) -> Tensor:
    if y.ndim < 2 or y.numel() == 0 or y.shape[-1] < 2 or not y.is_floating_point():
        raise UserError(
            f"{name}: logits are {tuple(y.shape)}, {y.dtype}; expected (n, k), floating point, 2 classes or more"
        )
    return math.sqrt(y.shape[-1] - 1) * deviation_directions(y.to(torch.promote_types(y.dtype, torch.float32)))


def _label(name: str, target: Tensor, y: Tensor) -> Tensor:
    """The labelled class of each row, ``(*n, 1)`` int64, from labels or probabilities."""
    rows, classes = y.shape[:-1], y.shape[-1]
    if classes < 2:
        raise UserError(f"{name}: got logits of {classes} class; expected at least 2")
    if target.shape == y.shape and target.is_floating_point():
        return target.argmax(-1, keepdim=True)
    if target.shape == rows and not target.is_floating_point() and target.dtype != torch.bool:
        label = target.long().unsqueeze(-1)
        if is_read_at_once(label) and label.numel():  # a GPU stops by itself
            low, high = (int(end) for end in label.aminmax())
            if not 0 <= low <= high < classes:
                raise UserError(f"{name}: labels go from {low} to {high}; expected 0 to {classes - 1}")
        return label
    raise UserError(
        f"{name}: target is {tuple(target.shape)}, {target.dtype}; "
        f"expected integer labels {tuple(rows)} or probabilities {tuple(y.shape)}"
    )


def _without(y: Tensor, label: Tensor) -> Tensor:
    """The logits with the labelled class at probability 0."""
    hidden = torch.arange(y.shape[-1], device=y.device) == label  # (*n, k): True at the labelled class
    # Instead of -inf: its probability is 0 as well, but 0 times it is 0 and not NaN. Half of the least number, so that
    # the softmax can still subtract the largest logit.
    return y.masked_fill(hidden, torch.finfo(y.dtype).min / 2)


def _decouple(y: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (labelled, any other) and, without the labelled class, of the others."""
    others = _without(y, label)
    total = y.logsumexp(-1, keepdim=True)
    labelled = y.gather(-1, label) - total
    rest = others.logsumexp(-1, keepdim=True) - total
    return torch.cat([labelled, rest], -1), F.log_softmax(others, -1)


def softmax_kl(name: str, y_s: Tensor, y_t: Tensor, *, temperature: float) -> Tensor:
    """``T^2 mean_n KL( softmax(y_t[n] / T) || softmax(y_s[n] / T) )``, checks included."""
    positive(name, "temperature", temperature)
    y_s, y_t = pair(name, y_s, y_t)
    rows = kl_per_row(F.log_softmax(y_s / temperature, -1), F.log_softmax(y_t / temperature, -1))
    return rows.mean() * temperature**2


def kl_per_row(log_p_s: Tensor, log_p_t: Tensor) -> Tensor:
    """``KL(p_t || p_s)`` over the last dimension, from log-probabilities."""
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)


def deviation_directions(x: Tensor) -> Tensor:
    """Direction of each row's deviations from its mean, of length 1: zero, without gradient, for a constant row.

    The inner product of two such directions is Pearson's correlation.
    """
    # In units of the largest element, so that no square overflows. The unit cancels, so it needs no gradient.
    x = x / x.detach().abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    return unit_rows(x - x.mean(-1, keepdim=True), eps=ROUNDING * math.sqrt(x.shape[-1]))
