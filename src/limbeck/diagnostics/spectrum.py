"""The spectrum of a projector: how many directions it uses, and how evenly.

``W`` is in the paper's layout, ``d_s x d_t`` (``layer.weight.T``); its singular values are those of its transpose. A
projector with more layers has no one matrix: see :mod:`limbeck.diagnostics.jacobians`.

Behind a batch norm the scale of each column of W is free and grows by itself, so that absolute singular values, and
what is counted against them, tell norm growth from collapse only for the matrix of :func:`column_normalized`
(``docs/maths.md``, section 8). The measures of a spectrum disagree by what they weigh: :func:`stable_rank` counts
directions as strong as the strongest, :func:`participation_ratio` those that carry the energy,
:func:`effective_rank` gives the tail most weight, and :func:`condition` looks at its end alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.diagnostics.inputs import check_finite, narrow
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32
from limbeck.norms.roots import widest


def singular_values(w: Float[Tensor, "d_s d_t"]) -> Float[Tensor, " r"]:
    """Singular values, the greatest first.

    Computed in float64 where the device has it: in float32, values below about 1e-7 of the greatest would be noise,
    and a lost direction would look alive.

    Args:
        w: Projector.

    Returns:
        As many as the smaller width, in at least float32. What rounding cannot tell from 0, by the usual bound
        ``max(d_s, d_t)`` times the precision times the greatest, is 0.

    Raises:
        UserError: If w is no matrix, is empty, or is not finite.

    Deviates from: the paper's figure 2 in the values alone: it shows their logarithms.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        figure 2.

    Example:
        >>> singular_values(torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]))
        tensor([3., 2.])
    """
    _check_matrix("singular_values", w)
    wide = w.to(widest(w.device))
    # LAPACK takes up to five times as long for the transpose of a tall matrix.
    values = torch.linalg.svdvals(wide if w.shape[0] >= w.shape[1] else wide.mT)
    bound = max(w.shape) * torch.finfo(values.dtype).eps * values.max()
    return narrow(torch.where(values > bound, values, 0), w)


def column_normalized(w: Float[Tensor, "d_s d_t"]) -> Float[Tensor, "d_s d_t"]:
    """W with each column of length 1: what a batch norm behind the projector sees of it.

    Args:
        w: Projector.

    Returns:
        The matrix, in at least float32; columns that are zero stay zero.

    Raises:
        UserError: If w is no matrix, is empty, or is not finite.

    Deviates from: the paper, which shows the spectrum of W itself.

    Example:
        >>> column_normalized(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        tensor([[0.6000, 0.0000],
                [0.8000, 0.0000]])
    """
    _check_matrix("column_normalized", w)
    wide = w.to(widest(w.device))  # or squares of a column that has all but decayed would be 0
    length = wide.square().sum(0).sqrt()
    return narrow(wide / torch.where(length > 0, length, 1), w)


def stable_rank(s: Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """Energy in units of the strongest direction: ``sum s^2 / max s^2``.

    Between 1 and the number of values; small singular values hardly count, and one strong direction lowers it alone.

    Args:
        s: Singular values, in any order.

    Returns:
        The rank, in at least float32; 0 where all values are 0.

    Raises:
        UserError: If there are no values, or one is negative or not finite.

    Deviates from: nothing.

    References:
        M. Rudelson, R. Vershynin, "Sampling from Large Matrices: An Approach through Geometric Functional Analysis",
        Journal of the ACM 54(4), 2007.

    Example:
        >>> stable_rank(torch.tensor([2.0, 2.0, 1.0]))
        tensor(2.2500)
    """
    return _relative("stable_rank", s).square().sum()


def effective_rank(s: Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the singular values: ``exp(-sum p log p)`` with ``p = s / sum s``.

    Between 1 and the number of values. Values of a tenth of the greatest still count for something, and the many of a
    tail for much: it falls late.

    Args:
        s: Singular values, in any order.

    Returns:
        The rank, in at least float32; 0 where all values are 0.

    Raises:
        UserError: If there are no values, or one is negative or not finite.

    Deviates from: nothing.

    References:
        O. Roy, M. Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007.

    Example:
        >>> effective_rank(torch.tensor([3.0, 3.0, 0.0])).round(decimals=4)
        tensor(2.)
    """
    r = _relative("effective_rank", s)
    total = r.sum()
    p = r / torch.where(total > 0, total, 1)
    return torch.where(total > 0, torch.special.entr(p).sum().exp(), 0)


def participation_ratio(s: Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """Number of directions that share the energy: ``(sum s^2)^2 / sum s^4``.

    Between 1 and the number of values: k equal ones and nothing else give k. Of what small values count
    it lies between :func:`stable_rank`, which is never greater, and :func:`effective_rank`, which is never smaller.

    Args:
        s: Singular values, in any order.

    Returns:
        The ratio, in at least float32; 0 where all values are 0.

    Raises:
        UserError: If there are no values, or one is negative or not finite.

    Deviates from: nothing.

    References:
        P. Gao, E. Trautmann, B. Yu, G. Santhanam, S. Ryu, K. Shenoy, S. Ganguli, "A Theory of Multineuronal
        Dimensionality, Dynamics and Measurement", bioRxiv 214262, 2017.

    Example:
        >>> participation_ratio(torch.tensor([1.0, 1.0, 1.0, 0.0]))
        tensor(3.)
    """
    energy = _relative("participation_ratio", s).square()
    fourth = energy.square().sum()
    return energy.sum().square() / torch.where(fourth > 0, fourth, 1)


def condition(s: Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """Greatest singular value over the smallest.

    Args:
        s: Singular values, in any order.

    Returns:
        The number, at least 1, in at least float32; infinite where the smallest is 0.

    Raises:
        UserError: If there are no values, or one is negative or not finite.

    Deviates from: nothing.

    Example:
        >>> condition(torch.tensor([4.0, 2.0, 0.5])), condition(torch.tensor([1.0, 0.0]))
        (tensor(8.), tensor(inf))
    """
    r = _relative("condition", s)
    return 1 / r.min()


def share_below(s: Float[Tensor, " r"], reference: Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """Share of the singular values that are smaller than those of another spectrum, index by index.

    With the initial spectrum as the reference, how many values have shrunk, as the paper's figure 2 can be read. It
    compares absolute values: a projector whose norm has grown, as behind a batch norm, scores better, whatever its
    spectrum's form.

    Args:
        s: Singular values, the greatest first.
        reference: The other spectrum, in the same order.

    Returns:
        A number between 0 and 1, in at least float32; 0 for a spectrum and itself.

    Raises:
        UserError: If there are no values, their numbers differ, or one is negative or not finite.

    Deviates from: the paper, which shows curves and counts nothing.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        figure 2.

    Example:
        >>> share_below(torch.tensor([3.0, 1.0, 0.1, 0.0]), torch.tensor([2.0, 1.0, 0.5, 0.2]))
        tensor(0.5000)
    """
    _check_spectrum("share_below", s)
    _check_spectrum("share_below", reference)
    if s.shape != reference.shape:
        raise UserError(f"share_below: {len(s)} values and {len(reference)} in the reference; expected as many")
    return (at_least_float32(s) < at_least_float32(reference)).to(at_least_float32(s).dtype).mean()


def share_small(s: Float[Tensor, " r"], *, relative: float = 0.1) -> Float[Tensor, ""]:
    """Share of the singular values that are small next to the greatest: up to ``relative`` times it.

    It ignores the scale of W. One direction that has grown raises it, without any other having shrunk.

    Args:
        s: Singular values, in any order.
        relative: What is small.

    Returns:
        A number between 0 and 1, in at least float32; 1 where all values are 0.

    Raises:
        UserError: If there are no values, one is negative or not finite, or relative is not above 0.

    Deviates from: nothing.

    Example:
        >>> share_small(torch.tensor([10.0, 5.0, 0.5, 0.0]))
        tensor(0.5000)
    """
    if not relative > 0:
        raise UserError(f"share_small: relative is {relative}; expected a number above 0")
    r = _relative("share_small", s)
    return (r <= relative).to(r.dtype).mean()


def _check_matrix(name: str, w: Tensor) -> None:
    if w.ndim != 2 or w.numel() == 0:
        raise UserError(f"{name}: w is {tuple(w.shape)}; expected (d_s, d_t)")
    check_finite(name, w=w)


def _check_spectrum(name: str, s: Tensor) -> None:
    if s.ndim != 1 or s.numel() == 0:
        raise UserError(f"{name}: s is {tuple(s.shape)}; expected (r,) with at least one value")
    check_finite(name, s=s)
    if bool((s < 0).any()):
        raise UserError(f"{name}: s has negative values; expected singular values")


def _relative(name: str, s: Tensor) -> Tensor:
    """The values in units of the greatest, so that no power of them leaves the range of float32."""
    _check_spectrum(name, s)
    s = at_least_float32(s)
    return s / torch.where(s.max() > 0, s.max(), 1)


def local_jacobians(projector: nn.Module, x: Float[Tensor, "n d_s"]) -> Float[Tensor, "n d_s d_t"]:
    """Jacobian of a projector at each row: the linear map that it is near that row, in the layout of W.

    For a linear projector each is W. Of a perceptron with ReLU it is the product of its matrices with the hidden
    channels that are off at this row taken out.

    Args:
        projector: Any module that maps rows one by one, in eval mode if it has a norm that would mix them.
        x: Student features, before the projector, in the precision of its parameters (half precisions are taken
            to float32).

    Returns:
        A matrix for each row. Together they have ``n d_s d_t`` numbers: give few rows.

    Raises:
        UserError: If there are no rows or they are not finite.

    Deviates from: the paper, which shows the spectrum of linear projectors alone.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> torch.equal(local_jacobians(layer, torch.randn(5, 3))[4], layer.weight.T)
        True
    """
    if x.ndim != 2 or x.numel() == 0:
        raise UserError(f"local_jacobians: x is {tuple(x.shape)}; expected (n, d_s)")
    check_finite("local_jacobians", x=x)
    with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False):  # with gradient, whoever calls
        leaf = at_least_float32(x.detach().clone()).requires_grad_()
        y = projector(leaf)
        units = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, len(x), -1)
        (slopes,) = torch.autograd.grad(y, leaf, units, is_grads_batched=True)  # of every row by itself
    return slopes.permute(1, 2, 0)
