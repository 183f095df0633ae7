"""The scale of a projector behind a batch norm, which leaves it free."""

from jaxtyping import Float
from torch import Tensor

from limbeck.diagnostics.inputs import check_step
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32


def column_norm_step(
    w: Float[Tensor, "d_s d_t"], g: Float[Tensor, "d_s d_t"], *, lr: float, decay: float = 0.0
) -> Float[Tensor, " d_t"]:
    """Squared column norms after a step of SGD, behind a batch norm: ``(1 - decay)^2 |w_j|^2 + lr^2 |g_j|^2``.

    A batch norm makes the loss blind to the scale of a column, so that its gradient is orthogonal to it: without decay
    norms can only grow. The singular values of W thus grow with the length of training, whatever is learned.

    The norm's eps makes it approximate. Exactly, ``<w_j, g_j> = eps / (v_j + eps) sum_n a[n,j] dL/da[n,j]``, with v_j
    the variance of the projected channel and a the norm's output; the exact square has ``-2 lr (1 - decay)`` times
    that in addition.

    Args:
        w: Projector.
        g: Gradient of the loss with respect to it, without the weight decay's part.
        lr: Learning rate of SGD; here g is the gradient itself, and no factor of the loss is needed.
        decay: ``lr * weight_decay``.

    Returns:
        The squares, in at least float32.

    Raises:
        UserError: If the shapes differ, lr is not positive, or decay is out of its range.

    Deviates from: the paper, which reads the absolute singular values as what was learned. Momentum and AdamW have
        other laws.

    References:
        S. Arora, Z. Li, K. Lyu, "Theoretical Analysis of Auto Rate-Tuning by Batch Normalization", ICLR 2019.

    Example:
        >>> import torch
        >>> column_norm_step(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [10.0]]), lr=0.1)
        tensor([5.])
    """
    square_w, square_g = _column_squares("column_norm_step", w, g, lr, decay)
    return (1 - decay) ** 2 * square_w + lr**2 * square_g


def equilibrium_column_norms(
    w: Float[Tensor, "d_s d_t"], g: Float[Tensor, "d_s d_t"], *, lr: float, decay: float
) -> Float[Tensor, " d_t"]:
    """Column norms at which growth and decay balance: ``|w_j|^4 = lr^2 |w_j|^2 |g_j|^2 / (2 decay - decay^2)``.

    The rest point of :func:`column_norm_step`. Behind a batch norm a gradient is inversely proportional to the norm of
    its column, so ``|w_j| |g_j|`` does not depend on that norm, and the right side can be measured at any time. At
    equilibrium a step turns every column by the same angle, about ``sqrt(2 decay)``, however large its gradient; it is
    reached after about ``1 / (4 decay)`` steps, often more than a training has.

    Args:
        w: Projector.
        g: Gradient of the loss with respect to it, without the weight decay's part.
        lr: Learning rate of SGD.
        decay: ``lr * weight_decay``, above 0: without decay there is no equilibrium.

    Returns:
        The norms, in at least float32, as noisy as the gradient of one batch. Average their fourth powers over steps.
        The estimate is then from below: a column that lives from rare large gradients stays above it.

    Raises:
        UserError: If the shapes differ, lr is not positive, or decay is not between 0 and 1.

    References:
        T. van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", arXiv 1706.05350, 2017.

    Example:
        >>> import torch
        >>> w, g = torch.tensor([[2.0]]), torch.tensor([[0.5]])
        >>> equilibrium_column_norms(w, g, lr=0.1, decay=0.005).round(decimals=3)
        tensor([1.0010])
    """
    if not decay > 0:
        raise UserError(f"equilibrium_column_norms: decay is {decay}; expected a number above 0")
    square_w, square_g = _column_squares("equilibrium_column_norms", w, g, lr, decay)
    return (lr**2 * square_w * square_g / (2 * decay - decay**2)) ** 0.25


def _column_squares(name: str, w: Tensor, g: Tensor, lr: float, decay: float) -> tuple[Tensor, Tensor]:
    check_step(name, lr, decay)
    if w.ndim != 2 or w.shape != g.shape:
        raise UserError(f"{name}: w is {tuple(w.shape)} and g {tuple(g.shape)}; expected (d_s, d_t) twice")
    return at_least_float32(w).square().sum(0), at_least_float32(g).square().sum(0)
