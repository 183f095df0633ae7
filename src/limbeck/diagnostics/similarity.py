"""How alike features are: those of two sides, and the channels of one side among themselves.

All leading dimensions are rows, so that dense features are compared position by position. Everything is computed in
float64 where the device has it, and given in at least float32. Constant channels have no correlation: they count as 0,
or are left out of a mean, and never give NaN.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck import losses
from limbeck.diagnostics.inputs import centered_rows, check_finite, matmul, narrow, standardized
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32
from limbeck.norms.roots import widest


def cka(x: Float[Tensor, "*n d_x"], y: Float[Tensor, "*n d_y"], *, debiased: bool = True) -> Float[Tensor, ""]:
    """Linear centered kernel alignment: whether two features see the same images as alike.

    With centered features ``|X^T Y|^2 / (|X^T X| |Y^T Y|)``, Frobenius norms. Rewards directions that both sides share,
    weighted by their variance on both: 1 for features that are equal up to a rotation and one factor, 0 for
    uncorrelated ones. Ignores rotation, scale as a whole, and means; unlike a correlation of channels it needs no
    projector. It does not ignore a linear map in general, so that it rises behind a projector that has learned.

    With fewer rows than channels this is near 1 for features that have nothing in common: in expectation about
    ``1 / sqrt((1 + n/d_x)(1 + n/d_y))`` for white noise. ``debiased`` replaces each of the three products by its
    unbiased estimate (HSIC without the terms of a row with itself), which leaves about 0 there, for any number of rows.

    Args:
        x: Features of one side, the student's first.
        y: Features of the other, of the same rows.
        debiased: Take the unbiased estimates. Rows are taken to be independent, which positions of one image are not.

    Returns:
        A number between 0 and 1, or, if debiased, -1 and 1, in at least float32; 0 where a side is constant.

    Raises:
        UserError: If the rows differ, are fewer than 2 (4 if debiased), or are not finite.

    Deviates from: the first reference in the default, which there is biased.

    References:
        S. Kornblith, M. Norouzi, H. Lee, G. Hinton, "Similarity of Neural Network Representations Revisited",
        ICML 2019, equation 3.
        L. Song, A. Smola, A. Gretton, J. Bedo, K. Borgwardt, "Feature Selection via Dependence Maximization",
        JMLR 13, 2012, equation 5 (the unbiased estimate).

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
        >>> cka(x, x @ torch.tensor([[0.0, -3.0], [3.0, 0.0]])).round(decimals=4)  # turned and three times as large
        tensor(1.)
    """
    a, b = (_unit(side) for side in centered_rows("cka", least=4 if debiased else 2, x=x, y=y))
    together, own_a, own_b = (_alignment(*sides, debiased=debiased) for sides in ((a, b), (a, a), (b, b)))
    scale = own_a.clamp(min=0).sqrt() * own_b.clamp(min=0).sqrt()
    ratio = torch.where(scale > 0, together / torch.where(scale > 0, scale, 1), 0)
    return narrow(ratio.clamp(-1, 1), x, y)


def correlation_matrix(x: Float[Tensor, "*n d"]) -> Float[Tensor, "d d"]:
    """Correlation of every channel with every other one.

    Args:
        x: Features.

    Returns:
        The matrix, in at least float32; a constant channel has 0 everywhere, on the diagonal too.

    Raises:
        UserError: If there are fewer than 2 rows or they are not finite.

    Deviates from: nothing.

    Example:
        >>> correlation_matrix(torch.tensor([[1.0, -2.0, 5.0], [2.0, -4.0, 5.0]]))
        tensor([[ 1., -1.,  0.],
                [-1.,  1.,  0.],
                [ 0.,  0.,  0.]])
    """
    (rows,) = centered_rows("correlation_matrix", x=x)
    return narrow(_correlations(rows, rows), x)


def off_diagonal_energy(x: Float[Tensor, "*n d"]) -> Float[Tensor, ""]:
    """Mean squared correlation of two different channels: 0 decorrelated, 1 all channels the same.

    The share of redundancy in a feature. It ignores the scale and mean of channels and the sign of correlations. A
    finite number of independent rows has ``1 / (n - 1)`` of it by chance, so compare values of the same n only; two
    rows always give 1.

    Args:
        x: Features.

    Returns:
        The mean over all pairs of channels that vary, in at least float32; 0 where fewer than two do.

    Raises:
        UserError: If there are fewer than 2 rows or they are not finite.

    Deviates from: the reference, which has the sum over the cross-correlation of two views.

    References:
        J. Zbontar, L. Jing, I. Misra, Y. LeCun, S. Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
        Reduction", ICML 2021, second part of equation 1.

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> off_diagonal_energy(torch.cat([x, 3 * x[:, :1]], 1))  # one pair of three is the same
        tensor(0.3333)
    """
    (rows,) = centered_rows("off_diagonal_energy", x=x)
    unit = standardized(rows) / len(rows) ** 0.5
    varying = int(_varies(rows).sum())  # as many as the diagonal has ones
    energy = (_alignment(unit, unit, debiased=False) - varying).clamp(min=0)
    return narrow(energy / max(varying * (varying - 1), 1), x)


def input_output_correlation(x: Float[Tensor, "*n d_s"], p: Float[Tensor, "*n d_t"]) -> Float[Tensor, ""]:
    """Mean absolute correlation of what goes into a projector with what comes out: of each channel with each.

    How much of the output can be read off single input channels: a projector that mixes many of them, or computes
    something else, has little. It ignores signs, scales and means. Independent channels have about
    ``sqrt(2 / (pi (n - 1)))`` by chance, 0.07 for 128 rows, and two rows always 1: compare values of the same n only.

    Args:
        x: Student features, before the projector.
        p: What the projector makes of them, before or behind a batch norm.

    Returns:
        The mean over all pairs of channels that vary, in at least float32; 0 where a side is constant.

    Raises:
        UserError: If the rows differ, are fewer than 2, or are not finite.

    Deviates from: the paper in what is not known: its figure does not say which correlation it shows.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        figure 3.

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> input_output_correlation(x, 5 - 2 * x)
        tensor(0.5000)
    """
    rows_x, rows_p = centered_rows("input_output_correlation", x=x, p=p)
    pairs = int(_varies(rows_x).sum()) * int(_varies(rows_p).sum())
    return narrow(_correlations(rows_x, rows_p).abs().sum() / max(pairs, 1), x, p)


def channel_correlations(a: Float[Tensor, "*n d_t"], t: Float[Tensor, "*n d_t"]) -> Float[Tensor, " d_t"]:
    """Correlation of each projected channel with the teacher's channel of the same index, c_j.

    :func:`limbeck.losses.correlation` of both sides behind a batch norm without eps: it does not matter whether the
    features come from before or behind the term's norms. (A term's own c_j is a little smaller, by its eps.)

    Args:
        a: Student features, projected.
        t: Teacher features.

    Returns:
        A number between -1 and 1 for each channel, in at least float32; 0 where a side is constant.

    Raises:
        UserError: If the shapes differ, there are fewer than 2 rows, or they are not finite.

    Deviates from: nothing.

    Example:
        >>> a = torch.tensor([[1.0, 0.0, 7.0], [2.0, 1.0, 7.0]])
        >>> channel_correlations(a, torch.tensor([[5.0, 1.0, 0.0], [9.0, -1.0, 1.0]])).round(decimals=4)
        tensor([ 1., -1.,  0.])
    """
    if a.shape != t.shape:
        raise UserError(f"channel_correlations: a {tuple(a.shape)} and t {tuple(t.shape)}; expected equal shapes")
    rows_a, rows_t = centered_rows("channel_correlations", a=a, t=t)
    return narrow(losses.correlation(standardized(rows_a), standardized(rows_t)).clamp(-1, 1), a, t)


def gradient_shares(
    c: Float[Tensor, " d_t"], correlation_loss: Callable[[Tensor], Tensor], *, parts: int = 10
) -> Float[Tensor, " parts"]:
    """Which channels a loss of the correlation works on: shares of ``sum_j |dL/dc_j|``, worst fitting channels first.

    Channels are ordered by c and cut into ``parts`` groups of the same size, by default tenths. A loss that pulls all
    channels alike, as ``log_correlation`` with alpha 1, gives each ``1 / parts``; the higher the power, the more goes
    to the first group, which is what the paper calls a soft maximum. Where the number of channels is no multiple of
    ``parts``, a channel on a cut is divided. The scale of the loss, and its weight, are ignored.

    Args:
        c: :func:`channel_correlations`, or those of a term.
        correlation_loss: The loss as a function of c, for instance
            ``functools.partial(limbeck.losses.log_correlation, alpha=4)``.
        parts: Number of groups.

    Returns:
        The shares, in at least float32, which sum to 1; all 0 where no channel is pulled.

    Raises:
        UserError: If c is not a vector of finite numbers, or parts is below 1.

    Deviates from: nothing.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        section on the soft maximum.

    Example:
        >>> gradient_shares(torch.tensor([0.5, 0.0]), lambda c: losses.correlation_power(c, power=2), parts=2)
        tensor([0.6667, 0.3333])
    """
    if c.ndim != 1 or c.numel() == 0:
        raise UserError(f"gradient_shares: c is {tuple(c.shape)}; expected (d_t,)")
    if parts < 1:
        raise UserError(f"gradient_shares: parts is {parts}; expected at least 1")
    check_finite("gradient_shares", c=c)
    with torch.inference_mode(False):  # with gradient again, whatever the caller has switched off
        leaf = at_least_float32(c.detach().clone()).requires_grad_()
        (gradient,) = torch.autograd.grad(correlation_loss(leaf), leaf)
    pulls = gradient.abs().to(widest(c.device))[c.argsort()]
    reached = torch.cat([pulls.new_zeros(1), pulls.cumsum(0)])
    cuts = torch.linspace(0, len(pulls), parts + 1, dtype=pulls.dtype, device=pulls.device)
    below = cuts.floor().long().clamp(max=len(pulls) - 1)
    shares = (reached[below] + (cuts - below) * pulls[below]).diff()
    return narrow(shares / torch.where(reached[-1] > 0, reached[-1], 1), c)


def dead_channels(x: Float[Tensor, "*n d"], *, relative: float = 1e-3) -> Float[Tensor, ""]:
    """Share of the channels that hardly vary: whose deviation is up to ``relative`` times that of a lively one.

    A lively channel is one that nine in ten do not exceed (the 90th percentile of the deviations). A median would be of
    no use where most channels are dead, and the greatest deviation where a few are huge, as in vision transformers.

    Args:
        x: Features.
        relative: What is dead, next to a lively channel.

    Returns:
        A number between 0 and 1, in at least float32; 1 where no channel varies.

    Raises:
        UserError: If there are fewer than 2 rows, they are not finite, or relative is not above 0.

    Deviates from: nothing.

    Example:
        >>> dead_channels(torch.tensor([[1.0, 2.0, 3.0, 0.0], [4.0, 3.0, 3.0, 1e-6]]))
        tensor(0.5000)
    """
    if not relative > 0:
        raise UserError(f"dead_channels: relative is {relative}; expected a number above 0")
    (rows,) = centered_rows("dead_channels", x=x)
    deviations = rows.square().mean(0).sqrt()
    is_dead = deviations <= relative * deviations.quantile(0.9)
    return narrow(is_dead.to(rows.dtype).mean(), x)


def _unit(rows: Tensor) -> Tensor:
    """Of Frobenius norm 1, where they are not all zero."""
    norm = rows.square().sum().sqrt()
    return rows / torch.where(norm > 0, norm, 1)


def _alignment(a: Tensor, b: Tensor, *, debiased: bool) -> Tensor:
    """``|A^T B|^2``, or ``n (n - 3)`` times its unbiased estimate, of centered rows."""
    n = len(a)
    if n * (a.shape[1] + b.shape[1]) < a.shape[1] * b.shape[1]:  # the cheaper of the same number's two forms
        square = (matmul(a, a.T) * matmul(b, b.T)).sum()
    else:
        square = matmul(a.T, b).square().sum()
    if not debiased:
        return square
    lengths_a, lengths_b = a.square().sum(1), b.square().sum(1)
    own = n / (n - 2) * (lengths_a * lengths_b).sum()
    return square - own + lengths_a.sum() * lengths_b.sum() / ((n - 1) * (n - 2))


def _correlations(rows_x: Tensor, rows_y: Tensor) -> Tensor:
    return (matmul(standardized(rows_x).T, standardized(rows_y)) / len(rows_x)).clamp(-1, 1)


def _varies(rows: Tensor) -> Tensor:
    return (rows != 0).any(0)
