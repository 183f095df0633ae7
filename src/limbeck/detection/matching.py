"""Which object each detection is right about, so that single images can be looked at."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

from limbeck.detection.batch import Detections, Truth

ALONE = -1
"""What stands for no object."""


def match(truth: Truth, found: Detections, *, iou: float = 0.5) -> Int64[Tensor, " k"]:
    """The object that each detection is right about, at one IoU threshold.

    In the order of their scores detections take, in their image, the object of their class that they overlap most and
    that is still free, if they overlap it at least so much. Crowds are no objects.

    Args:
        truth: Every object.
        found: Every detection.
        iou: Least overlap.

    Returns:
        For each detection the row of its object in ``truth``, or -1.

    References:
        T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, whose rule this is for one threshold.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> truth = Truth(torch.tensor([0]), torch.tensor([0]), boxes, torch.tensor([1]), torch.zeros(1).bool(), None)
        >>> found = Detections(
        ...     torch.zeros(2).long(), boxes.repeat(2, 1), torch.tensor([0.3, 0.9]), torch.ones(2).long()
        ... )
        >>> match(truth, found)
        tensor([-1,  0])
    """
    taken = torch.full_like(found.labels, ALONE)
    objects = _by_image(truth.image)
    counted = ~truth.crowd
    for image, rows in _by_image(found.image).items():
        there = objects.get(image)
        if there is None:
            continue
        overlap = box_iou(found.boxes[rows].double(), truth.boxes[there].double())
        alike = found.labels[rows][:, None] == truth.labels[there][None]
        overlap = torch.where(alike & counted[there] & (overlap >= iou), overlap, 0.0)
        for row, place in _taken(overlap, found.scores[rows]):
            taken[rows[row]] = there[place]
    return taken


def best_cut(truth: Truth, found: Detections, taken: Int64[Tensor, " k"]) -> float:
    """The score from which on detections are worth showing: where their F1 is greatest.

    Args:
        truth: Every object.
        found: Every detection.
        taken: What :func:`match` says of them.

    Returns:
        The lowest score that is kept; 1 where no detection is right.
    """
    right = taken != ALONE
    if not right.any():
        return 1.0
    order = found.scores.argsort(descending=True, stable=True)
    hits = right[order].double().cumsum(0)
    kept = torch.arange(1, len(order) + 1, device=hits.device)
    f1 = 2 * hits / (kept + int((~truth.crowd).sum()))
    return float(found.scores[order[f1.argmax()]])


def _taken(overlap: Float[Tensor, "k m"], scores: Float[Tensor, " k"]) -> Iterator[tuple[int, int]]:
    """Pairs of detection and object, the surest detection first."""
    overlap = overlap.clone()
    for row in scores.argsort(descending=True, stable=True).tolist():
        value, place = overlap[row].max(0)
        if value > 0:
            overlap[:, place] = 0.0
            yield row, int(place)


def _by_image(image: Int64[Tensor, " k"]) -> dict[int, Int64[Tensor, " rows"]]:
    """The rows of each image."""
    order = image.argsort(stable=True)
    numbers, counts = image[order].unique_consecutive(return_counts=True)
    return dict(zip(numbers.tolist(), order.split(counts.tolist()), strict=True))
