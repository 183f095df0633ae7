"""The terms of the logits, without and with labels."""

from torch import Tensor

from limbeck import losses
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.terms.interface import LabelledLoss, Loss, at_least_float32
from limbeck.terms.rows import is_mean_over_rows, over_all


class LogitTerm:
    """Match the student's logits to the teacher's.

    Args:
        loss: Function of two logit tensors, by default soft targets at temperature 4, the value that the CIFAR
            literature uses (RepDistiller, mdistiller). The paper's own logit loss has temperature 1.
        student_tap: Submodule of the student whose output is compared, for one with a head of its own for the teacher
            (the distillation head of DeiT); None: what the student returns, which is what the task sees.
        mean_over_rows: Whether the loss is a mean over rows, none of which depends on another. Of several processes
            each then computes its own rows; the logits of a loss that is not so are gathered, every process computing
            all of it. None: by the function, a user's own one being gathered.

    Example:
        >>> import torch
        >>> y = torch.randn(8, 10)
        >>> round(LogitTerm()(Captured(y, {}), Captured(y, {})).item(), 6)
        0.0
    """

    teacher_taps: tuple[str, ...] = ()

    def __init__(
        self,
        loss: Loss = losses.kl_divergence,
        *,
        student_tap: str | None = None,
        mean_over_rows: bool | None = None,
    ) -> None:
        self.loss = loss
        self.mean_over_rows = mean_over_rows
        self.student_taps: tuple[str, ...] = () if student_tap is None else (student_tap,)
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        """The loss of one batch; UserError when the two models do not have the same classes."""
        y_s, y_t = _logits(student, teacher, self.student_taps)
        found = over_all(self.loss, y_s, y_t, by_rows=is_mean_over_rows(self.loss, self.mean_over_rows))
        self.readings = {"agreement": found.agreement.detach()}
        return found.loss


class LabelledLogitTerm:
    """Match the student's logits to the teacher's by a loss that also reads the labels.

    Args:
        loss: Function ``(y_s, y_t, target)``, by default decoupled distillation (DKD).
        student_tap: As for :class:`LogitTerm`.
        mean_over_rows: As there.
    """

    teacher_taps: tuple[str, ...] = ()

    def __init__(
        self,
        loss: LabelledLoss = losses.decoupled_kl,
        *,
        student_tap: str | None = None,
        mean_over_rows: bool | None = None,
    ) -> None:
        self.loss = loss
        self.mean_over_rows = mean_over_rows
        self.student_taps: tuple[str, ...] = () if student_tap is None else (student_tap,)
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        """The loss of one batch; UserError when there are no labels or the classes differ."""
        if student.target is None:
            raise UserError(
                "this logit loss needs labels, and the batch has none; use kl_divergence for unlabelled images"
            )
        y_s, y_t = _logits(student, teacher, self.student_taps)
        by_rows = is_mean_over_rows(self.loss, self.mean_over_rows)
        found = over_all(self.loss, y_s, y_t, student.target, by_rows=by_rows)
        self.readings = {"agreement": found.agreement.detach()}
        return found.loss


def _logits(student: Captured, teacher: Captured, taps: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The logits of both sides, in at least float32."""
    y_s, y_t = student.features[taps[0]] if taps else student.output, teacher.output
    if y_s.shape != y_t.shape:
        raise UserError(
            f"the student has {y_s.shape[-1]} classes and the teacher {y_t.shape[-1]}; logit losses need the same ones"
        )
    return at_least_float32(y_s), at_least_float32(y_t)
