"""The dynamics of a linear projector: how it moves, and what of the past it holds.

Where it ends is in :mod:`limbeck.diagnostics.fixed_points`. All of it is about one loss, half the squared error
``D = 1/2 |Z_s W - Z_t|^2`` of :func:`limbeck.losses.squared_error`, with no norm behind the projector. It sees features
through the relations of their channels alone, summed over a batch.

``W`` is in the paper's layout, ``d_s x d_t``, and its columns are the teacher's channels. ``nn.Linear`` stores the
transpose: ``W = layer.weight.T``, and ``layer.weight.grad.T`` is its gradient. ``lr`` is the paper's ``alpha_p`` and
``decay`` its ``eta``, the part of W that a step takes away. In terms of ``torch.optim.SGD`` and of a loss ``k D``::

    lr = k * lr of SGD      decay = lr of SGD * weight_decay

with ``k = 1`` for ``squared_error`` and ``k = 2 / (N d_t)`` for ``mean_squared_error``, times the weight of the term.
Under AdamW ``decay`` is the same product, but the step is scaled element by element, and nothing here describes it.

Everything is computed in at least float32, also under autocast. Relations square the features, so that directions
more than about 1/3000 weaker than the strongest are lost in float32: give float64 where weak directions matter.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.diagnostics.inputs import (
    check_shapes,
    check_step,
    frobenius,
    matmul,
    narrow,
    same_shape,
)
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32
from limbeck.norms.roots import widest


def self_relation(z_s: Float[Tensor, "*n d_s"], *, centered: bool = False) -> Float[Tensor, "d_s d_s"]:
    """Relation of the student's channels with each other: ``C_s = Z_s^T Z_s``.

    A sum over N (all leading dimensions), as in the paper, not a mean: it grows with N. Uncentered relations of two
    batches, or of two processes, add up to that of both. Divide by N for second moments.

    Args:
        z_s: Student features, before the projector.
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
        z_s: Student features, before the projector.
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
        >>> cross_relation(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0], [1.0]]))
        tensor([[4.],
                [2.]])
    """
    return _relation("cross_relation", z_s, z_t, centered)


def gradient_flow(
    c_s: Float[Tensor, "d_s d_s"], c_st: Float[Tensor, "d_s d_t"], w: Float[Tensor, "d_s d_t"]
) -> Float[Tensor, "d_s d_t"]:
    """Direction that the projector moves in: ``dW = -dD/dW = C_st - C_s W``.

    The features enter through their relations alone. It is ``Z_s^T (Z_t - Z_s W)``: what the residual still has in
    common with the student. Divide both relations by N for the flow of half the mean squared distance of a row.

    Args:
        c_s: :func:`self_relation`.
        c_st: :func:`cross_relation`.
        w: Projector.

    Returns:
        Minus the gradient, in at least float32.

    Raises:
        UserError: If the shapes do not fit each other.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equations 5 and 6.

    Example:
        >>> gradient_flow(torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[1.0]]))
        tensor([[1.]])
    """
    check_shapes("gradient_flow", c_s, c_st, w)
    return c_st - matmul(c_s, w)


def discrete_step(
    w: Float[Tensor, "d_s d_t"],
    c_s: Float[Tensor, "d_s d_s"],
    c_st: Float[Tensor, "d_s d_t"],
    *,
    lr: float,
    decay: float = 0.0,
) -> Float[Tensor, "d_s d_t"]:
    """One step with weight decay: ``W <- (1 - decay) W + lr (C_st - C_s W)``.

    What ``torch.optim.SGD`` does without momentum; the module says how its numbers translate. Written
    ``((1 - decay) I - lr C_s) W + lr C_st`` it is an average over past batches whose forgetting depends on the
    direction. With the same batch it converges, to :func:`fixed_point`, where
    ``decay + lr s < 2`` for the greatest eigenvalue s of C_s.

    Args:
        w: Projector.
        c_s: :func:`self_relation` of the batch.
        c_st: :func:`cross_relation` of the batch.
        lr: The paper's alpha_p.
        decay: The paper's eta, from 0 up to, not including, 1.

    Returns:
        The next projector, in at least float32.

    Raises:
        UserError: If the shapes do not fit each other, lr is not positive, or decay is out of its range.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 8.

    Example:
        >>> w = torch.tensor([[1.0]])
        >>> discrete_step(w, torch.tensor([[2.0]]), torch.tensor([[3.0]]), lr=0.5, decay=0.25)
        tensor([[1.2500]])
    """
    check_step("discrete_step", lr, decay)
    return (1 - decay) * w + lr * gradient_flow(c_s, c_st, w)


def pull(w: Float[Tensor, "d_s d_t"], gradient: Float[Tensor, "d_s d_t"], *, weight_decay: float) -> Float[Tensor, ""]:
    """How much harder the loss pulls than the weight decay: ``|gradient| / |weight_decay W|``, Frobenius norms.

    The two forces of a step of ``torch.optim.SGD``, ``W <- W - lr (gradient + weight_decay W)``; the learning rate is
    in both and drops out. At a fixed point they are equal and opposite, and the ratio is 1. It only says how long the
    forces are: 1 is also where they happen to be as long, in other directions.

    Behind a batch norm it does not come to 1. There the two are orthogonal, and what balances are growth and loss of
    the columns' norms (section 7 of ``docs/maths.md``): at that equilibrium the ratio is
    ``sqrt(2/decay - 1)`` with ``decay = lr * weight_decay``, 447 for a learning rate of 0.1 and a weight decay of 1e-4.
    The gradient of a batch has noise in it, which adds to its norm and so to the ratio.

    Args:
        w: Projector.
        gradient: Of the weighted loss with respect to it, without the weight decay's part.
        weight_decay: Of the optimizer.

    Returns:
        The ratio, in at least float32; infinite where there is no decay or W is 0, and 0 where there is no gradient.

    Raises:
        UserError: If the shapes differ, a side is not finite, or weight_decay is negative.

    Deviates from: nothing.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 8.

    Example:
        >>> pull(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]]), weight_decay=0.1)
        tensor(2.)
    """
    same_shape("pull", w=w, gradient=gradient)
    if not weight_decay >= 0:
        raise UserError(f"pull: weight_decay is {weight_decay}; expected 0 or more")
    size, held = frobenius(gradient), weight_decay * frobenius(w)
    return torch.where(size > 0, size / held, 0)


def agreement(
    w: Float[Tensor, "d_s d_t"], v: Float[Tensor, "d_s d_t"], c_s: Float[Tensor, "d_s d_s"]
) -> Float[Tensor, " d_t"]:
    """Cosine, per channel, of what two projectors give: ``w_j^T C_s v_j / sqrt(w_j^T C_s w_j * v_j^T C_s v_j)``.

    It is the cosine of ``Z_s w_j`` and ``Z_s v_j`` over the rows behind C_s, and for a centered C_s their correlation.
    It ignores the scale of every column, which a batch norm leaves free, and directions that no feature has, where a
    projector keeps its first values. It depends on neither N nor d_s.

    To ask whether a projector holds the past, compare it with the fixed points of what it has seen and of the last
    batch alone, both in the relation of the past: ``agreement(w, fixed_point(past_s, past_st), past_s)`` against
    ``agreement(w, fixed_point(now_s, now_st), past_s)``. Past relations are sums or averages over batches.

    Args:
        w: Projector.
        v: The other one.
        c_s: :func:`self_relation` of the features to compare them on.

    Returns:
        A number between -1 and 1 for each channel, in at least float32; 0 where one of the two gives nothing.

    Raises:
        UserError: If the shapes do not fit each other.

    Example:
        >>> w, v = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [0.0]])
        >>> agreement(w, v, torch.diag(torch.tensor([1.0, 3.0])))
        tensor([0.5000])
    """
    check_shapes("agreement", c_s, w, v)
    c_v = matmul(c_s, v)
    inner, square_w, square_v = (w * c_v).sum(0), (w * matmul(c_s, w)).sum(0), (v * c_v).sum(0)
    # The product of the roots: that of the squares would leave the range of float32 long before a root does.
    scale = square_w.clamp(min=0).sqrt() * square_v.clamp(min=0).sqrt()
    return torch.where(scale > 0, inner / torch.where(scale > 0, scale, 1), 0).clamp(-1, 1)


def initial_share(w: Float[Tensor, "d_s d_t"], w_0: Float[Tensor, "d_s d_t"]) -> Float[Tensor, ""]:
    """Share of a projector that still is its initialization: ``<W, W_0>^2 / (|W|^2 |W_0|^2)``, a squared cosine.

    W is a multiple of W_0 and a rest that is orthogonal to it; by Pythagoras the two parts have this share of
    ``|W|^2`` and one minus it. The rest has been written by batches, since weight decay alone only makes W shorter. It
    ignores the scale of W as a whole. Matrices without relation have about ``1 / (d_s d_t)``, so that for usual widths
    0 means forgotten. It holds for every loss and optimizer; but what batches have written along W_0 counts as
    initialization.

    Args:
        w: Projector.
        w_0: Projector before the first batch.

    Returns:
        A number between 0 and 1, in at least float32; 0 where one of the two is 0.

    Raises:
        UserError: If the shapes differ or a side is not finite.

    Deviates from: nothing.

    Example:
        >>> initial_share(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.5]])).round(decimals=4)
        tensor(0.6400)
    """
    same_shape("initial_share", w=w, w_0=w_0)
    a, b = w.to(widest(w.device)), w_0.to(widest(w.device))
    squares = a.square().sum() * b.square().sum()
    cosine_squared = (a * b).sum().square() / torch.where(squares > 0, squares, 1)
    return narrow(cosine_squared.clamp(max=1), w, w_0)


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
    return matmul(z_s.T, z_t)
