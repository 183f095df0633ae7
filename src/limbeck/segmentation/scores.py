"""How often each class is taken for each other one, and the figures that follow from it."""

from typing import NamedTuple

import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from limbeck.segmentation.batch import VOID


class Scores(NamedTuple):
    """What a confusion matrix says.

    Attributes:
        iou: Intersection over union of each class; NaN of one that is neither there nor predicted.
        miou: Their mean, without those that are NaN.
        pixel_accuracy: Share of the pixels, without void, whose class is predicted.
        class_accuracy: Mean over the classes that are there of the share of their pixels that is found.
    """

    iou: tuple[float, ...]
    miou: float
    pixel_accuracy: float
    class_accuracy: float

    @property
    def figures(self) -> dict[str, float]:
        """The three that a run is judged by."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "class_accuracy": self.class_accuracy}


def confusion(predicted: Integer[Tensor, "..."], truth: Integer[Tensor, "..."], classes: int) -> Int64[Tensor, "k k"]:
    """Number of pixels by true class (row) and predicted class (column), void left out.

    Args:
        predicted: Class of each pixel.
        truth: The true one, or ``VOID``; of the same shape.
        classes: How many there are, K.

    Example:
        >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), 2).tolist()
        [[1, 1], [0, 0]]
    """
    truth = truth.flatten().long()
    # Void goes into a row of its own, which is dropped: a mask would make a GPU wait.
    row = truth.masked_fill(truth == VOID, classes)
    pairs = row * classes + predicted.flatten().long()
    return torch.bincount(pairs, minlength=(classes + 1) * classes).view(classes + 1, classes)[:classes]


def scores_of(matrix: Int64[Tensor, "k k"]) -> Scores:
    """The figures of a confusion matrix.

    ``IoU_c = TP_c / (TP_c + FP_c + FN_c)``; the mean is over the classes that are there or are predicted.

    References:
        M. Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015, section 3.3.

    Example:
        >>> scores = scores_of(torch.tensor([[3, 1], [0, 4]]))
        >>> [round(value, 3) for value in (*scores.iou, scores.miou, scores.pixel_accuracy)]
        [0.75, 0.8, 0.775, 0.875]
    """
    counts = matrix.double().cpu()
    right, there, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = there + said - right
    iou = right / union  # of an absent class 0 / 0
    recall = (right / there)[there > 0]
    known = iou[union > 0]
    return Scores(
        tuple(iou.tolist()),
        float(known.mean()) if len(known) else 0.0,
        float(right.sum() / counts.sum().clamp_min(1)),
        float(recall.mean()) if len(recall) else 0.0,
    )
