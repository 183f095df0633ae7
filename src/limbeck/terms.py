"""Distillation terms: each owns what it reads, its projector, its norms and its loss."""

import functools
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck import collectives, losses, norms, pooling
from limbeck.errors import UserError
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


class FeatureTerm(nn.Module):
    """Match a projected student feature to a teacher feature: tap, pool, project, gather, normalize, compare.

    With ``z_s = pool(student)``, ``z_t = pool(teacher)`` and projector ``p`` the loss is::

        loss(student_norm(p(z_s)), teacher_norm(z_t))

    or, with ``correlation_loss``, that function of the per-channel correlation ``c_j`` of the two normalized sides.
    Exactly one of the two is given. Projected features of all processes are gathered before the norms, so batch
    statistics and loss are those of the global batch. Norms and losses run in at least float32, also under autocast;
    the projector follows autocast.

    Args:
        student_tap: Tap of the student, see :class:`limbeck.taps.Taps`.
        teacher_tap: Tap of the teacher.
        projector: Maps the student's width (last dimension) to the teacher's.
        student_norm: Norm behind the projector; none where omitted.
        teacher_norm: Norm on the teacher's side; none where omitted. It uses batch statistics although the teacher is
            in eval mode, as the paper does.
        loss: Elementwise loss of two same-shaped tensors, for instance :func:`limbeck.losses.log_sum`.
        correlation_loss: Loss of the correlation vector, for instance :func:`limbeck.losses.log_correlation`.
            Both norms must then be :class:`limbeck.norms.BatchNorm`.
        student_pool: From maps or tokens to vectors, see :mod:`limbeck.pooling`.
        teacher_pool: The same for the teacher.

    Raises:
        UserError: If not exactly one loss is given; if a correlation loss lacks a batch norm; if the projector has a
            bias that a batch norm behind it cancels; on the first call, if the widths do not match.

    Deviates from: the published code keeps a projector with a dead bias inside the loss, outside of the optimizer's
    and the checkpoint's reach; here it is a submodule of the term, and the bias is refused.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        figure 1 and equation 6.12 of the thesis version.

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
        >>> term(student, teacher).ndim
        0
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
        loss: Loss | None = None,
        correlation_loss: CorrelationLoss | None = None,
        student_pool: pooling.Pool = pooling.automatic,
        teacher_pool: pooling.Pool = pooling.automatic,
    ) -> None:
        super().__init__()
        if (loss is None) == (correlation_loss is None):
            raise UserError("a FeatureTerm takes exactly one of loss and correlation_loss")
        both_batch = isinstance(student_norm, norms.BatchNorm) and isinstance(teacher_norm, norms.BatchNorm)
        if correlation_loss is not None and not both_batch:
            raise UserError("a correlation_loss needs BatchNorm as student_norm and as teacher_norm")
        if isinstance(student_norm, norms.BatchNorm):
            _refuse_dead_bias(projector)
        self.student_taps = (student_tap,)
        self.teacher_taps = (teacher_tap,)
        self.projector = projector
        self.student_norm = student_norm if student_norm is not None else nn.Identity()
        self.teacher_norm = teacher_norm if teacher_norm is not None else nn.Identity()
        self.loss = loss
        self.correlation_loss = correlation_loss
        self.student_pool = student_pool
        self.teacher_pool = teacher_pool
        self.readings = {}

    def forward(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class.

        Raises:
            UserError: If the projected width and the teacher's differ.
        """
        z_s = self.student_pool(student.features[self.student_taps[0]])  # (n, [positions,] d_s)
        z_t = self.teacher_pool(teacher.features[self.teacher_taps[0]])  # (n, [positions,] d_t)
        a = self.projector(z_s)  # (n, [positions,] d_t)
        if a.shape != z_t.shape:
            raise UserError(
                f'after the projector, "{self.student_taps[0]}" of the student is {tuple(a.shape)} and '
                f'"{self.teacher_taps[0]}" of the teacher is {tuple(z_t.shape)}; expected equal shapes'
            )
        with torch.autocast(a.device.type, enabled=False):
            # Gathered in at least float32, since the sums of the norms are taken over all of it.
            a = self.student_norm(collectives.gather_rows(_at_least_float32(a)))
            t = self.teacher_norm(collectives.gather_rows(_at_least_float32(z_t)))
            if self.correlation_loss is not None:
                c = losses.correlation(a, t)
                value = self.correlation_loss(c)
                self.readings = {"correlation": c.detach().mean()}
                if _unwrapped(self.correlation_loss) is losses.log_correlation:
                    self.readings["log_mean"] = value.detach() - math.log(c.numel())
                return value
            assert self.loss is not None
            value = self.loss(a, t)
            self.readings = {}
            if _unwrapped(self.loss) is losses.log_sum:
                self.readings["log_mean"] = value.detach() - math.log(a.numel())
            if isinstance(self.student_norm, norms.BatchNorm) and isinstance(self.teacher_norm, norms.BatchNorm):
                self.readings["correlation"] = (a.detach() * t.detach()).mean()
            return value

    def extra_repr(self) -> str:
        """The taps and the loss, for ``print``."""
        compared = self.loss if self.loss is not None else self.correlation_loss
        return f"{self.student_taps[0]} -> {self.teacher_taps[0]}, loss={_name(compared)}"


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
        self.readings = _agreement(student, teacher)
        return self.loss(student.output, teacher.output)


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
        self.readings = _agreement(student, teacher)
        return self.loss(student.output, teacher.output, student.target)


def _agreement(student: Captured, teacher: Captured) -> dict[str, Tensor]:
    """Share of the batch for which both put the same class first."""
    y_s, y_t = student.output.detach(), teacher.output
    if y_s.shape != y_t.shape:
        raise UserError(
            f"the student has {y_s.shape[-1]} classes and the teacher {y_t.shape[-1]}; logit losses need the same ones"
        )
    return {"agreement": (y_s.argmax(-1) == y_t.argmax(-1)).float().mean()}


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
