"""The dynamics of a linear projector: how it moves, where it ends, and what of the past it holds.

All of it is about one loss, half the squared error ``D = 1/2 |Z_s W - Z_t|^2`` of
:func:`limbeck.losses.squared_error`, with no norm behind the projector; the two functions on column norms, at the end,
are about a batch norm behind it.

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

from limbeck.errors import UserError

# Relations


def self_relation(z_s: Float[Tensor, "*n d_s"], *, centered: bool = False) -> Float[Tensor, "d_s d_s"]:
    """Relation of the student's channels with each other: ``C_s = Z_s^T Z_s``.

    A sum over N (all leading dimensions), as in the paper, not a mean: it grows with N. Uncentered relations of two
    batches, or of two processes, add up to that of both. Divide by N for second moments.

    Args:
        z_s: Student features, in front of the projector.
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
        z_s: Student features, in front of the projector.
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


# Movement


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
    _check_shapes("gradient_flow", c_s, c_st, w)
    return c_st - _product(c_s, w)


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
    _check_step("discrete_step", lr, decay)
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
    _check_step("momentum_step", lr, decay)
    velocity = momentum * velocity + lr * gradient_flow(c_s, c_st, w) - decay * w
    return w + velocity, velocity


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
    _check_shapes("fixed_point", c_s, c_st)
    if not ridge >= 0:
        raise UserError(f"fixed_point: ridge is {ridge}; expected 0 or more")
    c_s = _at_least_float32(c_s)
    values, vectors = torch.linalg.eigh(c_s)
    values = values.clamp(min=0)
    if ridge > 0:
        inverse = 1 / (values + ridge)
    else:
        relative = rtol if rtol is not None else c_s.shape[0] * torch.finfo(c_s.dtype).eps
        is_zero = values <= relative * values.max()
        inverse = torch.where(is_zero, 0, 1 / torch.where(is_zero, 1, values))
    return _product(vectors, inverse[:, None] * _product(vectors.T, c_st))


# Memory


def memory_shares(
    w_0: Float[Tensor, "d_s d_t"],
    c_s: Float[Tensor, "steps d_s d_s"],
    c_st: Float[Tensor, "steps d_s d_t"],
    *,
    lr: float,
    decay: float = 0.0,
) -> Float[Tensor, " parts"]:
    """Share of the start and of each batch in the projector after the last batch; the shares sum to 1.

    With ``A_k = (1 - decay) I - lr C_s[k]`` the steps of :func:`discrete_step` unroll, exactly, into a sum of parts::

        W_T = A_T ... A_1 W_0 + sum_k  A_T ... A_(k+1) lr C_st[k]

    and the share of a part P is ``<P, W_T> / <W_T, W_T>``. A negative share is a part that points away from what W has
    become. It says how far back W reaches, whether or not the features moved meanwhile; it needs the relations of
    every batch, so it is for replays of short runs.

    Args:
        w_0: Projector before the first batch.
        c_s: :func:`self_relation` of each batch, in order.
        c_st: :func:`cross_relation` of each batch.
        lr: The paper's alpha_p.
        decay: The paper's eta, from 0 up to, not including, 1.

    Returns:
        ``steps + 1`` numbers, in at least float32: of the start, of the first batch, ..., of the last.

    Raises:
        UserError: If the shapes do not fit each other, lr is not positive, decay is out of its range, or W ended as 0.

    Deviates from: the paper's reading of its equation 8 as a moving average of C_st, which drops the ``C_s`` in A_k.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 8.

    Example:
        >>> one = torch.ones(2, 1, 1)
        >>> memory_shares(torch.tensor([[1.0]]), one, one, lr=0.5)  # W goes 1, 1, 1
        tensor([0.2500, 0.2500, 0.5000])
    """
    _check_step("memory_shares", lr, decay)
    if c_s.ndim != 3 or c_st.ndim != 3 or len(c_s) != len(c_st) or len(c_s) == 0:
        raise UserError(
            f"memory_shares: c_s is {tuple(c_s.shape)} and c_st {tuple(c_st.shape)}; "
            "expected (steps, d_s, d_s) and (steps, d_s, d_t)"
        )
    w = _at_least_float32(w_0)
    for c_s_k, c_st_k in zip(c_s, c_st, strict=True):
        w = discrete_step(w, c_s_k, c_st_k, lr=lr, decay=decay)
    square = w.square().sum()
    if not square > 0:
        raise UserError("memory_shares: the projector ended as 0, of which nothing has a share")
    # <A_T ... A_(k+1) X, W> = <X, A_(k+1) ... A_T W>: one matrix goes back in time, and no product of many A is made.
    back = w
    shares: list[Tensor] = []
    for c_s_k, c_st_k in zip(c_s.flip(0), c_st.flip(0), strict=True):
        shares.append((lr * c_st_k * back).sum() / square)
        back = (1 - decay) * back - lr * _product(c_s_k, back)
    shares.append((w_0 * back).sum() / square)
    return torch.stack(shares).flip(0)


def memory_lengths(c_s: Float[Tensor, "d_s d_s"], *, lr: float, decay: float = 0.0) -> Float[Tensor, " d_s"]:
    """Steps after which a projector has forgotten all but ``1/e`` of a batch, for each eigendirection of C_s.

    In the direction of eigenvalue s a step keeps the part ``f = 1 - decay - lr s``, so the length is
    ``-1 / log |f|``, about ``1 / (decay + lr s)`` where that sum is small: short in the student's strong directions,
    up to ``1/decay`` in weak ones. Exact where every batch has this C_s. For batches drawn independently from features
    that do not move, the mean of C_s gives it exactly for the mean of W.

    Args:
        c_s: :func:`self_relation` of a batch, or its mean over batches (for a sum over B batches, divide by B).
        lr: The paper's alpha_p.
        decay: The paper's eta, from 0 up to, not including, 1.

    Returns:
        The lengths, weakest direction first, in at least float32; 0 where one step forgets all, infinite where nothing
        is forgotten (``|f| >= 1``: no decay and no feature in that direction, or steps too long to converge).

    Raises:
        UserError: If c_s is not square, lr is not positive, or decay is out of its range.

    Deviates from: the paper's moving average, whose length would be ``1/decay`` in every direction.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        equation 8.

    Example:
        >>> memory_lengths(torch.diag(torch.tensor([0.0, 1.0, 10.0])), lr=0.01).round(decimals=1)
        tensor([  inf, 99.5000,  9.5000])
    """
    _check_step("memory_lengths", lr, decay)
    _check_shapes("memory_lengths", c_s)
    kept = (1 - decay - lr * torch.linalg.eigvalsh(_at_least_float32(c_s)).clamp(min=0)).abs()
    return torch.where(kept < 1, -1 / kept.clamp(max=1).log(), torch.inf)


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
    _check_shapes("agreement", c_s, w, v)
    c_v = _product(c_s, v)
    inner, square_w, square_v = (w * c_v).sum(0), (w * _product(c_s, w)).sum(0), (v * c_v).sum(0)
    # The product of the roots: that of the squares would leave the range of float32 long before a root does.
    scale = square_w.clamp(min=0).sqrt() * square_v.clamp(min=0).sqrt()
    return torch.where(scale > 0, inner / torch.where(scale > 0, scale, 1), 0).clamp(-1, 1)


# Scale, behind a batch norm


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
        >>> w, g = torch.tensor([[2.0]]), torch.tensor([[0.5]])
        >>> equilibrium_column_norms(w, g, lr=0.1, decay=0.005).round(decimals=3)
        tensor([1.0010])
    """
    if not decay > 0:
        raise UserError(f"equilibrium_column_norms: decay is {decay}; expected a number above 0")
    square_w, square_g = _column_squares("equilibrium_column_norms", w, g, lr, decay)
    return (lr**2 * square_w * square_g / (2 * decay - decay**2)) ** 0.25


# Shared


def _relation(name: str, z_s: Tensor, z_t: Tensor, centered: bool) -> Tensor:
    if not (z_s.is_floating_point() and z_t.is_floating_point()):
        raise UserError(f"{name}: features are {z_s.dtype} and {z_t.dtype}; expected floating point")
    if z_s.ndim < 2 or z_s.numel() == 0 or z_s.shape[:-1] != z_t.shape[:-1]:
        raise UserError(
            f"{name}: features are {tuple(z_s.shape)} and {tuple(z_t.shape)}; expected (n, d_s) and (n, d_t)"
        )
    z_s, z_t = _at_least_float32(z_s).flatten(0, -2), _at_least_float32(z_t).flatten(0, -2)
    if centered:  # before the product: afterwards, large means would have eaten the digits
        z_s, z_t = z_s - z_s.mean(0), z_t - z_t.mean(0)
    return _product(z_s.T, z_t)


def _column_squares(name: str, w: Tensor, g: Tensor, lr: float, decay: float) -> tuple[Tensor, Tensor]:
    _check_step(name, lr, decay)
    if w.ndim != 2 or w.shape != g.shape:
        raise UserError(f"{name}: w is {tuple(w.shape)} and g {tuple(g.shape)}; expected (d_s, d_t) twice")
    return _at_least_float32(w).square().sum(0), _at_least_float32(g).square().sum(0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in at least float32, which autocast would lower."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_shapes(name: str, c_s: Tensor, *wide: Tensor) -> None:
    if c_s.ndim != 2 or c_s.shape[0] != c_s.shape[1]:
        raise UserError(f"{name}: c_s is {tuple(c_s.shape)}; expected (d_s, d_s)")
    for x in wide:
        if x.ndim != 2 or x.shape[0] != c_s.shape[0] or x.shape != wide[0].shape:
            shapes = ", ".join(str(tuple(each.shape)) for each in wide)
            raise UserError(f"{name}: c_s is {tuple(c_s.shape)}, the rest {shapes}; expected (d_s, d_s), (d_s, d_t)")


def _check_step(name: str, lr: float, decay: float) -> None:
    if not lr > 0:
        raise UserError(f"{name}: lr is {lr}; expected a number above 0")
    if not 0 <= decay < 1:
        raise UserError(f"{name}: decay is {decay}; expected 0 or more, below 1")
