"""The term of a feature: tap, pool, project, normalize, compare, in the form that suits the batch."""

import contextlib
import enum
import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck import losses, norms
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32
from limbeck.projectors import Ensemble, Ridge
from limbeck.terms import moments
from limbeck.terms.chunked import Combine, chunked
from limbeck.terms.interface import CorrelationLoss, Loss

# Which losses are a mean, a sum or a LogSum over rows, so that they can be computed in blocks.
COMBINE: dict[object, Combine] = {
    losses.squared_error: Combine.SUM,
    losses.mean_squared_error: Combine.MEAN,
    losses.l1: Combine.MEAN,
    losses.smooth_l1: Combine.MEAN,
    losses.cosine: Combine.MEAN,
    losses.log_sum: Combine.LOG_SUM,
}
BY_ROWS_OR_BATCH = (nn.Identity, norms.L2, norms.LayerNorm, norms.GroupNorm, norms.BatchNorm)

# From benchmarks/loss_cost.py: rows for each student channel from which moments are quicker than the direct form, and
# elements of the projected feature from which blocks of it are.
MOMENTS_ROWS = 2
CHUNKED_ELEMENTS = 2**22


class LossForm(enum.Enum):
    """How a term computes its loss; the value and the gradient are the same."""

    DIRECT = "direct"  # project all rows, normalize, compare
    MOMENTS = "moments"  # from covariances, without the projected features
    CHUNKED = "chunked"  # block of rows by block of rows


class Sides(NamedTuple):
    """What a :class:`FeatureTerm` makes of a batch on its way to the loss, the last dimension being channels.

    Attributes:
        student: The pooled student feature.
        teacher: The pooled teacher feature.
        source: What the projector reads: one of the two, behind ``input_norm``.
        projected: What it gives.
        compared_student: The student's side as the loss sees it.
        compared_teacher: The teacher's.
    """

    student: Tensor
    teacher: Tensor
    source: Tensor
    projected: Tensor
    compared_student: Tensor
    compared_teacher: Tensor


class FeatureTerm(nn.Module):
    """Match a projected student feature to a teacher feature: tap, pool, project, normalize, compare.

    With ``z_s = pool(student)``, ``z_t = pool(teacher)`` and projector ``p`` the loss is::

        loss(student_norm(p(input_norm(z_s))), teacher_norm(z_t))

    or, with ``correlation_loss``, that function of the per-channel correlation ``c_j`` of the two normalized sides.
    Exactly one of the two is given. Batch statistics and loss are those of the global batch over all processes. Norms
    and losses run in at least float32, also under autocast; the projector follows autocast in the direct form.

    The same loss can be computed in three forms (:class:`LossForm`), and the term takes the one that suits the shape:
    *moments* where both sides are batch-normalized, the projector ends in a linear layer, and there are more rows than
    about twice the student's channels; *chunked* for elementwise losses of many rows; *direct* otherwise. On several
    processes the first two are taken wherever they apply, since then no features cross them. ``form_used`` says which
    it was.

    Args:
        student_tap: Tap of the student, see :class:`limbeck.features.taps.Taps`.
        teacher_tap: Tap of the teacher.
        projector: Maps the student's width (last dimension) to the teacher's; the other way round if ``inverted``.
        student_norm: Norm of the student's side, behind its projector; none where omitted.
        teacher_norm: Norm of the teacher's side; none where omitted. It uses batch statistics although the teacher is
            in eval mode, as the paper does.
        input_norm: Norm in front of the projector, for instance a whitening one.
        loss: Elementwise loss of two same-shaped tensors, for instance :func:`limbeck.losses.log_sum`.
        correlation_loss: Loss of the correlation vector, for instance :func:`limbeck.losses.log_correlation`.
            Both norms must then be :class:`limbeck.norms.BatchNorm`.
        student_pool: From maps or tokens to vectors, see :mod:`limbeck.features.pooling`.
        teacher_pool: The same for the teacher.
        inverted: Project the teacher's feature to the student's width, and compare there (with ``input_norm`` in front
            of it). The teacher's feature then is what the projector can throw away parts of.
        form: Insist on a form; by default the term chooses.

    Attributes:
        form_used: The form of the last call.

    Raises:
        UserError: If not exactly one loss is given; if a correlation loss lacks a batch norm; if the projector has a
            bias that a batch norm behind it cancels; on the first call, if the widths do not match or the form that is
            insisted on does not apply.

    Deviates from: the published code keeps a projector with a dead bias inside the loss, outside of the optimizer's
    and the checkpoint's reach; here it is a submodule of the term, and the bias is refused.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        figure 1 and equation 6.12 of the thesis version. Inverted: R. Miles, I. Elezi, J. Deng, "Learning to Project
        for Cross-Task Knowledge Distillation", BMVC 2024.

    Example:
        >>> from limbeck import projectors
        >>> term = FeatureTerm(
        ...     "a",
        ...     "b",
        ...     projector=projectors.linear(4, 6),
        ...     student_norm=norms.BatchNorm(6),
        ...     teacher_norm=norms.BatchNorm(6),
        ...     loss=losses.log_sum,
        ... )
        >>> student = Captured(torch.zeros(8), {"a": torch.randn(8, 4)})
        >>> teacher = Captured(torch.zeros(8), {"b": torch.randn(8, 6, 2, 2)})
        >>> term(student, teacher).ndim, term.form_used.value
        (0, 'direct')
    """

    readings: dict[str, Tensor]

    def __init__(
        self,
        student_tap: str,
        teacher_tap: str,
        *,
        projector: nn.Module,
        student_norm: nn.Module | None = None,
        teacher_norm: nn.Module | None = None,
        input_norm: nn.Module | None = None,
        loss: Loss | None = None,
        correlation_loss: CorrelationLoss | None = None,
        student_pool: pooling.Pool = pooling.automatic,
        teacher_pool: pooling.Pool = pooling.automatic,
        inverted: bool = False,
        form: LossForm | None = None,
    ) -> None:
        super().__init__()
        if (loss is None) == (correlation_loss is None):
            raise UserError("a FeatureTerm takes exactly one of loss and correlation_loss")
        both_batch = isinstance(student_norm, norms.BatchNorm) and isinstance(teacher_norm, norms.BatchNorm)
        if correlation_loss is not None and not both_batch:
            raise UserError("a correlation_loss needs BatchNorm as student_norm and as teacher_norm")
        if isinstance(teacher_norm if inverted else student_norm, norms.BatchNorm):
            _refuse_dead_bias(projector)
        other = student_norm if inverted else teacher_norm
        keeps_statistics = isinstance(other, (norms.ZCA, norms.Cholesky)) and other.running is not None
        if isinstance(projector, Ridge) and keeps_statistics:
            raise UserError("Ridge reads the other side's norm twice a batch; build it without running statistics")
        self.student_taps = (student_tap,)
        self.teacher_taps = (teacher_tap,)
        self.projector = projector
        self.student_norm = student_norm if student_norm is not None else nn.Identity()
        self.teacher_norm = teacher_norm if teacher_norm is not None else nn.Identity()
        self.input_norm = input_norm if input_norm is not None else nn.Identity()
        self.loss = loss
        self.correlation_loss = correlation_loss
        self.student_pool = student_pool
        self.teacher_pool = teacher_pool
        self.inverted = inverted
        self.form = form
        self.form_used = LossForm.DIRECT
        self.readings = {}

    def forward(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class.

        Raises:
            UserError: If the projected width and the other side's differ.
        """
        z_s = self.student_pool(student.features[self.student_taps[0]])  # (n, [positions,] d_s)
        z_t = self.teacher_pool(teacher.features[self.teacher_taps[0]])  # (n, [positions,] d_t)
        x, y = (z_t, z_s) if self.inverted else (z_s, z_t)  # x goes through the projector
        if isinstance(self.input_norm, nn.Identity) and not isinstance(self.projector, Ridge):
            return self._compare(x, y)
        # Statistics in front of the projector are those of all rows: from here on every process has all of them.
        with torch.autocast(x.device.type, enabled=False):
            x = self.input_norm(collectives.gather_rows(at_least_float32(x)))
            y = collectives.gather_rows(at_least_float32(y))
        # One process is alone anyway, and a compiler does not trace a generator's context.
        with collectives.alone() if collectives.world_size() > 1 else contextlib.nullcontext():
            if isinstance(self.projector, Ridge) and self.training:
                y_norm = self.student_norm if self.inverted else self.teacher_norm
                self.projector.observe(x, y_norm(y))
            return self._compare(x, y)

    def sides(self, student: Captured, teacher: Captured) -> Sides:
        """What the loss is made of, in the direct form and of the rows of this process alone; for measurements.

        Raises:
            UserError: As in a call; also if a norm or a projector that keeps statistics has seen no batch yet.
        """
        z_s = at_least_float32(self.student_pool(student.features[self.student_taps[0]]))
        z_t = at_least_float32(self.teacher_pool(teacher.features[self.teacher_taps[0]]))
        with torch.autocast(z_s.device.type, enabled=False):
            source = self.input_norm(z_t if self.inverted else z_s)
            projected = self.projector(source)
            a, t = (z_s, projected) if self.inverted else (projected, z_t)
            if a.shape != t.shape:
                raise self._misfit(projected.shape, z_s if self.inverted else z_t)
            return Sides(z_s, z_t, source, projected, self.student_norm(a), self.teacher_norm(t))

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        reads, last = _ends(self.projector)
        if reads is not None and reads != x.shape[-1]:
            tap = self.teacher_taps[0] if self.inverted else self.student_taps[0]
            raise UserError(
                f'tap "{tap}" is {tuple(x.shape)} before the projector, which reads {reads} channels; '
                f"build it for {x.shape[-1]}"
            )
        self.form_used = self._suitable(x, y, last)
        if last is not None and (*x.shape[:-1], last.out_features) != y.shape:
            raise self._misfit((*x.shape[:-1], last.out_features), y)
        if last is None or self.form_used is LossForm.DIRECT:
            value, elements, correlation = self._directly(x, y)
        else:
            value, elements, correlation = self._without_projected(x, y, last)
        self.readings = {} if correlation is None else {"correlation": correlation}
        loss = self.loss if self.loss is not None else self.correlation_loss
        if unwrapped(loss) in (losses.log_sum, losses.log_correlation):
            self.readings["log_mean"] = value.detach() - math.log(elements)
        return value

    def _suitable(self, x: Tensor, y: Tensor, last: nn.Linear | None) -> LossForm:
        """The quickest form that applies; on several processes without a look at the rows, which may differ there."""
        both = (self.student_norm, self.teacher_norm)
        loss = unwrapped(self.loss)
        by_moments = (
            last is not None
            and loss in (None, losses.mean_squared_error)
            and all(isinstance(norm, norms.BatchNorm) for norm in both)
        )
        in_blocks = (
            last is not None
            and not self.inverted
            and not y.requires_grad
            and loss in COMBINE
            and all(isinstance(norm, BY_ROWS_OR_BATCH) for norm in both)
        )
        if self.form is not None:
            if not {LossForm.DIRECT: True, LossForm.MOMENTS: by_moments, LossForm.CHUNKED: in_blocks}[self.form]:
                raise UserError(f"the {self.form.value} form does not apply to {self.extra_repr()}")
            return self.form
        rows, alone = x.shape[:-1].numel(), collectives.world_size() == 1
        if by_moments and (not alone or (last is not None and rows > MOMENTS_ROWS * last.in_features)):
            return LossForm.MOMENTS
        if in_blocks and (not alone or rows * y.shape[-1] > CHUNKED_ELEMENTS):
            return LossForm.CHUNKED
        return LossForm.DIRECT

    def _directly(self, x: Tensor, y: Tensor) -> "_Compared":
        x = self.projector(x)
        if x.shape != y.shape:
            raise self._misfit(x.shape, y)
        with torch.autocast(x.device.type, enabled=False):
            x, y = at_least_float32(x), at_least_float32(y)
            if collectives.world_size() > 1:  # wide, since the sums of the norms are taken over all of it
                x, y = collectives.gather_rows(x), collectives.gather_rows(y)
            a, t = (y, x) if self.inverted else (x, y)
            a, t = self.student_norm(a), self.teacher_norm(t)
            if self.correlation_loss is not None:
                c = losses.correlation(a, t)
                return _Compared(self.correlation_loss(c), c.numel(), c.detach().mean())
            assert self.loss is not None
            both_batch = isinstance(self.student_norm, norms.BatchNorm) and isinstance(
                self.teacher_norm, norms.BatchNorm
            )
            mean = (a.detach() * t.detach()).mean() if both_batch else None
            return _Compared(self.loss(a, t), a.numel(), mean)

    def _without_projected(self, x: Tensor, y: Tensor, last: nn.Linear) -> "_Compared":
        """From moments or in blocks: what comes before the last layer runs as it is, and that layer does not run."""
        before, behind = (
            (self.teacher_norm, self.student_norm) if self.inverted else (self.student_norm, self.teacher_norm)
        )
        for norm in (before, behind):
            if isinstance(norm, norms.BatchNorm) and norm.d != last.out_features:  # what it would say, were it called
                raise UserError(f"BatchNorm: got {tuple(y.shape)}; expected (n, {norm.d})")
        if isinstance(self.projector, nn.Sequential):
            x = self.projector[:-1](x)
        both_batch = isinstance(before, norms.BatchNorm) and isinstance(behind, norms.BatchNorm)
        with torch.autocast(x.device.type, enabled=False):
            if self.form_used is LossForm.CHUNKED:
                assert self.loss is not None
                combine = COMBINE[unwrapped(self.loss)]
                value, product, rows = chunked(
                    self.loss, combine, x, y, last.weight, bias=last.bias, student_norm=before, teacher_norm=behind
                )
                return _Compared(value, rows * y.shape[-1], product if both_batch else None)
            assert isinstance(before, norms.BatchNorm)
            assert isinstance(behind, norms.BatchNorm)
            m = moments.moments(x, y)
            if self.correlation_loss is not None:
                c = moments.correlation(m, last.weight, eps_s=before.eps, eps_t=behind.eps)
                return _Compared(self.correlation_loss(c), c.numel(), c.detach().mean())
            value, c = moments.mean_squared_error(m, last.weight, eps_s=before.eps, eps_t=behind.eps)
            return _Compared(value, m.count * y.shape[-1], c.detach().mean())

    def _misfit(self, projected: tuple[int, ...], other: Tensor) -> UserError:
        student, teacher = f'"{self.student_taps[0]}" of the student', f'"{self.teacher_taps[0]}" of the teacher'
        source, target = (teacher, student) if self.inverted else (student, teacher)
        return UserError(
            f"after the projector, {source} is {tuple(projected)} and {target} is {tuple(other.shape)}; "
            "expected equal shapes"
        )

    def extra_repr(self) -> str:
        """The taps and the loss, for ``print``."""
        compared = self.loss if self.loss is not None else self.correlation_loss
        return f"{self.student_taps[0]} -> {self.teacher_taps[0]}, loss={_name(compared)}"


class _Compared(NamedTuple):
    """A loss, how many elements it is of, and the mean correlation of the two sides where both are batch-normalized."""

    loss: Tensor
    elements: int
    correlation: Tensor | None


def _ends(projector: nn.Module) -> tuple[int | None, nn.Linear | None]:
    """How many channels a projector reads, where its first layer says so, and its last layer where that is linear."""
    first = projector
    while inner := first.members if isinstance(first, Ensemble) else first if isinstance(first, nn.Sequential) else ():
        first = inner[0]
    reads = getattr(first, "in_features", None)
    last = projector[-1] if isinstance(projector, nn.Sequential) and len(projector) > 0 else projector
    return reads if isinstance(reads, int) else None, last if isinstance(last, nn.Linear) else None


def _refuse_dead_bias(projector: nn.Module) -> None:
    """Refuse a projector whose last layer has a bias that a batch norm behind it takes off again."""
    last = [module for module in projector.modules() if isinstance(module, nn.Linear)][-1:]
    if last and last[0].bias is not None and list(projector.modules())[-1] is last[0]:  # pyright: ignore[reportUnnecessaryComparison]
        raise UserError("the projector's last bias is cancelled by the batch norm after it; build it with bias=False")


def unwrapped(function: object) -> object:
    """A function without the arguments that were bound to it."""
    return function.func if isinstance(function, functools.partial) else function  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _name(function: object) -> str:
    inner = unwrapped(function)
    return str(getattr(inner, "__name__", type(inner).__name__))
