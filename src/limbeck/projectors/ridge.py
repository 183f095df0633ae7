"""The projector that a trained one tends to, in closed form."""

from typing import cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.norms.roots import widest
from limbeck.norms.running import Running
from limbeck.projectors.layers import check_at_least_one


@final
class Ridge(nn.Module):
    """The linear map that a trained projector tends to, in closed form: ``z -> z W``, ``W = (C_s + r I)^(-1) C_st``.

    C_s and C_st are the covariance of the student's features and their covariance with the teacher's, over the batches
    so far (:class:`limbeck.norms.running.Running`: exponentially weighted, bias-corrected, the covariance of the
    batches' means included, which a batch norm does not see), and ``r = ridge trace(C_s)/d_s``. It is the fixed point
    of :func:`limbeck.projectors.linear` under a squared error and weight decay, without the training: W follows the
    features, and no gradient goes into it. The gradient that reaches the student is that of the projected feature with
    W held still.

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
        check_at_least_one("Ridge", {"d_s": d_s, "d_t": d_t})
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
                processes together have fewer than two rows, or the moments cannot be solved for (on a GPU the weight
                is then NaN); the state is then what it was.
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
        n = collectives.row_count(rows)
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
        weight = torch.cholesky_solve(c_st, factor).mT.contiguous()
        if failed.device.type != "cpu":  # asking would make every step wait; the loss is then NaN, which ends a run
            return torch.where(failed == 0, weight, torch.nan)
        if int(failed) != 0:
            raise UserError(
                f"Ridge: no solution for ridge {self.ridge}; the features are not finite, or it is too small"
            )
        return weight

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.d_s}, {self.d_t}, ridge={self.ridge}"
