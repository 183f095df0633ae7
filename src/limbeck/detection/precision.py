"""Average precision as COCO defines it, by the C++ evaluator of faster-coco-eval."""

import contextlib
import importlib.util
import io
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from limbeck.detection.batch import Detections, Truth
from limbeck.errors import UserError

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""COCO's first six figures: over IoU 0.50 to 0.95, at 0.50 and 0.75, and by the area of the objects."""

DRAWN = {"0.50": 0, "0.75": 5}
"""IoU thresholds whose curves are kept, and their places among COCO's ten."""

RECALLS = 101
"""Recalls at which the precision is read: 0, 0.01, ..., 1."""


def require_evaluator() -> None:
    """Refuse to begin what ends in a score that cannot be had.

    Raises:
        UserError: The package is missing.
    """
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError('average precision needs the package faster-coco-eval: pip install "limbeck[detection]"')


class Precision(NamedTuple):
    """What the evaluator says of one set of detections; all from 0 to 1.

    Attributes:
        figures: COCO's figures by name, see :func:`average_precision`.
        curves: For each IoU threshold of :data:`DRAWN` the precision at the recalls of :data:`RECALLS`, a mean over the
            classes that occur. Beyond the largest recall that was reached it is 0.
        classes: The average precision of each class; None where it does not occur.
    """

    figures: dict[str, float]
    curves: dict[str, list[float]]
    classes: list[float | None]


def average_precision(truth: Truth, found: Detections, *, classes: int) -> dict[str, float]:
    """COCO's average precision over all, and by the size of the objects.

    A detection is right at an IoU threshold if it overlaps that much with an object of its class that no detection of
    higher score has taken; the precision is averaged over 101 recalls, over the classes that occur, and over the
    thresholds 0.50, 0.55, ..., 0.95. At most 100 detections of an image count. Sizes are below 32^2, to 96^2, and
    above, in pixels of the file.

    Args:
        truth: Every object of every image that was looked at.
        found: Every detection.
        classes: How many classes there are.

    Returns:
        Name to value, 0 to 1; ``ap_small``, ``ap_medium`` and ``ap_large`` are left out where there is no such object.
        Empty where there is no object at all.

    Raises:
        UserError: The evaluator is not installed.

    Deviates from: nothing; equal to pycocotools.

    References:
        T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#detection-eval.
    """
    return measure_precision(truth, found, classes=classes).figures


def measure_precision(truth: Truth, found: Detections, *, classes: int) -> Precision:
    """The same figures as :func:`average_precision`, with the curves of precision over recall and each class by itself.

    Args:
        truth: Every object of every image that was looked at.
        found: Every detection.
        classes: How many classes there are.

    Raises:
        UserError: The evaluator is not installed.
    """
    require_evaluator()
    from faster_coco_eval import COCO, COCOeval_faster  # pyright: ignore[reportMissingImports]

    if not len(truth.image):
        return Precision({}, {}, [None] * classes)
    if not len(found.image):
        return _nothing_found(truth, classes)
    with contextlib.redirect_stdout(io.StringIO()):  # both print what they do
        known: Any = COCO(dataset(truth, classes))
        evaluator: Any = COCOeval_faster(known, known.loadRes(rows(found)), "bbox", print_function=lambda *_: None)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    figures = [float(value) for value in evaluator.stats[: len(NAMES)]]
    # Thresholds, recalls, classes; of objects of all sizes and 100 detections an image. Below 0: no such object.
    precision = np.asarray(evaluator.eval["precision"], np.float64)[:, :, :, 0, -1]
    occurs = precision.max((0, 1)) >= 0
    return Precision(
        figures={name: value for name, value in zip(NAMES, figures, strict=True) if value >= 0},
        curves={name: precision[place][:, occurs].mean(1).tolist() for name, place in DRAWN.items()},
        classes=[
            float(precision[:, :, number].mean()) if there else None for number, there in enumerate(occurs.tolist())
        ],
    )


def _nothing_found(truth: Truth, classes: int) -> Precision:
    there = set(truth.labels[~truth.crowd].tolist())
    return Precision(
        figures={name: 0.0 for name, value in zip(NAMES, _there(truth), strict=True) if value},
        curves={name: [0.0] * RECALLS for name in DRAWN},
        classes=[0.0 if number in there else None for number in range(classes)],
    )


def dataset(truth: Truth, classes: int) -> dict[str, Any]:
    """The objects as COCO's JSON has them."""
    boxes = in_numpy(truth.boxes)
    corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    columns = (truth.image.tolist(), truth.labels.tolist(), truth.crowd.tolist(), in_numpy(truth.areas).tolist())
    return {
        "info": {},
        "images": [{"id": image} for image in truth.images.tolist()],
        "categories": [{"id": number, "name": str(number)} for number in range(classes)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": label, "iscrowd": int(crowd), "area": area, "bbox": box}
            for number, (image, label, crowd, area, box) in enumerate(
                zip(*columns, np.concatenate([corner, extent], 1).tolist(), strict=True), start=1
            )
        ],
    }


def rows(found: Detections) -> np.ndarray:
    """The detections as rows of image, left, top, width, height, score and class."""
    boxes = in_numpy(found.boxes)
    return np.column_stack(
        [
            in_numpy(found.image),
            boxes[:, :2],
            boxes[:, 2:] - boxes[:, :2],
            in_numpy(found.scores),
            in_numpy(found.labels),
        ]
    )


def in_numpy(values: Tensor) -> np.ndarray:
    """A tensor as doubles of NumPy."""
    return values.detach().cpu().double().numpy()


def _there(truth: Truth) -> tuple[bool, ...]:
    """Which of the figures have an object that they are about."""
    area, counted = in_numpy(truth.areas), ~truth.crowd.cpu().numpy()
    bounds = ((0, 32**2), (32**2, 96**2), (96**2, 1e10))
    sizes = tuple(bool(((area >= low) & (area <= high) & counted).any()) for low, high in bounds)
    return (*[bool(counted.any())] * 3, *sizes)
