"""The terms of the logits, without and with labels."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck import losses
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32
from limbeck.terms.feature import unwrapped
from limbeck.terms.interface import LabelledLoss, Loss

# Each row's share of these depends on that row alone.
MEAN_OVER_ROWS: frozenset[object] = frozenset(
    {losses.kl_divergence, losses.standardized_kl, losses.decoupled_kl, losses.normalized_kl}
)


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
        return _compare(self, student, teacher)


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
        return _compare(self, student, teacher, student.target)


def _compare(
    term: LogitTerm | LabelledLogitTerm, student: Captured, teacher: Captured, *labels: Tensor
) -> Float[Tensor, ""]:
    """The loss of the rows of all processes, which may be none on some; the term reads how often both sides agree.

    A loss that is a mean over rows is computed by each process for its own, and two numbers cross. Otherwise every
    process gets the rows of all, and computes all of it.
    """
    y_s, y_t = student.features[term.student_taps[0]] if term.student_taps else student.output, teacher.output
    if y_s.shape != y_t.shape:
        raise UserError(
            f"the student has {y_s.shape[-1]} classes and the teacher {y_t.shape[-1]}; logit losses need the same ones"
        )
    y_s, y_t = at_least_float32(y_s), at_least_float32(y_t)
    by_rows = False
    if collectives.world_size() > 1:
        known = unwrapped(term.loss) in MEAN_OVER_ROWS
        by_rows = term.mean_over_rows if term.mean_over_rows is not None else known
        if not by_rows:
            y_s, y_t, *labels = (collectives.gather_rows(side) for side in (y_s, y_t, *labels))  # pyright: ignore[reportAssignmentType]
    loss: Callable[..., Tensor] = term.loss
    value = mean_of_rows(loss, y_s, y_t, *labels) if by_rows else loss(y_s, y_t, *labels)
    agreement = (y_s.detach().argmax(-1) == y_t.argmax(-1)).to(y_s.dtype).mean()
    if by_rows:
        value, agreement = collectives.global_mean(torch.stack([value, agreement]), y_s.shape[:-1].numel()).unbind()
    term.readings = {"agreement": agreement.detach()}
    return value


def mean_of_rows(loss: Callable[..., Tensor], z_s: Tensor, *others: Tensor) -> Float[Tensor, ""]:
    """A loss that is a mean over the rows of this process, for :func:`limbeck.distributed.collectives.global_mean`.

    Without rows, as one of several processes may be, it is the sum over none: 0, which reaches every parameter, as DDP
    wants it.
    """
    return loss(z_s, *others) if z_s.numel() or collectives.world_size() == 1 else z_s.sum()
