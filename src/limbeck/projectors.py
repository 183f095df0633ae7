"""Projectors: modules that map the last dimension from the student's width to the teacher's.

Any ``nn.Module`` that does so is a projector; these are the usual ones, made of the framework's own layers. A projector
is trained with the student and thrown away after. It keeps all leading dimensions, so it projects vectors and the
positions of a map alike, and it follows autocast, being matrix products. The initial values are the framework's, as in
the paper's code.
"""

from collections.abc import Callable

from torch import nn

from limbeck.errors import UserError


def identity() -> nn.Identity:
    """No projector: ``z -> z``.

    For a student as wide as its teacher. The student itself must then have the teacher's feature; what it does not
    reach costs, where a learned projector would have absorbed it. There is no width to check here:
    :class:`limbeck.terms.FeatureTerm` refuses unequal ones.

    Returns:
        A module without parameters.

    Deviates from: nothing.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        supplement, table of metric functions (6.9 in the reprint in R. Miles's thesis), row "MSE, no projection".

    Example:
        >>> identity()
        Identity()
    """
    return nn.Identity()


def linear(d_s: int, d_t: int, *, bias: bool = False) -> nn.Linear:
    """One linear layer: ``z -> z W``, W of ``d_s x d_t`` (stored transposed, as ``nn.Linear`` does).

    The paper's projector. Under a squared error its gradient flow is ``C_st - C_s W``: it learns from, and stores, the
    correlations between the student's and the teacher's features over the whole of training.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.
        bias: Add a learned offset. False by default since a batch norm behind the projector takes it off again: its
            gradient would be zero. Use True with no norm, or with a norm that keeps the batch mean (L2, LayerNorm).

    Returns:
        The layer, ``d_s * d_t`` parameters (and ``d_t`` with a bias).

    Raises:
        UserError: If a width is below 1.

    Deviates from: the published code, which has the bias, dead under its batch norm; the paper's formulas have none.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equations 1 to 8.

    Example:
        >>> linear(512, 2048)
        Linear(in_features=512, out_features=2048, bias=False)
    """
    _check_at_least_one("linear", d_s=d_s, d_t=d_t)
    return nn.Linear(d_s, d_t, bias=bias)


def mlp(
    d_s: int,
    d_t: int,
    *,
    hidden: int = 1024,
    depth: int = 2,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = False,
) -> nn.Sequential:
    """A perceptron of ``depth`` linear layers with an activation between each two.

    ``depth=2`` is ``z -> activation(z V + b) W``. More freedom than :func:`linear`: more of the matching is done by the
    projector, which is thrown away, and less by the student; the paper uses it for CIFAR-100 only.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.
        hidden: Width between two layers; the paper's CIFAR-100 runs have 1024. Not used when depth is 1.
        depth: Number of linear layers. 1 is :func:`linear` alone.
        activation: Makes the module between two layers; called once for each place.
        bias: Bias of the last layer, off by default for the reason given at :func:`linear`. Hidden layers always have
            one: the activation behind them makes it matter.

    Returns:
        The layers in order.

    Raises:
        UserError: If a width or the depth is below 1.

    Deviates from: not known. The paper gives the hidden width alone; a layout left in its code's byte-code also has a
        batch norm between the layers, for a pair that the paper does not report.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        implementation details of the CIFAR-100 experiments.

    Example:
        >>> mlp(64, 256, hidden=128)
        Sequential(
          (0): Linear(in_features=64, out_features=128, bias=True)
          (1): ReLU()
          (2): Linear(in_features=128, out_features=256, bias=False)
        )
    """
    _check_at_least_one("mlp", d_s=d_s, d_t=d_t, hidden=hidden, depth=depth)
    layers: list[nn.Module] = []
    width = d_s
    for _ in range(depth - 1):
        layers += [nn.Linear(width, hidden), activation()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, d_t, bias=bias))


def _check_at_least_one(name: str, **sizes: int) -> None:
    for argument, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: {argument} is {size}; expected at least 1")
