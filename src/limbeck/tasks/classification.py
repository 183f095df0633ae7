"""Image classification."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.features.taps import Captured

IGNORED = -100  # cross entropy leaves an image with this label out


def image_index(batch: Tensor | Sequence[Any]) -> Tensor | None:
    """The numbers of a batch's images: its third item ``(n,)``, if it has one as :class:`limbeck.data.Batch` does."""
    third = batch[2] if not isinstance(batch, Tensor) and len(batch) > 2 else None
    return third if isinstance(third, Tensor) and third.dtype == torch.int64 and third.ndim == 1 else None


def teacher_output(batch: Tensor | Sequence[Any]) -> Captured | None:
    """What the teacher computed: a batch's fourth item, if it has one as :class:`limbeck.cache.TaughtBatch` does."""
    fourth = batch[3] if not isinstance(batch, Tensor) and len(batch) > 3 else None
    return fourth if isinstance(fourth, Captured) else None


class Classification(nn.Module):
    """Cross entropy, with top-1 and top-5 accuracy.

    A batch is a sequence whose first item is the images and whose second is the labels ``(n,)`` or class probabilities
    ``(n, k)``, as every ``DataLoader`` over labelled images gives; :class:`limbeck.data.Batch` is one.

    Args:
        student_input: Turns the batch's images into the student's input, for instance
            :class:`limbeck.models.InputTransform`; by default the images are taken as they are.
        teacher_input: The same for the teacher, with the teacher's own size and statistics.
        label_smoothing: Share of the probability that is spread over all classes, 0 to 1.

    Example:
        >>> task = Classification()
        >>> scores = task.score(torch.eye(3), (torch.zeros(3, 1), torch.tensor([0, 1, 1])))
        >>> scores["top1"].tolist()
        [1.0, 1.0, 0.0]
    """

    def __init__(
        self,
        *,
        student_input: nn.Module | None = None,
        teacher_input: nn.Module | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.student_transform = student_input if student_input is not None else nn.Identity()
        self.teacher_transform = teacher_input if teacher_input is not None else nn.Identity()
        self.label_smoothing = label_smoothing
        self._has_looked = False  # at the values of labels

    def student_input(self, batch: Sequence[Any]) -> Tensor:
        """The student's input."""
        return self.student_transform(batch[0])

    def teacher_input(self, batch: Sequence[Any]) -> Tensor:
        """The teacher's input."""
        return self.teacher_transform(batch[0])

    def target(self, batch: Sequence[Any]) -> Tensor:
        """Labels ``(n,)`` or class probabilities ``(n, k)``; UserError when the batch has none."""
        if len(batch) < 2 or batch[1] is None:
            raise UserError(
                "classification needs labels, and the batch has none; use tasks.LabelFree for unlabelled images"
            )
        return batch[1]

    index = staticmethod(image_index)
    teacher_output = staticmethod(teacher_output)

    def loss(self, output: Tensor, batch: Sequence[Any]) -> Tensor:
        """Mean cross entropy of logits ``(n, k)``, in at least float32.

        Raises:
            UserError: If shapes or number formats do not fit, or a label is no number of a logit. The labels' values
                are looked at in each call on a CPU, elsewhere in the first one: to ask a GPU makes a step wait.
        """
        target = self.target(batch)
        logits = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        if logits.ndim != 2 or target.shape not in (logits.shape, logits.shape[:1]):
            raise UserError(f"logits of shape {tuple(logits.shape)} do not fit labels of shape {tuple(target.shape)}")
        if target.is_floating_point() != (target.ndim == 2) or target.dtype == torch.bool:
            raise UserError(
                f"labels are {tuple(target.shape)}, {target.dtype}; expected whole numbers (n,) or probabilities (n, k)"
            )
        if target.ndim == 2:
            return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        target = target.long()
        if target.numel() and (target.device.type == "cpu" or not self._has_looked):
            low, high = torch.stack(target.masked_fill(target == IGNORED, 0).aminmax()).tolist()  # pyright: ignore
            if low < 0 or high >= logits.shape[1]:
                raise UserError(
                    f"labels go from {low} to {high}; expected 0 to {logits.shape[1] - 1}, one for each logit"
                )
            self._has_looked = True
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def score(self, output: Tensor, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Per sample: top-1 and top-5 correctness (0 or 1; top-5 with more than five classes) and cross entropy."""
        target = self.target(batch)
        label = target.argmax(-1) if target.ndim == 2 else target
        logits = output.float()
        scores = {
            "top1": (logits.argmax(-1) == label).float(),
            "loss": F.cross_entropy(logits, target, reduction="none"),
        }
        if logits.shape[-1] > 5:
            scores["top5"] = (logits.topk(5).indices == label[:, None]).any(-1).float()
        return scores
