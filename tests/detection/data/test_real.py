"""Real annotations: COCO's own file and Tiny ImageNet's boxes, where they are unpacked in ``~/.cache/limbeck``."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.detection import Detections, Truth, average_precision, truth_of
from limbeck.detection.data import DetectionSpec, open_detection
from limbeck.detection.precision import NAMES

CACHE = Path.home() / ".cache" / "limbeck"
COCO128, TINY = CACHE / "coco128", CACHE / "tiny-imagenet-100"


@pytest.fixture
def coco128() -> Path:
    if not (COCO128 / "annotations").is_dir():
        pytest.skip(f"{COCO128} is not there: coco128.tar has to be unpacked")
    return COCO128


def test_coco128_is_read_as_a_folder_without_a_fault(coco128: Path):
    data = open_detection(DetectionSpec(source=str(coco128), size=416, workers=0))
    train, val = data.part("train"), data.part("val")
    assert (len(train), len(val)) == (128, 128)
    assert (len(train.boxes), len(val.boxes)) == (929, 898)
    assert len(data.classes) == 80
    for batch in data.train_loader(batch_size=32, seed=0):
        assert batch.images.shape == (32, 3, 416, 416)
        there = batch.labels >= 0
        assert batch.boxes[there].min() >= 0
        assert batch.boxes[there].max() <= 416
        assert (batch.boxes[there][:, 2:] - batch.boxes[there][:, :2]).min() >= 1


def test_average_precision_is_that_of_pycocotools_on_the_file_itself(coco128: Path):
    """Truth that went through the loader, crowds and areas included, scores like the file that it is from."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    data = open_detection(DetectionSpec(source=str(coco128), size=416, workers=0))
    parts = [truth_of(batch) for batch in data.val_loader(batch_size=32)]
    truth = Truth(*(torch.cat(column) for column in zip(*parts, strict=True)))
    torch.manual_seed(0)
    found = Detections(
        image=truth.image,
        boxes=truth.boxes + 4 * torch.randn(len(truth.boxes), 4),
        scores=torch.rand(len(truth.boxes)),
        labels=torch.where(torch.rand(len(truth.labels)) < 0.8, truth.labels, (truth.labels + 1) % 80),
    )
    found = found._replace(
        boxes=torch.cat([found.boxes[:, :2], torch.maximum(found.boxes[:, 2:], found.boxes[:, :2] + 1)], 1)
    )
    ours = average_precision(truth, found, classes=80)
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO(str(coco128 / "annotations" / "instances_val2017.json"))
        numbers = {image["file_name"]: image["id"] for image in known.dataset["images"]}
        categories = sorted(category["id"] for category in known.dataset["categories"])
        names = data.part("val").names
        corner, far = found.boxes[:, :2].double().numpy(), found.boxes[:, 2:].double().numpy()
        rows = np.column_stack(
            [
                [numbers[names[image]] for image in found.image.tolist()],
                corner,
                far - corner,
                found.scores.double().numpy(),
                [categories[label] for label in found.labels.tolist()],
            ]
        )
        evaluator = cocoeval.COCOeval(known, known.loadRes(rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert list(ours) == list(NAMES)
    assert list(ours.values()) == pytest.approx([float(value) for value in evaluator.stats[:6]], abs=1e-6)
    assert 0.1 < ours["ap"] < 0.9


@pytest.mark.long  # it reads a JSON file of 100,000 images
def test_the_boxes_of_tiny_imagenet_are_read_for_chosen_classes():
    if not (TINY / "boxes-train.json").is_file():
        pytest.skip(f"{TINY} is not there: tiny-imagenet-100.tar has to be unpacked")
    classes = ("n01443537", "n02056570", "n02504458")
    data = open_detection(DetectionSpec(source=str(TINY), classes=classes, workers=0, on_bad="skip"))
    assert (data.size, data.classes) == (64, classes)
    assert (data.train_count, data.val_count) == (1500, 150)
    assert data.part("train").counts.tolist() == [1] * 1500
    batch = next(iter(data.val_loader(batch_size=8)))
    assert batch.images.shape == (8, 3, 64, 64)
