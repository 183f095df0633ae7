"""The term of relations and maps: a loss between features of any two widths."""

import torch
from torch import Tensor

from limbeck.distributed import collectives
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32
from limbeck.terms.interface import Loss


class RelationTerm:
    """Compare what is between the samples of a batch, or maps of any width: a loss that needs no projector.

    With ``z_s = pool(student)`` and ``z_t = pool(teacher)`` it is ``loss(z_s, z_t)`` over the rows of all processes;
    the widths may differ, as the loss takes them. For losses of relations
    (:func:`limbeck.losses.similarity_preserving`) and of maps (:func:`limbeck.losses.attention_transfer`, with
    :func:`limbeck.features.pooling.unpooled`).

    Args:
        student_tap: Tap of the student, see :class:`limbeck.features.taps.Taps`.
        teacher_tap: Tap of the teacher.
        loss: Function of both features, student first.
        student_pool: From maps or tokens to what the loss takes, see :mod:`limbeck.features.pooling`.
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
            z_s, z_t = (collectives.gather_rows(at_least_float32(z)) for z in (z_s, z_t))
            return self.loss(z_s, z_t)
