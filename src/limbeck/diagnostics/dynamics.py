"""The dynamics of a linear projector: how it moves.

Where it ends is in :mod:`limbeck.diagnostics.fixed_points`, and what of the past it holds in
:mod:`limbeck.diagnostics.memory`. All of it is about one loss, half the squared error ``D = 1/2 |Z_s W - Z_t|^2`` of
:func:`limbeck.losses.squared_error`, with no norm behind the projector; :mod:`limbeck.diagnostics.scale` is about a
batch norm behind it.

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

from limbeck.diagnostics.inputs import check_shapes, check_step, frobenius, product, same_shape
from limbeck.errors import UserError


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
    return c_st - product(c_s, w)


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
    direction, see :func:`memory_lengths`. With the same batch it converges, to :func:`fixed_point`, where
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


def momentum_step(
    w: Float[Tensor, "d_s d_t"],
    velocity: Float[Tensor, "d_s d_t"],
    c_s: Float[Tensor, "d_s d_s"],
    c_st: Float[Tensor, "d_s d_t"],
    *,
    lr: float,
    decay: float = 0.0,
    momentum: float = 0.9,
) -> tuple[Float[Tensor, "d_s d_t"], Float[Tensor, "d_s d_t"]]:
    """One step with momentum: ``V <- momentum V + lr (C_st - C_s W) - decay W``, then ``W <- W + V``.

    What ``torch.optim.SGD`` does (not Nesterov's form, no dampening) as long as its learning rate stays; V is
    ``-lr of SGD * momentum_buffer`` and begins with 0. It ends where :func:`discrete_step` does. Over many steps it
    moves as that one with lr and decay both divided by ``1 - momentum``.

    Args:
        w: Projector.
        velocity: Its last step.
        c_s: :func:`self_relation` of the batch.
        c_st: :func:`cross_relation` of the batch.
        lr: The paper's alpha_p.
        decay: The paper's eta, from 0 up to, not including, 1.
        momentum: Part of the last step that is kept.

    Returns:
        The next projector and this step, in at least float32.

    Raises:
        UserError: If the shapes do not fit each other, lr is not positive, or decay is out of its range.

    Deviates from: the paper, which treats SGD without momentum and trains with 0.9.

    References:
        I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the Importance of Initialization and Momentum in Deep
        Learning", ICML 2013, equations 1 and 2.

    Example:
        >>> w, v = torch.tensor([[1.0]]), torch.tensor([[1.0]])
        >>> momentum_step(w, v, torch.tensor([[2.0]]), torch.tensor([[3.0]]), lr=0.5, momentum=0.5)
        (tensor([[2.]]), tensor([[1.]]))
    """
    check_step("momentum_step", lr, decay)
    velocity = momentum * velocity + lr * gradient_flow(c_s, c_st, w) - decay * w
    return w + velocity, velocity


def pull(w: Float[Tensor, "d_s d_t"], gradient: Float[Tensor, "d_s d_t"], *, weight_decay: float) -> Float[Tensor, ""]:
    """How much harder the loss pulls than the weight decay: ``|gradient| / |weight_decay W|``, Frobenius norms.

    The two forces of a step of ``torch.optim.SGD``, ``W <- W - lr (gradient + weight_decay W)``; the learning rate is
    in both and drops out. At a fixed point they are equal and opposite, and the ratio is 1. It only says how long the
    forces are: 1 is also where they happen to be as long, in other directions.

    Behind a batch norm it does not come to 1. There the two are orthogonal, and what balances are growth and loss of
    the columns' norms (:func:`limbeck.diagnostics.equilibrium_column_norms`): at that equilibrium the ratio is
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
