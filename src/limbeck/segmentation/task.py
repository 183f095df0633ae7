"""Semantic segmentation."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from limbeck.distributed import collectives
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32
from limbeck.segmentation.batch import VOID, SegmentationBatch, check_batch
from limbeck.segmentation.scores import confusion, scores_of


class Segmentation(nn.Module):
    """Cross entropy of each pixel with void left out, and the mean intersection over union.

    A batch is a :class:`limbeck.segmentation.SegmentationBatch`; a model's output is ``(n, k, h', w')`` at any stride.
    Logits are brought to the size of the masks (bilinear). Student and teacher get the same frame, each normalized by
    its own statistics.

    Args:
        student_input: Normalizes the batch's images for the student; by default they are taken as they are.
        teacher_input: The same for the teacher.

    Example:
        >>> images, masks = torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
        >>> batch = SegmentationBatch(images, masks, (2, 2), torch.tensor([0]))
        >>> round(float(Segmentation().loss(torch.zeros(1, 2, 1, 1), batch)), 4)
        0.6931
    """

    def __init__(self, *, student_input: nn.Module | None = None, teacher_input: nn.Module | None = None) -> None:
        super().__init__()
        self.student_transform = student_input if student_input is not None else nn.Identity()
        self.teacher_transform = teacher_input if teacher_input is not None else nn.Identity()

    def student_input(self, batch: Any) -> Tensor:
        """The student's input."""
        return self.student_transform(check_batch(batch).images)

    def teacher_input(self, batch: Any) -> Tensor:
        """The teacher's input."""
        return self.teacher_transform(check_batch(batch).images)

    def target(self, batch: Any) -> Tensor:
        """The masks ``(n, h, w)``, ``VOID`` where there is no class."""
        return check_batch(batch).masks

    def index(self, batch: Any) -> Tensor:
        """The images' numbers in the training set."""
        return check_batch(batch).index

    def teacher_output(self, batch: Any) -> Captured | None:
        """None: what a teacher computed is not kept."""
        del batch

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        """Mean cross entropy over the pixels that have a class, of all processes."""
        masks = check_batch(batch).masks
        logits = resized(output, (masks.shape[1], masks.shape[2]))
        with torch.autocast(logits.device.type, enabled=False):
            total = F.cross_entropy(at_least_float32(logits), masks.long(), ignore_index=VOID, reduction="sum")
        count = (masks != VOID).sum()
        mean = total / count.clamp_min(1)
        return collectives.share_by_objects({"task": mean}, count, len(output))["task"]

    def score(self, output: Tensor, batch: Any) -> dict[str, Tensor]:
        """Nothing: intersection over union belongs to a set of images, see :meth:`evaluate`."""
        del output, batch
        return {}

    def evaluate(self, model: nn.Module, batches: Iterable[tuple[Any, bool]]) -> dict[str, float]:
        """Mean IoU, pixel accuracy and class accuracy of a model over the batches of all processes.

        Args:
            model: The student, its moving average, or a teacher with its own task; in eval mode.
            batches: Each with whether it is to be counted here, and not on another process.
        """
        matrix = self.collect(model, batches)
        return {} if matrix is None else scores_of(matrix).figures

    def collect(self, model: nn.Module, batches: Iterable[tuple[Any, bool]]) -> Int64[Tensor, "k k"] | None:
        """The confusion matrix over the batches of all processes, at the masks' own size; None without a batch."""
        matrix: Tensor | None = None
        for given, is_own in batches:
            batch = check_batch(given)
            output = model(self.student_input(batch))
            found = confusion(predicted_classes(output, batch), batch.masks, output.shape[1])
            found = found if is_own else torch.zeros_like(found)
            matrix = found if matrix is None else matrix + found
        return None if matrix is None else collectives.sum_across(matrix)


def resized(logits: Float[Tensor, "n k h w"], size: tuple[int, int]) -> Float[Tensor, "n k a b"]:
    """Logits at another size, bilinear with the pixels' centers kept; as they are where the size fits."""
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def predicted_classes(output: Float[Tensor, "n k h w"], batch: SegmentationBatch) -> Int64[Tensor, "n a b"]:
    """The class of each pixel of the masks: logits brought to the frame, what is no image cut off, then to the masks.

    Args:
        output: Of a model, at any stride.
        batch: What it is of.
    """
    height, width = batch.size
    logits = resized(at_least_float32(output), (batch.images.shape[2], batch.images.shape[3]))[:, :, :height, :width]
    return resized(logits, (batch.masks.shape[1], batch.masks.shape[2])).argmax(1)
