"""Average precision: equal to pycocotools on the same detections, and right where it can be known by hand."""

import contextlib
import io

import pytest
import torch
from torch import Tensor

from limbeck.detection import Detections, Truth, average_precision, measure_precision
from limbeck.detection.precision import NAMES, dataset, rows
from limbeck.errors import UserError


def boxes_of(count: int, random: torch.Generator, *, largest: float = 150.0) -> Tensor:
    corner = 300 * torch.rand(count, 2, generator=random)
    return torch.cat([corner, corner + 1 + largest * torch.rand(count, 2, generator=random)], 1).double()


def planted(images: int, seed: int, *, objects: int = 6, classes: int = 4) -> tuple[Truth, Detections]:
    """Objects of all sizes with crowds among them; detections near some of them, and some anywhere."""
    random = torch.Generator().manual_seed(seed)
    count = images * objects
    image = torch.randint(images - 1, (count,), generator=random)  # the last image has none
    truth = Truth(
        images=torch.arange(images),
        image=image,
        boxes=boxes_of(count, random),
        labels=torch.randint(classes, (count,), generator=random),
        crowd=torch.rand(count, generator=random) < 0.1,
        areas=torch.zeros(count).double(),
    )
    sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
    truth = truth._replace(areas=sides.prod(1) * (0.5 + 0.5 * torch.rand(count, generator=random)))
    near = truth.boxes + 12 * torch.randn(count, 4, generator=random)
    near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
    found = Detections(
        image=torch.cat([image, torch.randint(images, (count,), generator=random)]),
        boxes=torch.cat([near, boxes_of(count, random)]),
        scores=torch.rand(2 * count, generator=random),
        labels=torch.cat([truth.labels, torch.randint(classes, (count,), generator=random)]),
    )
    return truth, found


def by_pycocotools(truth: Truth, found: Detections, classes: int) -> list[float]:
    """The first six figures of the reference implementation."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = dataset(truth, classes)
        known.createIndex()
        evaluator = cocoeval.COCOeval(known, known.loadRes(rows(found)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats[:6]]


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed: int):
    truth, found = planted(12, seed)
    ours = average_precision(truth, found, classes=4)
    assert list(ours) == list(NAMES)
    assert list(ours.values()) == pytest.approx(by_pycocotools(truth, found, 4), abs=1e-6)
    assert 0.02 < ours["ap"] < 0.9  # neither trivial


def test_equals_pycocotools_with_more_than_a_hundred_detections_and_equal_scores():
    truth, found = planted(3, 0, objects=80)
    found = found._replace(scores=(found.scores * 10).round() / 10)
    ours = average_precision(truth, found, classes=4)
    assert list(ours.values()) == pytest.approx(by_pycocotools(truth, found, 4), abs=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_curves_and_classes_belong_to_the_figures(seed: int):
    """The mean over the recalls of a curve is the figure at its threshold, that over the classes the whole."""
    truth, found = planted(12, seed)
    truth = truth._replace(crowd=truth.crowd | (truth.labels == 2))  # a class of crowds alone is none
    measured = measure_precision(truth, found, classes=5)
    assert measured.figures == average_precision(truth, found, classes=5)
    for iou, name in (("0.50", "ap50"), ("0.75", "ap75")):
        curve = measured.curves[iou]
        assert len(curve) == 101
        assert sum(curve) / 101 == pytest.approx(measured.figures[name], abs=1e-6)
        assert curve == sorted(curve, reverse=True)
    assert [value is None for value in measured.classes] == [False, False, True, False, True]
    known = [value for value in measured.classes if value is not None]
    assert sum(known) / 3 == pytest.approx(measured.figures["ap"], abs=1e-6)


def test_each_class_alone_has_its_own_figure():
    truth, found = planted(12, 1)
    classes = measure_precision(truth, found, classes=4).classes
    for number, value in enumerate(classes):
        objects, boxes = truth.labels == number, found.labels == number
        alone = Truth(truth.images, *(column[objects] for column in truth[1:]))
        ours = average_precision(alone, Detections(*(column[boxes] for column in found)), classes=4)
        assert value == pytest.approx(ours["ap"], abs=1e-6)


def test_nothing_found_has_curves_of_zeros():
    truth, found = planted(3, 0)
    measured = measure_precision(truth, Detections(*(column[:0] for column in found)), classes=5)
    assert set(measured.figures.values()) == {0.0}
    assert measured.curves == {"0.50": [0.0] * 101, "0.75": [0.0] * 101}
    assert measured.classes[4] is None


def test_detections_of_the_objects_themselves_are_perfect():
    truth, _ = planted(5, 1)
    truth = truth._replace(crowd=torch.zeros_like(truth.crowd))
    found = Detections(truth.image, truth.boxes, torch.ones(len(truth.image)), truth.labels)
    assert average_precision(truth, found, classes=4) == pytest.approx(dict.fromkeys(NAMES, 1.0))


def one(left: float, *, score: float = 0.9, label: int = 0, image: int = 0) -> Detections:
    box = torch.tensor([[left, 0.0, left + 50.0, 50.0]])
    return Detections(torch.tensor([image]), box, torch.tensor([score]), torch.tensor([label]))


def object_of(crowd: bool = False) -> Truth:
    return Truth(
        images=torch.tensor([0]),
        image=torch.tensor([0]),
        boxes=torch.tensor([[0.0, 0.0, 50.0, 50.0]]),
        labels=torch.tensor([0]),
        crowd=torch.tensor([crowd]),
        areas=torch.tensor([2500.0]),
    )


def test_overlap_decides_at_which_thresholds_a_detection_is_right():
    # Shifted by 10 of 50: 40 / 60 = 0.67 in common, above the thresholds 0.50, 0.55, 0.60, 0.65.
    figures = average_precision(object_of(), one(10), classes=1)
    assert figures == pytest.approx({"ap": 0.4, "ap50": 1.0, "ap75": 0.0, "ap_medium": 0.4})


def test_another_class_or_image_is_wrong():
    assert average_precision(object_of(), one(0, label=1), classes=2)["ap"] == 0.0
    elsewhere = object_of()._replace(images=torch.tensor([0, 1]))
    assert average_precision(elsewhere, one(0, image=1), classes=1)["ap"] == 0.0


def test_a_second_detection_of_one_object_is_wrong_and_lower_scores_come_later():
    both = Detections(*(torch.cat(pair) for pair in zip(one(0, score=0.5), one(1, score=0.9), strict=True)))
    # The one with the higher score takes the object (49 / 51 in common); the other costs nothing behind full recall.
    assert average_precision(object_of(), both, classes=1)["ap"] == pytest.approx(1.0)


def test_without_detections_it_is_zero_and_without_objects_nothing():
    none = Detections(*(column[:0] for column in one(0)))
    assert average_precision(object_of(), none, classes=1) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ap_medium": 0.0}
    empty = Truth(torch.tensor([0]), *(column[:0] for column in object_of()[1:]))
    assert average_precision(empty, one(0), classes=1) == {}


def test_a_detection_in_a_crowd_is_not_counted_as_wrong():
    truth = Truth(*(torch.cat(pair) for pair in zip(object_of(), object_of(crowd=True), strict=True)))
    truth = truth._replace(
        images=torch.tensor([0]), boxes=torch.tensor([[0.0, 0.0, 50.0, 50.0], [100.0, 0.0, 300.0, 50.0]])
    )
    both = Detections(*(torch.cat(pair) for pair in zip(one(120, score=0.95), one(0, score=0.9), strict=True)))
    assert average_precision(truth, both, classes=1)["ap"] == pytest.approx(1.0)
    # Without the crowd the same detection is the surest of two, and halves the precision.
    alone = Truth(truth.images, *(column[:1] for column in truth[1:]))
    assert average_precision(alone, both, classes=1)["ap"] == pytest.approx(0.5)


def test_a_missing_evaluator_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("limbeck.detection.precision.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs the package faster-coco-eval: pip install "limbeck\[detection\]"'):
        average_precision(object_of(), one(0), classes=1)
