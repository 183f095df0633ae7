"""Projectors: modules that map the last dimension from the student's width to the teacher's.

Any ``nn.Module`` that does so is a projector; these are the ones of the literature. A projector is trained with the
student and thrown away after. It keeps all leading dimensions, so it projects vectors and the positions of a map alike,
and it follows autocast, being matrix products.

The inverted projection, from the teacher to the student, needs no module of its own: ``linear(d_t, d_s)``, or any other
projector here with the two widths swapped, applied to the teacher's feature. The student then has to reach, with no
projector of its own, what of the teacher's feature a projection picks out; the projector learns to drop what only the
teacher's task needs, for which it was proposed: distillation across tasks (R. Miles, I. Elezi, J. Deng, "Learning to
Project for Cross-Task Knowledge Distillation", BMVC 2024). A projector that is free to be zero makes the match trivial
where no norm follows that fixes its output's scale.

Each projector says under *Cost* its multiply-adds a row and its parameters, under *Init* its first values, under
*Weight decay* what ``optim.sgd`` (all parameters) and ``optim.adamw`` (all but vectors, such as biases) do to it.
"""

import math
from collections.abc import Callable
from typing import cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck import collectives
from limbeck.errors import UserError
from limbeck.norms.roots import inverse_square_root, widest
from limbeck.norms.running import Running


def identity() -> nn.Identity:
    """No projector: ``z -> z``.

    For a student as wide as its teacher. The student itself must then have the teacher's feature; what it does not
    reach costs, where a learned projector would have absorbed it. There is no width to check here:
    :class:`limbeck.terms.FeatureTerm` refuses unequal ones.

    Cost: none. Init: none. Weight decay: none, there is no parameter.

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

    Cost: ``d_s d_t`` multiply-adds a row, ``d_s d_t`` parameters and ``d_t`` with a bias.
    Init: the framework's, uniform of variance ``1 / (3 d_s)``.
    Weight decay: of the matrix under both optimizers, under ``sgd`` with the fixed point of ridge regression; of the
    bias under ``sgd`` only.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.
        bias: Add a learned offset. False by default since a batch norm behind the projector takes it off again: its
            gradient would be zero. Use True with no norm, or with a norm that keeps the batch mean (L2, LayerNorm).

    Returns:
        The layer.

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

    Cost: ``d_s h + (depth - 2) h^2 + h d_t`` multiply-adds a row for hidden width h, and as many parameters, besides
    ``h`` for each hidden bias.
    Init: the framework's, uniform of variance 1 over three times the layer's input width, biases too.
    Weight decay: of the matrices under both optimizers; of the biases under ``sgd`` only.

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


def low_rank(d_s: int, d_t: int, *, rank: int) -> nn.Sequential:
    """A linear map of at most ``rank`` dimensions: ``z -> z A B``, A of ``d_s x rank``, B of ``rank x d_t``.

    The student is asked for a subspace of that many dimensions alone, and what of the teacher's feature does not fit
    into it stays unmatched. It is also the cheaper map of wide features, where ``rank < d_s d_t / (d_s + d_t)``.

    Cost: ``rank (d_s + d_t)`` multiply-adds a row and parameters.
    Init: A as in :func:`linear`; B with sqrt(3) times the framework's values, so of variance ``1 / rank``. An element
    of A B then has the variance ``1 / (3 d_s)`` of an element of ``linear``; with the framework's own values it would
    have a third of that.
    Weight decay: of both matrices under both optimizers. On a product it acts as a penalty on the sum of its singular
    values, so it lowers the rank further, where on one matrix it shrinks all of them alike.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.
        rank: Width between the two, at most the smaller of both (there is nothing to restrict above).

    Returns:
        The two layers, without biases.

    Raises:
        UserError: If a width or the rank is below 1, or the rank above the smaller width.

    Deviates from: the reference, which factorizes a network's output layer; as a projector it has no paper.

    References:
        T. N. Sainath, B. Kingsbury, V. Sindhwani, E. Arisoy, B. Ramabhadran, "Low-Rank Matrix Factorization for Deep
        Neural Network Training with High-Dimensional Output Targets", ICASSP 2013.

    Example:
        >>> low_rank(512, 2048, rank=64)
        Sequential(
          (0): Linear(in_features=512, out_features=64, bias=False)
          (1): Linear(in_features=64, out_features=2048, bias=False)
        )
    """
    _check_at_least_one("low_rank", d_s=d_s, d_t=d_t, rank=rank)
    if rank > min(d_s, d_t):
        raise UserError(f"low_rank: rank is {rank}; expected at most the smaller width, {min(d_s, d_t)}")
    first, second = nn.Linear(d_s, rank, bias=False), nn.Linear(rank, d_t, bias=False)
    with torch.no_grad():
        second.weight.mul_(math.sqrt(3))
    return nn.Sequential(first, second)


def orthogonal(d_s: int, d_t: int) -> nn.Linear:
    """A linear map with orthonormal directions: ``z -> z W`` with ``W W^T = I`` if ``d_s <= d_t``, else ``W^T W = I``.

    It keeps all lengths and angles between the student's features (where it is wider than the teacher: those within the
    subspace that it keeps), so nothing of the matching can be done by the projector but the choice of a subspace: the
    student has to. It adds no redundancy and cannot collapse, and the scale of its output is that of the student's
    feature. The paper normalizes the teacher's side only.

    The layer stores a free matrix V and computes the orthonormal matrix nearest to it, its polar factor ``V (V^T
    V)^(-1/2)`` (for the tall one of V and its transpose), whenever ``weight`` is read: at least in float32, in float64
    where the device has it, under autocast too. ``weight`` is a tensor that can be read, and differentiated, as that of
    any linear layer, but not assigned; V is the parameter ``parametrizations.weight.original``. The module can be
    copied and its state dict saved, but it cannot be pickled whole.

    Cost: ``d_s d_t`` multiply-adds a row and parameters; for each pass, whatever the number of rows, ``2 k^2 n`` more
    and an eigendecomposition of ``k x k``, k being the smaller width and n the larger.
    Init: uniform over all orthonormal matrices; V is W then.
    Weight decay: of V under both optimizers, without any effect on W, which does not depend on V's scale: it does not
    shrink. It only keeps V, and so the angle of a step, from drifting, as under weight normalization.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.

    Returns:
        The layer, an ``nn.Linear`` without bias whose ``weight`` is computed.

    Raises:
        UserError: If a width is below 1.

    Deviates from: the paper, which has the first columns of the matrix exponential of a skew-symmetric ``d_t x d_t``
        parameter: the same set of matrices, a third power of the larger width, and no meaning for ``d_s > d_t``. The
        published code has ``torch.nn.utils.parametrizations.orthogonal``, which for unequal widths reads the diagonal
        of its parameter as integers: one step of weight decay takes it from -1 to 0 and the matrix to zero, for good
        (seen with PyTorch 2.15).

    References:
        R. Miles, I. Elezi, J. Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024.
        N. J. Higham, "Computing the Polar Decomposition, with Applications", SIAM J. Sci. Stat. Comput., 1986.

    Example:
        >>> weight = orthogonal(2, 5).weight
        >>> torch.allclose(weight.T @ weight, torch.eye(2), atol=1e-6)
        True
    """
    _check_at_least_one("orthogonal", d_s=d_s, d_t=d_t)
    layer = nn.Linear(d_s, d_t, bias=False)
    nn.init.orthogonal_(layer.weight)
    parametrize.register_parametrization(layer, "weight", _Polar())
    return layer


@final
class _Polar(nn.Module):
    """The orthonormal matrix nearest to the stored one."""

    def forward(self, v: Float[Tensor, "d_t d_s"]) -> Float[Tensor, "d_t d_s"]:
        with torch.autocast(v.device.type, enabled=False):
            tall = (v if v.shape[0] >= v.shape[1] else v.mT).to(widest(v.device))
            gram = tall.mT @ tall
            # Far below what the result can resolve; keeps a matrix that has lost a direction finite.
            ridge = 1e-12 * gram.diagonal().mean() + 1e-30
            nearest = (tall @ inverse_square_root(gram, ridge)).to(v.dtype)
            return nearest if v.shape[0] >= v.shape[1] else nearest.mT


def ensemble(d_s: int, d_t: int, *, count: int = 3, activation: Callable[[], nn.Module] = nn.ReLU) -> "Ensemble":
    """The mean of ``count`` projectors: ``z -> 1/q sum_k activation(z W_k + b_k)``.

    The members see the same features and the same loss, and differ by their first values only. Without the activation
    they would be one linear map; with ReLU the output is not negative, as a feature behind a ReLU and a pool is. Meant
    for such a teacher and a loss of the direction (cosine). Behind a batch norm its biases are not dead.

    Cost: ``count d_s d_t`` multiply-adds a row, ``count (d_s + 1) d_t`` parameters.
    Init: each member as :func:`linear` with a bias, drawn one after the other.
    Weight decay: of the matrices under both optimizers; of the biases under ``sgd`` only.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.
        count: Number q of projectors. 3 is that of the published code.
        activation: Makes the module behind each linear layer; called once for each.

    Returns:
        The module; its ``members`` are the projectors, each a linear layer and its activation.

    Raises:
        UserError: If a width or the count is below 1.

    Deviates from: the published code in nothing but an untrained fourth projector there. The paper's formula has no
        bias, its code does.

    References:
        Y. Chen, S. Wang, J. Liu, X. Xu, F. de Hoog, Z. Huang, "Improved Feature Distillation via Projector Ensemble",
        NeurIPS 2022.

    Example:
        >>> ensemble(64, 256)(torch.randn(8, 64)).shape
        torch.Size([8, 256])
    """
    _check_at_least_one("ensemble", d_s=d_s, d_t=d_t, count=count)
    return Ensemble([nn.Sequential(nn.Linear(d_s, d_t), activation()) for _ in range(count)])


@final
class Ensemble(nn.Module):
    """The mean of what its members compute; see :func:`ensemble`."""

    def __init__(self, members: list[nn.Sequential]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, z: Float[Tensor, "*n d_s"]) -> Float[Tensor, "*n d_t"]:
        """The mean over the members."""
        return torch.stack([member(z) for member in self.members]).mean(0)


@final
class Ridge(nn.Module):
    """The linear map that a trained projector tends to, in closed form: ``z -> z W``, ``W = (C_s + r I)^(-1) C_st``.

    C_s and C_st are the covariance of the student's features and their covariance with the teacher's, over the batches
    so far (:class:`limbeck.norms.running.Running`: exponentially weighted, bias-corrected, the covariance of the
    batches' means included, which a batch norm does not see), and ``r = ridge trace(C_s)/d_s``. It is the fixed point
    of :func:`linear` under a squared error and weight decay, without the training: W follows the features, and no
    gradient goes into it. The gradient that reaches the student is that of the projected feature with W held still.

    W is that of centered features, and there is no offset. A loss that compares means, with no norm in front that takes
    them off, sees the difference ``mean_s W - mean_t``.

    ``observe`` has to be called for every batch, before it is projected or after; on several processes, by all of them.
    ``weight`` is W as ``nn.Linear`` stores it, ``(d_t, d_s)``, a buffer. For an inverted projection swap widths and
    arguments: ``Ridge(d_t, d_s)`` and ``observe(z_t, z_s)``.

    Cost: ``d_s d_t`` multiply-adds a row to project, ``d_s (d_s + d_t)`` a row and a Cholesky decomposition of
    ``d_s x d_s`` to observe; no parameters, ``d_s (d_s + 2 d_t) + d_s + d_t + 1`` numbers in buffers.
    Init: none; it cannot project before it has observed.
    Weight decay: none, there is no parameter; ridge takes its place.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.
        ridge: Added to every eigenvalue of C_s, in units of their mean, so that it means the same for features of any
            scale. Directions of smaller variance are projected to near zero.
        momentum: Weight of a new batch, above 0 and at most 1; 1 is the least-squares projector of the last batch
            alone. The default, that of the framework's batch norm, averages over about ``2/momentum - 1`` batches,
            which together should have several times d_s rows.

    Raises:
        UserError: If a width is below 1, ridge not above 0 or the momentum out of its range; on a call, if nothing has
            been observed yet.

    Deviates from: the paper, whose projector is trained by gradient descent, and whose text takes the features as
        whitened (W = C_st).

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        section on the projector's training dynamics.
        A. E. Hoerl, R. W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", Technometrics,
        1970.

    Example:
        >>> projector = Ridge(1, 2, ridge=1e-6)
        >>> projector.observe(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0, 0.0], [6.0, -1.0]]))
        >>> projector(torch.tensor([[2.0]])).round(decimals=3)
        tensor([[ 4., -1.]])
    """

    weight: Tensor

    def __init__(self, d_s: int, d_t: int, *, ridge: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__()
        _check_at_least_one("Ridge", d_s=d_s, d_t=d_t)
        if not ridge > 0:
            raise UserError(f"Ridge: ridge is {ridge}; expected a number above 0")
        self.d_s = d_s
        self.d_t = d_t
        self.ridge = ridge
        self.running = Running(d_s, d_s + d_t, momentum=momentum, name="Ridge")
        self.register_buffer("weight", torch.zeros(d_t, d_s))

    def forward(self, z: Float[Tensor, "*n d_s"]) -> Float[Tensor, "*n d_t"]:
        """Project with the current W."""
        self.running.check_seen("nothing to project with yet; call observe with a batch in training mode first")
        return F.linear(z, self.weight.to(z.dtype))

    @torch.no_grad()
    def observe(self, z_s: Float[Tensor, "*n d_s"], z_t: Float[Tensor, "*n d_t"]) -> None:
        """Take the global batch into the running moments, in at least float32, and solve for W; nothing in eval mode.

        Raises:
            UserError: If the rows of the two sides do not correspond, the widths are not those of the projector, all
                processes together have fewer than two rows, or the moments cannot be solved for; the state is then what
                it was.
        """
        if z_s.shape[:-1] != z_t.shape[:-1] or (z_s.shape[-1:], z_t.shape[-1:]) != ((self.d_s,), (self.d_t,)):
            raise UserError(
                f"Ridge: got {tuple(z_s.shape)} and {tuple(z_t.shape)}; expected (n, {self.d_s}) and (n, {self.d_t})"
            )
        if not self.training:
            return
        with torch.autocast(z_s.device.type, enabled=False):
            dtype = torch.promote_types(self.weight.dtype, torch.float32)
            rows = torch.cat([z_s.to(dtype).reshape(-1, self.d_s), z_t.to(dtype).reshape(-1, self.d_t)], dim=1)
            mean, covariance = self._of_all_processes(rows)
            mean, covariance, total = self.running.blended(mean, covariance)
            weight = self._solve(covariance.to(widest(rows.device))).to(dtype)
            self.running.keep(mean, covariance, total)
            self.weight = weight  # replaced, not overwritten: a backward pass may still need the last one

    def _of_all_processes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of all channels over the global batch, and the covariance with them of the student's."""
        n = int(collectives.sum_across(torch.tensor(rows.shape[0], device=rows.device)))
        if n < 2:
            raise UserError(f"Ridge: rows in the batch: {n}; a covariance needs at least 2")
        # Exact for a constant channel, which is then exactly zero when centered, whatever its size.
        mean = (collectives.sum_across(rows.sum(0, dtype=widest(rows.device))) / n).to(rows.dtype)
        centered = rows - mean
        return mean, collectives.sum_across(centered[:, : self.d_s].mT @ centered) / n

    def _solve(self, covariance: Tensor) -> Tensor:
        """W, transposed, from ``[C_s C_st]``."""
        c_s, c_st = covariance[:, : self.d_s], covariance[:, self.d_s :]
        # The floor is for constant features, for which C_st is zero as well.
        r = self.ridge * c_s.diagonal().mean() + 1e-30
        with_ridge = c_s + r * torch.eye(self.d_s, dtype=r.dtype, device=r.device)
        factor, failed = cast(tuple[Tensor, Tensor], torch.linalg.cholesky_ex(with_ridge))  # pyright: ignore[reportUnknownMemberType]
        if int(failed) != 0:
            raise UserError(
                f"Ridge: no solution for ridge {self.ridge}; the features are not finite, or it is too small"
            )
        return torch.cholesky_solve(c_st, factor).mT.contiguous()

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.d_s}, {self.d_t}, ridge={self.ridge}"


def _check_at_least_one(name: str, **sizes: int) -> None:
    for argument, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: {argument} is {size}; expected at least 1")
