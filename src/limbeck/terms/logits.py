"""The terms of the logits, without and with labels."""

from torch import Tensor

from limbeck import collectives, losses
from limbeck.errors import UserError
from limbeck.taps import Captured
from limbeck.terms.interface import LabelledLoss, Loss, at_least_float32


class LogitTerm:
    """Match the student's logits to the teacher's.

    Args:
        loss: Function of two logit tensors, by default soft targets at temperature 4, the value that the CIFAR
            literature uses (RepDistiller, mdistiller). The paper's own logit loss has temperature 1.
        student_tap: Submodule of the student whose output is compared, for one with a head of its own for the teacher
            (the distillation head of DeiT); None: what the student returns, which is what the task sees.

    Example:
        >>> import torch
        >>> y = torch.randn(8, 10)
        >>> round(LogitTerm()(Captured(y, {}), Captured(y, {})).item(), 6)
        0.0
    """

    teacher_taps: tuple[str, ...] = ()

    def __init__(self, loss: Loss = losses.kl_divergence, *, student_tap: str | None = None) -> None:
        self.loss = loss
        self.student_taps: tuple[str, ...] = () if student_tap is None else (student_tap,)
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        """The loss of one batch; UserError when the two models do not have the same classes."""
        y_s, y_t = _gathered(student, teacher, self.student_taps)
        self.readings = _agreement(y_s, y_t)
        return self.loss(y_s, y_t)


class LabelledLogitTerm:
    """Match the student's logits to the teacher's by a loss that also reads the labels.

    Args:
        loss: Function ``(y_s, y_t, target)``, by default decoupled distillation (DKD).
        student_tap: As for :class:`LogitTerm`.
    """

    teacher_taps: tuple[str, ...] = ()

    def __init__(self, loss: LabelledLoss = losses.decoupled_kl, *, student_tap: str | None = None) -> None:
        self.loss = loss
        self.student_taps: tuple[str, ...] = () if student_tap is None else (student_tap,)
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        """The loss of one batch; UserError when there are no labels or the classes differ."""
        if student.target is None:
            raise UserError(
                "this logit loss needs labels, and the batch has none; use kl_divergence for unlabelled images"
            )
        y_s, y_t = _gathered(student, teacher, self.student_taps)
        self.readings = _agreement(y_s, y_t)
        return self.loss(y_s, y_t, collectives.gather_rows(student.target))


def _gathered(student: Captured, teacher: Captured, taps: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The logits of all processes: some losses compare samples with each other, and local batches may differ."""
    y_s, y_t = student.features[taps[0]] if taps else student.output, teacher.output
    if y_s.shape != y_t.shape:
        raise UserError(
            f"the student has {y_s.shape[-1]} classes and the teacher {y_t.shape[-1]}; logit losses need the same ones"
        )
    return collectives.gather_rows(at_least_float32(y_s)), collectives.gather_rows(at_least_float32(y_t))


def _agreement(y_s: Tensor, y_t: Tensor) -> dict[str, Tensor]:
    """Share of the batch for which both put the same class first."""
    return {"agreement": (y_s.detach().argmax(-1) == y_t.argmax(-1)).float().mean()}
