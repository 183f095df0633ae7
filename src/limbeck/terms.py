"""Distillation terms: each owns what it reads, its projector, its norms and its loss."""

import contextlib
import enum
import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck import collectives, losses, moments, norms, pooling
from limbeck.chunked import Combine, chunked
from limbeck.errors import UserError
from limbeck.projectors import Ridge
from limbeck.taps import Captured

Loss = Callable[[Tensor, Tensor], Tensor]
LabelledLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
CorrelationLoss = Callable[[Tensor], Tensor]


@runtime_checkable
class Term(Protocol):
    """One distillation loss between what the student and what the teacher computed.

    A term that has parameters is also an ``nn.Module``; the distiller then trains and saves it.

    Attributes:
        student_taps: Names that the student must be tapped at.
        teacher_taps: Names that the teacher must be tapped at.
        readings: Measurements of the last call, detached, in a form that does not depend on batch size or width.
    """

    student_taps: tuple[str, ...]
    teacher_taps: tuple[str, ...]
    readings: dict[str, Tensor]

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        """The unweighted loss, a scalar."""
        ...


class Form(enum.Enum):
    """How a term computes its loss; the value and the gradient are the same."""

    DIRECT = "direct"  # project all rows, normalize, compare
    MOMENTS = "moments"  # from covariances, without the projected features
    CHUNKED = "chunked"  # block of rows by block of rows


# Which losses are a mean, a sum or a LogSum over rows, so that they can be computed in blocks.
COMBINE: dict[object, Combine] = {
    losses.squared_error: Combine.SUM,
    losses.mean_squared_error: Combine.MEAN,
    losses.l1: Combine.MEAN,
    losses.smooth_l1: Combine.MEAN,
    losses.cosine: Combine.MEAN,
    losses.log_sum: Combine.LOG_SUM,
}
ROW_BY_ROW = (nn.Identity, norms.L2, norms.LayerNorm, norms.GroupNorm)

# From benchmarks/loss_cost.py: rows for each student channel from which moments are quicker than the direct form, and
# elements of the projected feature from which blocks of it are.
MOMENTS_ROWS = 2
CHUNKED_ELEMENTS = 2**22


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
        student_tap: Tap of the student, see :class:`limbeck.taps.Taps`.
        teacher_tap: Tap of the teacher.
        projector: Maps the student's width (last dimension) to the teacher's; the other way round if ``inverted``.
        student_norm: Norm of the student's side, behind its projector; none where omitted.
        teacher_norm: Norm of the teacher's side; none where omitted. It uses batch statistics although the teacher is
            in eval mode, as the paper does.
        input_norm: Norm in front of the projector, for instance a whitening one.
        loss: Elementwise loss of two same-shaped tensors, for instance :func:`limbeck.losses.log_sum`.
        correlation_loss: Loss of the correlation vector, for instance :func:`limbeck.losses.log_correlation`.
            Both norms must then be :class:`limbeck.norms.BatchNorm`.
        student_pool: From maps or tokens to vectors, see :mod:`limbeck.pooling`.
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
            x = self.input_norm(collectives.gather_rows(_at_least_float32(x)))
            y = collectives.gather_rows(_at_least_float32(y))
        # One process is alone anyway, and a compiler does not trace the change of a context variable.
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
        z_s = _at_least_float32(self.student_pool(student.features[self.student_taps[0]]))
        z_t = _at_least_float32(self.teacher_pool(teacher.features[self.teacher_taps[0]]))
        with torch.autocast(z_s.device.type, enabled=False):
            source = self.input_norm(z_t if self.inverted else z_s)
            projected = self.projector(source)
            a, t = (z_s, projected) if self.inverted else (projected, z_t)
            if a.shape != t.shape:
                raise self._misfit(projected.shape, z_s if self.inverted else z_t)
            return Sides(z_s, z_t, source, projected, self.student_norm(a), self.teacher_norm(t))

    def _compare(self, x: Tensor, y: Tensor) -> Tensor:
        last = _last_linear(self.projector)
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
            x, y = (collectives.gather_rows(_at_least_float32(side)) for side in (x, y))
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
        value, product = chunked(
            self.loss,
            COMBINE[_unwrapped(self.loss)],
            x,
            y,
            linear.weight,
            bias=linear.bias,
            student_norm=self.student_norm,
            teacher_norm=self.teacher_norm,
        )
        self._read_loss(value, moments.row_count(x) * y.shape[-1], product if self._both_batch() else None)
        return value

    def _choose(self, x: Tensor, y: Tensor, last: "_LastLinear | None") -> Form:
        """The quickest form that applies; on several processes without a look at the rows, which may differ there."""
        named = _unwrapped(self.loss)
        by_moments = last is not None and self._both_batch() and named in (None, losses.mean_squared_error)
        in_blocks = (
            last is not None
            and not self.inverted
            and not y.requires_grad
            and named in COMBINE
            and all(isinstance(n, (norms.BatchNorm, *ROW_BY_ROW)) for n in (self.student_norm, self.teacher_norm))
        )
        if self.form is not None:
            if not {Form.DIRECT: True, Form.MOMENTS: by_moments, Form.CHUNKED: in_blocks}[self.form]:
                raise UserError(f"the {self.form.value} form does not apply to {self.extra_repr()}")
            return self.form
        rows, alone = x.shape[:-1].numel(), collectives.world_size() == 1
        if by_moments and (not alone or (last is not None and rows > MOMENTS_ROWS * last.linear.in_features)):
            return Form.MOMENTS
        if in_blocks and (not alone or rows * y.shape[-1] > CHUNKED_ELEMENTS):
            return Form.CHUNKED
        return Form.DIRECT

    def _both_batch(self) -> bool:
        return all(isinstance(norm, norms.BatchNorm) for norm in (self.student_norm, self.teacher_norm))

    def _read_correlation(self, c: Tensor) -> Tensor:
        assert self.correlation_loss is not None
        value = self.correlation_loss(c)
        self.readings = {"correlation": c.detach().mean()}
        if _unwrapped(self.correlation_loss) is losses.log_correlation:
            self.readings["log_mean"] = value.detach() - math.log(c.numel())
        return value

    def _read_loss(self, value: Tensor, elements: int, correlation: Tensor | None) -> None:
        self.readings = {}
        if _unwrapped(self.loss) is losses.log_sum:
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


class RelationTerm:
    """Compare what is between the samples of a batch, or maps of any width: a loss that needs no projector.

    With ``z_s = pool(student)`` and ``z_t = pool(teacher)`` it is ``loss(z_s, z_t)`` over the rows of all processes;
    the widths may differ, as the loss takes them. For losses of relations
    (:func:`limbeck.losses.similarity_preserving`) and of maps (:func:`limbeck.losses.attention_transfer`, with
    :func:`limbeck.pooling.unpooled`).

    Args:
        student_tap: Tap of the student, see :class:`limbeck.taps.Taps`.
        teacher_tap: Tap of the teacher.
        loss: Function of both features, student first.
        student_pool: From maps or tokens to what the loss takes, see :mod:`limbeck.pooling`.
        teacher_pool: The same for the teacher.
    """

    def __init__(
        self,
        student_tap: str,
        teacher_tap: str,
        *,
        loss: Loss,
        student_pool: pooling.Pool = pooling.automatic,
        teacher_pool: pooling.Pool = pooling.automatic,
    ) -> None:
        self.student_taps = (student_tap,)
        self.teacher_taps = (teacher_tap,)
        self.loss = loss
        self.student_pool = student_pool
        self.teacher_pool = teacher_pool
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        """The loss of one batch."""
        z_s = self.student_pool(student.features[self.student_taps[0]])
        z_t = self.teacher_pool(teacher.features[self.teacher_taps[0]])
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = (collectives.gather_rows(_at_least_float32(z)) for z in (z_s, z_t))
            return self.loss(z_s, z_t)


class LogitTerm:
    """Match the student's logits to the teacher's.

    Args:
        loss: Function of two logit tensors, by default soft targets at temperature 4, the value that the CIFAR
            literature uses (RepDistiller, mdistiller). The paper's own logit loss has temperature 1.

    Example:
        >>> y = torch.randn(8, 10)
        >>> round(LogitTerm()(Captured(y, {}), Captured(y, {})).item(), 6)
        0.0
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, loss: Loss = losses.kl_divergence) -> None:
        self.loss = loss
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        """The loss of one batch; UserError when the two models do not have the same classes."""
        y_s, y_t = _gathered(student, teacher)
        self.readings = _agreement(y_s, y_t)
        return self.loss(y_s, y_t)


class LabelledLogitTerm:
    """Match the student's logits to the teacher's by a loss that also reads the labels.

    Args:
        loss: Function ``(y_s, y_t, target)``, by default decoupled distillation (DKD).
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, loss: LabelledLoss = losses.decoupled_kl) -> None:
        self.loss = loss
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        """The loss of one batch; UserError when there are no labels or the classes differ."""
        if student.target is None:
            raise UserError(
                "this logit loss needs labels, and the batch has none; use kl_divergence for unlabelled images"
            )
        y_s, y_t = _gathered(student, teacher)
        self.readings = _agreement(y_s, y_t)
        return self.loss(y_s, y_t, collectives.gather_rows(student.target))


def _gathered(student: Captured, teacher: Captured) -> tuple[Tensor, Tensor]:
    """The logits of all processes: some losses compare samples with each other, and local batches may differ."""
    y_s, y_t = student.output, teacher.output
    if y_s.shape != y_t.shape:
        raise UserError(
            f"the student has {y_s.shape[-1]} classes and the teacher {y_t.shape[-1]}; logit losses need the same ones"
        )
    return collectives.gather_rows(_at_least_float32(y_s)), collectives.gather_rows(_at_least_float32(y_t))


def _agreement(y_s: Tensor, y_t: Tensor) -> dict[str, Tensor]:
    """Share of the batch for which both put the same class first."""
    return {"agreement": (y_s.detach().argmax(-1) == y_t.argmax(-1)).float().mean()}


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _unwrapped(function: object) -> object:
    return function.func if isinstance(function, functools.partial) else function  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _name(function: object) -> str:
    inner = _unwrapped(function)
    return str(getattr(inner, "__name__", type(inner).__name__))


def _refuse_dead_bias(projector: nn.Module) -> None:
    last = [module for module in projector.modules() if isinstance(module, nn.Linear)][-1:]
    if last and last[0].bias is not None and list(projector.modules())[-1] is last[0]:  # pyright: ignore[reportUnnecessaryComparison]
        raise UserError("the projector's last bias is cancelled by the batch norm behind it; build it with bias=False")


class _LastLinear(NamedTuple):
    """A projector as its last linear layer and what comes in front of it."""

    body: nn.Module
    linear: nn.Linear


def _last_linear(projector: nn.Module) -> _LastLinear | None:
    """The last layer, where the projector is or ends in a linear one: what moments and blocks need to know of it."""
    if isinstance(projector, nn.Linear):
        return _LastLinear(nn.Identity(), projector)
    if isinstance(projector, nn.Sequential) and len(projector) > 0:
        last = projector[-1]
        return _LastLinear(projector[:-1], last) if isinstance(last, nn.Linear) else None
    return None
