"""Where a linear projector comes to rest, and how far it is from there."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.diagnostics.dynamics import agreement
from limbeck.diagnostics.inputs import check_finite, check_shapes, frobenius, matmul, same_shape
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32
from limbeck.norms.roots import widest


def fixed_point(
    c_s: Float[Tensor, "d_s d_s"],
    c_st: Float[Tensor, "d_s d_t"],
    *,
    ridge: float = 0.0,
    rtol: float | None = None,
) -> Float[Tensor, "d_s d_t"]:
    """Where the projector comes to rest: ``(C_s + ridge I)^-1 C_st``, with ``C_s^+ C_st`` for no ridge.

    Without a ridge it is the least-squares solution of least norm, and defined for every C_s: directions that no
    feature has get 0. (Descent without decay ends there only from W = 0: what W begins with in these directions
    stays.) With weight decay ``ridge = decay / lr``, every start ends here. Of a whitened student, ``C_s = I``, it is
    ``C_st / (1 + ridge)``: the paper's ``C_st`` without decay, and half of it for the paper's choice ``eta = alpha_p``.
    Dividing both relations, and the ridge, by N changes nothing.

    Args:
        c_s: :func:`self_relation`.
        c_st: :func:`cross_relation` of the same rows.
        ridge: Added to the diagonal of C_s, in its units.
        rtol: Without a ridge, eigenvalues of C_s up to this part of the greatest one count as 0; by default ``d_s``
            times the precision of the data type.

    Returns:
        The projector, in at least float32.

    Raises:
        UserError: If the shapes do not fit each other or the ridge is negative.

    Deviates from: the paper in the cases that it leaves out, all but ``C_s = I`` without decay.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 7.
        A. E. Hoerl, R. W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", Technometrics
        12(1), 1970.

    Example:
        >>> c_s, c_st = torch.tensor([[4.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0], [0.0]])
        >>> fixed_point(c_s, c_st), fixed_point(c_s, c_st, ridge=4.0)
        (tensor([[0.5000],
                [0.0000]]), tensor([[0.2500],
                [0.0000]]))
    """
    check_shapes("fixed_point", c_s, c_st)
    if not ridge >= 0:
        raise UserError(f"fixed_point: ridge is {ridge}; expected 0 or more")
    c_s = at_least_float32(c_s)
    # In float32 LAPACK does not converge for the covariance of a feature whose channels are mostly dead.
    values, vectors = (found.to(c_s.dtype) for found in torch.linalg.eigh(c_s.to(widest(c_s.device))))
    values = values.clamp(min=0)
    if ridge > 0:
        inverse = 1 / (values + ridge)
    else:
        relative = rtol if rtol is not None else c_s.shape[0] * torch.finfo(c_s.dtype).eps
        is_zero = values <= relative * values.max()
        inverse = torch.where(is_zero, 0, 1 / torch.where(is_zero, 1, values))
    return matmul(vectors, inverse[:, None] * matmul(vectors.T, c_st))


def relative_distance(w: Float[Tensor, "d_s d_t"], target: Float[Tensor, "d_s d_t"]) -> Float[Tensor, ""]:
    """Distance of two matrices in units of the second: ``|W - T| / |T|``, Frobenius norms.

    It counts every difference, also in the scale of a column, which a batch norm behind the projector leaves free, and
    in directions that no feature has; :func:`limbeck.diagnostics.agreement` ignores both.

    Args:
        w: Projector.
        target: Where it might be.

    Returns:
        0 where they are equal, 1 for W = 0, in at least float32; infinite where the target alone is 0.

    Raises:
        UserError: If the shapes differ or a side is not finite.

    Deviates from: nothing.

    Example:
        >>> relative_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor(0.8000)
    """
    same_shape("relative_distance", w=w, target=target)
    difference = frobenius(at_least_float32(w) - at_least_float32(target))
    return torch.where(difference > 0, difference / frobenius(target), 0)


class Distance(NamedTuple):
    """How far a projector is from a matrix.

    Attributes:
        outputs: One minus the mean over channels of :func:`limbeck.diagnostics.agreement`: 0 where both give the same
            up to a factor for each channel, 1 where what they give has nothing in common.
        matrix: :func:`relative_distance`.
    """

    outputs: Tensor
    matrix: Tensor


class FixedPointDistances(NamedTuple):
    """Of one projector from each of the fixed points of one batch; see :func:`fixed_point_distances`."""

    whitened: Distance
    least_squares: Distance
    ridge: Distance


def fixed_point_distances(
    w: Float[Tensor, "d_s d_t"],
    c_s: Float[Tensor, "d_s d_s"],
    c_st: Float[Tensor, "d_s d_t"],
    *,
    ridge: float,
) -> FixedPointDistances:
    """How far a projector is from where it would come to rest on these features.

    From three fixed points: the paper's, of whitened features, ``C_st / s`` with ``s = trace(C_s) / d_s``; that of
    least squares, ``C_s^+ C_st``; and ridge, ``(C_s + ridge I)^-1 C_st``. The whitened one is what ``C_s = s I`` would
    have, ``C_st`` for s = 1; features of unit variance have s = N, so that without it nothing could be near.

    Read ``outputs`` where a norm behind the projector frees the scale of its columns, with centered relations where it
    is a batch norm; ``matrix`` where there is none. All of it is about the squared error. Behind a batch norm weight
    decay moves the lengths of columns and not where they point, so that least squares is the end with decay as well.
    Take more rows than the student has channels. With fewer, least squares reproduces the teacher on these rows, chance
    included, and ``outputs`` is one minus the mean correlation of the projected channels with the teacher's.

    Args:
        w: Projector.
        c_s: :func:`limbeck.diagnostics.self_relation`.
        c_st: :func:`limbeck.diagnostics.cross_relation` of the same rows.
        ridge: In units of C_s: ``weight_decay / k`` of SGD for a loss ``k D`` with its weight, see
            :mod:`limbeck.diagnostics.dynamics`. With 0 it is least squares once more.

    Returns:
        The distances, in at least float32. Channels that a fixed point gives nothing (a constant teacher channel), up
        to a millionth of the most that any channel gets, are left out of ``outputs``, which is 1 where none is left.

    Raises:
        UserError: If the shapes do not fit each other, something is not finite, or the ridge is negative.

    Deviates from: the paper, which has the first fixed point alone, for s = 1.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equations 7 and 8.

    Example:
        >>> c_s, c_st = torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([[1.0], [3.0]])
        >>> far = fixed_point_distances(torch.tensor([[2.0], [2.0]]), c_s, c_st, ridge=0.0)
        >>> [round(float(each.outputs), 4) for each in far]  # parallel to least squares, twice as long
        [0.0551, 0.0, 0.0]
        >>> far.least_squares.matrix
        tensor(1.)
    """
    check_shapes("fixed_point_distances", c_s, w, c_st)
    check_finite("fixed_point_distances", w=w, c_s=c_s, c_st=c_st)
    power = at_least_float32(c_s).diagonal().mean()
    whitened = torch.where(power > 0, at_least_float32(c_st) / power, 0)
    least_squares = fixed_point(c_s, c_st)
    ends = whitened, least_squares, fixed_point(c_s, c_st, ridge=ridge) if ridge != 0 else least_squares
    return FixedPointDistances(*(Distance(_apart(w, end, c_s), relative_distance(w, end)) for end in ends))


def _apart(w: Tensor, end: Tensor, c_s: Tensor) -> Tensor:
    given = (end * matmul(c_s, end)).sum(0).clamp(min=0).sqrt()
    counts = given > 1e-6 * given.max()
    return 1 - torch.where(counts, agreement(w, end, c_s), 0).sum() / counts.sum().clamp(min=1)
