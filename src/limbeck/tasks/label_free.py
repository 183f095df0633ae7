"""Distillation on images without any labels."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from limbeck.tasks.classification import image_index, teacher_output


class LabelFree(nn.Module):
    """No task loss: the teacher's features, or its logits, are all that the student learns from.

    A batch is a tensor of images or a sequence whose first item is one; anything else in it is ignored. Validation has
    no labels to compare with, so the loop reports the terms' own losses on the validation images.

    Args:
        student_input: Turns images into the student's input; by default they are taken as they are.
        teacher_input: The same for the teacher.
    """

    def __init__(self, *, student_input: nn.Module | None = None, teacher_input: nn.Module | None = None) -> None:
        super().__init__()
        self.student_transform = student_input if student_input is not None else nn.Identity()
        self.teacher_transform = teacher_input if teacher_input is not None else nn.Identity()

    def student_input(self, batch: Tensor | Sequence[Any]) -> Tensor:
        """The student's input."""
        return self.student_transform(_images(batch))

    def teacher_input(self, batch: Tensor | Sequence[Any]) -> Tensor:
        """The teacher's input."""
        return self.teacher_transform(_images(batch))

    def target(self, batch: Tensor | Sequence[Any]) -> None:
        """None: labels are not read even where there are some."""
        del batch

    index = staticmethod(image_index)
    teacher_output = staticmethod(teacher_output)

    def loss(self, output: Tensor, batch: Tensor | Sequence[Any]) -> None:
        """None: there is no task loss."""
        del output, batch

    def score(self, output: Tensor, batch: Tensor | Sequence[Any]) -> dict[str, Tensor]:
        """Nothing can be scored without labels."""
        del output, batch
        return {}


def _images(batch: Tensor | Sequence[Any]) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]
