"""Object detection."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.detection.batch import DetectionBatch, Detections, Truth, check_batch, in_corners, learned, truth_of
from limbeck.detection.interface import Detector
from limbeck.detection.precision import average_precision
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured


class Detection(nn.Module):
    """The detector's own losses, and COCO's average precision.

    A batch is a :class:`limbeck.detection.DetectionBatch`. Its images were resized, padded and augmented once, by the
    loader; student and teacher get the same tensor, each normalized by its own statistics. What terms read as target is
    ``(n, m, 5)``: left, top, right, bottom in pixels of the frame, and the class, -1 where a row holds no box.

    Args:
        student: The detector that is trained. It stays where it is, and is not a part of the task.
        student_input: Normalizes the batch's images for the student; by default they are taken as they are.
        teacher_input: The same for the teacher.

    Deviates from: torchvision's detectors, which resize, pad and normalize inside of the model. On several processes
        the losses are those of the images of all of them, which published trainings of these models do not see to. Of
        Faster R-CNN, whose losses are of places drawn at random, as many on each image, they are means over each
        process's own, and so the same only where no image has fewer places than are drawn.
    """

    def __init__(
        self, student: Detector, *, student_input: nn.Module | None = None, teacher_input: nn.Module | None = None
    ) -> None:
        super().__init__()
        self._student = (student,)  # in a tuple: a module of the distiller already, and not of the task
        self.student_transform = student_input if student_input is not None else nn.Identity()
        self.teacher_transform = teacher_input if teacher_input is not None else nn.Identity()

    def student_input(self, batch: Any) -> Tensor:
        """The student's input."""
        return self.student_transform(check_batch(batch).images)

    def teacher_input(self, batch: Any) -> Tensor:
        """The teacher's input."""
        return self.teacher_transform(check_batch(batch).images)

    def target(self, batch: Any) -> Float[Tensor, "n m 5"]:
        """The boxes that are learned, each with its class; see the class."""
        batch = check_batch(batch)
        labels = batch.labels.masked_fill(batch.crowd, -1)
        return torch.cat([batch.boxes, labels[:, :, None].to(batch.boxes.dtype)], -1)

    def index(self, batch: Any) -> Tensor:
        """The images' numbers in the training set."""
        return check_batch(batch).index

    def teacher_output(self, batch: Any) -> Captured | None:
        """None: what a teacher computed is not kept."""
        del batch

    def loss(self, output: Tensor, batch: Any) -> Tensor:
        """The sum of the student's own losses of its output; 0 of no images, which one process may have."""
        batch = check_batch(batch)
        parts = self._student[0].losses(output, learned(batch), frame_of(batch.images))
        return torch.stack(list(parts.values())).sum() if parts else output.sum()

    def score(self, output: Tensor, batch: Any) -> dict[str, Tensor]:
        """Nothing: average precision belongs to a set of images, see :meth:`evaluate`."""
        del output, batch
        return {}

    def evaluate(self, model: nn.Module, batches: Iterable[tuple[Any, bool]]) -> dict[str, float]:
        """COCO's average precision of a model over the batches of all processes.

        Args:
            model: The student, its moving average, or a teacher with its own task; in eval mode.
            batches: Each with whether it is to be counted here, and not on another process.

        Raises:
            UserError: The model is no detector.
        """
        collected = self.collect(model, batches)
        if collected is None:
            return {}
        truth, found = collected
        return average_precision(truth, found, classes=count_classes(truth, found))

    def collect(self, model: nn.Module, batches: Iterable[tuple[Any, bool]]) -> tuple[Truth, Detections] | None:
        """What is there and what a model finds, over the batches of all processes; the same on each of them.

        Args:
            model: As for :meth:`evaluate`.
            batches: As for :meth:`evaluate`.

        Returns:
            Objects and detections in pixels of the files, in the order of the images; None without a batch.

        Raises:
            UserError: The model is no detector.
        """
        if not isinstance(model, Detector):
            raise UserError(f"a {type(model).__name__} is no detector, so its average precision cannot be measured")
        found: list[Tensor] = []
        there: list[Tensor] = []
        seen: list[Tensor] = []
        for given, is_own in batches:
            batch = check_batch(given)
            detected = model.detect(model(self.student_input(batch)), batch.sizes, frame_of(batch.images))
            kept = slice(None) if is_own else slice(0)
            found.append(_found(batch, detected)[kept])
            there.append(_there(truth_of(batch))[kept])
            seen.append(batch.index[kept])
        if not found:
            return None
        detections, objects = _detections(_everywhere(found)), _objects(_everywhere(there))
        return objects._replace(images=collectives.gather_rows(torch.cat(seen)).unique()), detections


def count_classes(truth: Truth, found: Detections) -> int:
    """As many classes as the largest number that occurs in either asks for; at least one."""
    return 1 + int(torch.cat([found.labels, truth.labels, truth.labels.new_zeros(1)]).max())


def frame_of(images: Float[Tensor, "n 3 h w"]) -> tuple[int, int]:
    """Height and width of the frame that a batch's images are in."""
    return images.shape[2], images.shape[3]


def _found(batch: DetectionBatch, detected: list[dict[str, Tensor]]) -> Float[Tensor, "k 7"]:
    """Rows of image, box in pixels of the file, score and class."""
    rows = [
        torch.column_stack(
            [
                image.expand(len(one["scores"])),
                one["boxes"].double() / in_corners(scale[None]),
                one["scores"],
                one["labels"],
            ]
        )
        for image, scale, one in zip(batch.index, batch.scales, detected, strict=True)
    ]
    return torch.cat(rows)


def _there(truth: Truth) -> Float[Tensor, "k 8"]:
    """Rows of image, box, class, crowd and area."""
    return torch.column_stack([truth.image, truth.boxes.double(), truth.labels, truth.crowd, truth.areas])


def _everywhere(rows: list[Tensor]) -> Float[Tensor, "k columns"]:
    """The rows of all batches and processes, in the order of their images, whoever computed them."""
    together = collectives.gather_rows(torch.cat(rows))
    return together[torch.argsort(together[:, 0], stable=True)]


def _detections(rows: Float[Tensor, "k 7"]) -> Detections:
    return Detections(image=rows[:, 0].long(), boxes=rows[:, 1:5], scores=rows[:, 5], labels=rows[:, 6].long())


def _objects(rows: Float[Tensor, "k 8"]) -> Truth:
    image = rows[:, 0].long()
    return Truth(
        images=image.unique(),
        image=image,
        boxes=rows[:, 1:5],
        labels=rows[:, 5].long(),
        crowd=rows[:, 6] > 0,
        areas=rows[:, 7],
    )
