"""The term of a feature: tap, pool, project, normalize, compare, in the form that suits the batch."""

import contextlib
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
from limbeck.projectors import Ridge
from limbeck.terms import moments
from limbeck.terms.chunked import chunked
from limbeck.terms.forms import (
    COMBINE,
    Form,
    LastLinear,
    are_batch,
    choose,
    input_width,
    last_linear,
    refuse_dead_bias,
    unwrapped,
)
from limbeck.terms.interface import CorrelationLoss, Loss, at_least_float32


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

    The same loss can be computed in three forms (:class:`Form`), and the term takes the one that suits the shape:
    *moments* where both sides are batch-normalized, the projector ends in a linear layer, and there are more rows than
    about twice the student's channels; *chunked* for elementwise losses of many rows; *direct* otherwise. On several
    processes the first two are taken wherever they apply, since then no features cross them. ``used`` says which it
    was.

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
        used: The form of the last call.

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
        >>> term(student, teacher).ndim, term.used.value
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
        form: Form | None = None,
    ) -> None:
        super().__init__()
        if (loss is None) == (correlation_loss is None):
            raise UserError("a FeatureTerm takes exactly one of loss and correlation_loss")
        both_batch = isinstance(student_norm, norms.BatchNorm) and isinstance(teacher_norm, norms.BatchNorm)
        if correlation_loss is not None and not both_batch:
            raise UserError("a correlation_loss needs BatchNorm as student_norm and as teacher_norm")
        if isinstance(teacher_norm if inverted else student_norm, norms.BatchNorm):
            refuse_dead_bias(projector)
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
        self.used = Form.DIRECT
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
        reads = input_width(self.projector)
        if reads is not None and reads != x.shape[-1]:
            tap = self.teacher_taps[0] if self.inverted else self.student_taps[0]
            raise UserError(
                f'tap "{tap}" is {tuple(x.shape)} before the projector, which reads {reads} channels; '
                f"build it for {x.shape[-1]}"
            )
        last = last_linear(self.projector)
        width = last.linear.out_features if last is not None else None
        self.used = self._choose(x, y, last)
        if width is not None and (*x.shape[:-1], width) != y.shape:
            raise self._misfit((*x.shape[:-1], width), y)
        if last is None or self.used is Form.DIRECT:
            return self._directly(x, y)
        for norm in (self.student_norm, self.teacher_norm):
            if isinstance(norm, norms.BatchNorm) and norm.d != width:  # what the norm would say, were it called
                raise UserError(f"BatchNorm: got {tuple(y.shape)}; expected (n, {norm.d})")
        x = last.body(x)
        with torch.autocast(x.device.type, enabled=False):
            if self.used is Form.CHUNKED:
                return self._chunked(x, y, last.linear)
            return self._from_moments(x, y, last.linear)

    def _directly(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.projector(x)
        if x.shape != y.shape:
            raise self._misfit(x.shape, y)
        with torch.autocast(x.device.type, enabled=False):
            # Gathered in at least float32, since the sums of the norms are taken over all of it.
            x, y = (collectives.gather_rows(at_least_float32(side)) for side in (x, y))
            a, t = (y, x) if self.inverted else (x, y)
            a, t = self.student_norm(a), self.teacher_norm(t)
            if self.correlation_loss is not None:
                return self._read_correlation(losses.correlation(a, t))
            assert self.loss is not None
            value = self.loss(a, t)
            mean = (a.detach() * t.detach()).mean() if self._both_batch() else None
            self._read_loss(value, a.numel(), mean)
            return value

    def _from_moments(self, x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
        m = moments.moments(x, y)
        before, behind = self.student_norm, self.teacher_norm
        if self.inverted:
            before, behind = behind, before
        assert isinstance(before, norms.BatchNorm)
        assert isinstance(behind, norms.BatchNorm)
        if self.correlation_loss is not None:
            return self._read_correlation(moments.correlation(m, linear.weight, eps_s=before.eps, eps_t=behind.eps))
        value, c = moments.mean_squared_error(m, linear.weight, eps_s=before.eps, eps_t=behind.eps)
        self._read_loss(value, m.count * y.shape[-1], c.detach().mean())
        return value

    def _chunked(self, x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
        assert self.loss is not None
        value, product, rows = chunked(
            self.loss,
            COMBINE[unwrapped(self.loss)],
            x,
            y,
            linear.weight,
            bias=linear.bias,
            student_norm=self.student_norm,
            teacher_norm=self.teacher_norm,
        )
        self._read_loss(value, rows * y.shape[-1], product if self._both_batch() else None)
        return value

    def _choose(self, x: Tensor, y: Tensor, last: LastLinear | None) -> Form:
        return choose(
            x,
            y,
            last,
            loss=self.loss,
            student_norm=self.student_norm,
            teacher_norm=self.teacher_norm,
            inverted=self.inverted,
            form=self.form,
            name=self.extra_repr,
        )

    def _both_batch(self) -> bool:
        return are_batch(self.student_norm, self.teacher_norm)

    def _read_correlation(self, c: Tensor) -> Tensor:
        assert self.correlation_loss is not None
        value = self.correlation_loss(c)
        self.readings = {"correlation": c.detach().mean()}
        if unwrapped(self.correlation_loss) is losses.log_correlation:
            self.readings["log_mean"] = value.detach() - math.log(c.numel())
        return value

    def _read_loss(self, value: Tensor, elements: int, correlation: Tensor | None) -> None:
        self.readings = {}
        if unwrapped(self.loss) is losses.log_sum:
            self.readings["log_mean"] = value.detach() - math.log(elements)
        if correlation is not None:
            self.readings["correlation"] = correlation

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


def _name(function: object) -> str:
    inner = unwrapped(function)
    return str(getattr(inner, "__name__", type(inner).__name__))
