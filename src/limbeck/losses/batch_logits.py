"""Distances of logits that also compare the samples of a batch with each other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses.inputs import pair, positive, product
from limbeck.losses.logits import deviation_directions, kl_per_row


def pearson_distance(
    y_s: Float[Tensor, "*n k"],
    y_t: Float[Tensor, "*n k"],
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Float[Tensor, ""]:
    """Pearson's correlation of probabilities (DIST): ``T^2 ( beta (1 - mean_n r_n) + gamma (1 - mean_k q_k) )``.

    With P (N x K) the probabilities ``softmax(y / T)`` of a side::

        r_n = Pearson's correlation of P_s[n,:] and P_t[n,:]      inter-class: over the classes of a sample
        q_k = Pearson's correlation of P_s[:,k] and P_t[:,k]      intra-class: over the samples, for a class

    Rewards probabilities that go up and down with the teacher's, over the classes and over the samples. Ignores the
    mean and the scale of each row and each column of P, and so how confident the teacher is: made for teachers that
    are much stronger. Each part is between 0 and 2 T^2 whatever N and K are. All classes count alike in the second
    part, those that no sample of the batch is likely to have too.

    It sees the batch: q is of the samples that it is given, of one process where nothing gathers the logits, and its
    noise falls with N. Of two samples (and likewise of two classes) a correlation is 1 or -1, without gradient.

    Args:
        y_s: Student logits; all leading dimensions are samples.
        y_t: Teacher logits.
        temperature: T.
        beta: Weight of the inter-class part.
        gamma: Weight of the intra-class part.

    Returns:
        A scalar, in at least float32. A row or a column of probabilities that is constant but for rounding has no
        correlation: it counts as 0 and gets no gradient.

    Raises:
        UserError: If the shapes differ, there are no rows, fewer than two classes, one sample only though gamma is not
            zero, a side is not floating point, or the temperature is not positive.

    Deviates from: the published code, which adds 1e-8 to the product of the two lengths, and so takes classes that are
        improbable in the whole batch for uncorrelated; here the correlation is exact.

    References:
        T. Huang, S. You, F. Wang, C. Qian, C. Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, the
        losses of the inter-class and the intra-class relation.

    Example:
        >>> y_t = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> pearson_distance(3 * y_t + 5.0, y_t).round(decimals=4), pearson_distance(-y_t, y_t).round(decimals=4)
        (tensor(0.), tensor(4.))
    """
    positive("pearson_distance", "temperature", temperature)
    y_s, y_t = pair("pearson_distance", y_s, y_t)
    p_s, p_t = (F.softmax(y.flatten(0, -2) / temperature, -1) for y in (y_s, y_t))
    if p_s.shape[1] < 2:
        raise UserError("pearson_distance: got logits of 1 class; expected at least 2")
    if p_s.shape[0] < 2 and gamma != 0:
        raise UserError("pearson_distance: rows in the batch: 1; the correlation over samples needs at least 2")
    inter = 1 - (deviation_directions(p_s) * deviation_directions(p_t)).sum(-1).mean()
    intra = 1 - (deviation_directions(p_s.T) * deviation_directions(p_t.T)).sum(-1).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def multi_level_kl(
    y_s: Float[Tensor, "*n k"],
    y_t: Float[Tensor, "*n k"],
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance: float = 1.0,
    batch: float = 1.0,
    classes: float = 1.0,
) -> Float[Tensor, ""]:
    """Multi-level logit distillation (MLKD): the sum over temperatures of an instance, a batch and a class level.

    With P (N x K) the probabilities ``softmax(y / T)`` of a side, the sum over T of::

        instance  T^2 mean_n KL( P_t[n] || P_s[n] )             as kl_divergence
        batch     1/N |P_t P_t^T - P_s P_s^T|^2                 which samples are alike
        class     1/K |P_t^T P_t - P_s^T P_s|^2                 which classes are taken for each other

    Rewards the teacher's probabilities at all temperatures at once, and its likeness of samples and of classes. Ignores
    a constant added to all logits of a sample. The instance level is a mean over N; the batch level grows with N, the
    class level with N^2 over K, so their weights belong to a batch size. The temperatures are added, not averaged.

    It sees the batch: the second and third level are of the samples that it is given, of one process where nothing
    gathers the logits. They take N^2 and K^2 numbers of memory, and a product of matrices, which runs in at least
    float32 under autocast too.

    Args:
        y_s: Student logits; all leading dimensions are samples.
        y_t: Teacher logits.
        temperatures: One or more T. The authors' code has these five.
        instance: Weight of the instance level.
        batch: Weight of the batch level.
        classes: Weight of the class level.

    Returns:
        A scalar, in at least float32; zero at equality.

    Raises:
        UserError: If the shapes differ, there are no rows, a side is not floating point, there is no temperature, or
            one is not positive.

    Deviates from: the published code's masks, which are left out. They are meant for the half of the samples (for the
        class level, of the classes) that the teacher is least sure of, but are multiplied to levels that are numbers
        already, and so only halve them: weights of 0.5 do the same. That code adds the instance level of a weakly and
        of a strongly augmented view (unmasked); of the batch and the class level it has the weak view only.

    References:
        Y. Jin, J. Wang, D. Lin, "Multi-Level Logit Distillation", CVPR 2023, the instance-, batch- and class-level
        alignment of predictions.

    Example:
        >>> y = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> multi_level_kl(y, y), multi_level_kl(-y, y, temperatures=[1.0], batch=0.0, classes=0.0)
        (tensor(0.), tensor(0.9927))
    """
    if len(temperatures) == 0:
        raise UserError("multi_level_kl: got no temperatures; expected one or more")
    for temperature in temperatures:
        positive("multi_level_kl", "a temperature", temperature)
    y_s, y_t = pair("multi_level_kl", y_s, y_t)
    y_s, y_t = y_s.flatten(0, -2), y_t.flatten(0, -2)
    levels: list[Tensor] = []
    with torch.autocast(y_s.device.type, enabled=False):
        for temperature in temperatures:
            log_s, log_t = F.log_softmax(y_s / temperature, -1), F.log_softmax(y_t / temperature, -1)
            p_s, p_t = log_s.exp(), log_t.exp()
            levels.append(instance * temperature**2 * kl_per_row(log_s, log_t).mean())
            levels.append(batch * (product(p_t, p_t) - product(p_s, p_s)).square().sum() / p_s.shape[0])
            levels.append(classes * (product(p_t.T, p_t.T) - product(p_s.T, p_s.T)).square().sum() / p_s.shape[1])
    return torch.stack(levels).sum()
