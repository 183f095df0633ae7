"""What of the past a linear projector holds."""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.diagnostics.dynamics import discrete_step
from limbeck.diagnostics.inputs import check_shapes, check_step, narrow, product, same_shape
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32
from limbeck.norms.roots import widest


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
    check_step("memory_shares", lr, decay)
    if c_s.ndim != 3 or c_st.ndim != 3 or len(c_s) != len(c_st) or len(c_s) == 0:
        raise UserError(
            f"memory_shares: c_s is {tuple(c_s.shape)} and c_st {tuple(c_st.shape)}; "
            "expected (steps, d_s, d_s) and (steps, d_s, d_t)"
        )
    w = at_least_float32(w_0)
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
        back = (1 - decay) * back - lr * product(c_s_k, back)
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
    check_step("memory_lengths", lr, decay)
    check_shapes("memory_lengths", c_s)
    values = narrow(torch.linalg.eigvalsh(c_s.to(widest(c_s.device))), c_s)
    kept = (1 - decay - lr * values.clamp(min=0)).abs()
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
    check_shapes("agreement", c_s, w, v)
    c_v = product(c_s, v)
    inner, square_w, square_v = (w * c_v).sum(0), (w * product(c_s, w)).sum(0), (v * c_v).sum(0)
    # The product of the roots: that of the squares would leave the range of float32 long before a root does.
    scale = square_w.clamp(min=0).sqrt() * square_v.clamp(min=0).sqrt()
    return torch.where(scale > 0, inner / torch.where(scale > 0, scale, 1), 0).clamp(-1, 1)


def initial_share(w: Float[Tensor, "d_s d_t"], w_0: Float[Tensor, "d_s d_t"]) -> Float[Tensor, ""]:
    """Share of a projector that still is its initialization: ``<W, W_0>^2 / (|W|^2 |W_0|^2)``, a squared cosine.

    W is a multiple of W_0 and a rest that is orthogonal to it; by Pythagoras the two parts have this share of
    ``|W|^2`` and one minus it. The rest has been written by batches, since weight decay alone only makes W shorter. It
    ignores the scale of W as a whole. Matrices without relation have about ``1 / (d_s d_t)``, so that for usual widths
    0 means forgotten. Unlike :func:`memory_shares` it needs no replay, and holds for every loss and optimizer; but what
    batches have written along W_0 counts as initialization.

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
