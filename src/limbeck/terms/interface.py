"""What a term is, and what its loss may be."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from limbeck.features.taps import Captured

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
