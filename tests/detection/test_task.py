"""The detection task: the detector's own loss, targets for terms, and average precision over sets and processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spawned
from detection import boxes
from detection import task_worker as detection_worker
from limbeck import Distiller, FeatureTerm, losses, norms, projectors
from limbeck.detection import Detection, DetectionBatch, truth_of
from limbeck.detection.batch import learned
from limbeck.detection.models import build_detector, trunk_only
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.tasks import Classification
from limbeck.training.evaluation import evaluate
from limbeck.training.fit import fit

CPU = torch.device("cpu")


def detector(name: str = "fcos-32/cifar/resnet8", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_detector(name, num_classes=2).module


@pytest.mark.parametrize("name", ["fcos-32/cifar/resnet8", "retinanet-32/cifar/resnet8", "fasterrcnn-32/cifar/resnet8"])
def test_the_loss_is_the_sum_of_the_detectors_own(name: str):
    model, batch = detector(name), boxes.batch(4)
    task = Detection(model)
    output = model(batch.images)
    torch.manual_seed(1)
    expected = sum(model.losses(output, learned(batch), (64, 64)).values())
    torch.manual_seed(1)
    assert torch.equal(task.loss(output, batch), expected)


def test_the_target_holds_the_boxes_that_are_learned():
    batch = boxes.batch(3)
    crowd = batch.crowd.clone()
    crowd[0, 1] = True
    target = Detection(detector()).target(batch._replace(crowd=crowd))
    assert target.shape == (3, 2, 5)
    assert torch.equal(target[:, :, :4], batch.boxes)
    assert target[0, 1, 4] == -1  # a crowd
    assert target[2, 1, 4] == -1  # no box
    assert torch.equal(target[1, :, 4].long(), batch.labels[1])
    assert [len(one["labels"]) for one in learned(batch._replace(crowd=crowd))] == [1, 2, 1]


def test_boxes_that_are_learned_keep_their_order_and_their_labels():
    batch = boxes.batch(3, boxes=3)
    crowd = batch.crowd.clone()
    crowd[0, 1] = True
    first = learned(batch._replace(crowd=crowd))[0]
    assert torch.equal(first["boxes"], batch.boxes[0, [0, 2]])
    assert torch.equal(first["labels"], batch.labels[0, [0, 2]])


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("name", ["fcos-32/cifar/resnet8", "retinanet-32/cifar/resnet8", "fasterrcnn-32/cifar/resnet8"])
def test_a_batch_in_which_no_image_has_a_box_has_a_loss_and_a_gradient(name: str, rows: int):
    model, batch = detector(name), boxes.batch(2)
    batch = batch._replace(
        boxes=torch.zeros(2, rows, 4),
        labels=torch.full((2, rows), -1),
        crowd=torch.zeros(2, rows, dtype=torch.bool),
        areas=torch.zeros(2, rows),
    )
    loss = Detection(model).loss(model(batch.images), batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert len(truth_of(batch).labels) == 0


class Told(nn.Module):
    """A detector that finds what it was told, whatever the images are."""

    levels = stages = ()
    two_stage, classes, divisor = False, 0, 1

    def __init__(self, batch: DetectionBatch, shift: float = 0.0) -> None:
        super().__init__()
        self.answers = {
            int(index): (found + shift, label)
            for index, found, label in zip(batch.index, batch.boxes, batch.labels, strict=True)
        }
        self.asked: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None, None]

    def losses(self, output: torch.Tensor, targets: list[Any], frame: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {}

    def detect(
        self, output: torch.Tensor, sizes: torch.Tensor, frame: tuple[int, int]
    ) -> list[dict[str, torch.Tensor]]:
        rows = [self.answers[len(self.asked) + place] for place in range(len(output))]
        self.asked += range(len(output))
        return [
            {"boxes": found[label >= 0], "labels": label[label >= 0], "scores": torch.ones(int((label >= 0).sum()))}
            for found, label in rows
        ]


def test_finding_everything_is_perfect_in_pixels_of_the_file():
    batch = boxes.batch(5)
    parts = [type(batch)(*(value[a:b] for value in batch)) for a, b in ((0, 2), (2, 5))]
    figures = evaluate(Told(batch), Detection(detector()), parts, CPU)
    assert figures == {"ap": 1.0, "ap50": 1.0, "ap75": 1.0, "ap_small": 1.0}
    # An image that was enlarged by two: what is found in the frame is half as large in the file, and so is the truth.
    scaled = [part._replace(scales=torch.full((len(part.index), 2), 2.0)) for part in parts]
    assert evaluate(Told(batch), Detection(detector()), scaled, CPU)["ap"] == 1.0
    assert evaluate(Told(batch, shift=8.0), Detection(detector()), parts, CPU)["ap"] < 0.3


@pytest.mark.long  # test_runs.py has a detector that learns, and a teacher that keeps its bytes
def test_a_small_detector_learns_bright_rectangles_and_the_teacher_keeps_its_bytes():
    """The complete path: a student with a dense feature term learns; its average precision rises from nothing."""
    student, teacher = detector(), detector("fcos-32/cifar/resnet20", seed=1)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    term = FeatureTerm(
        student.levels[0].tap,
        teacher.levels[0].tap,
        projector=projectors.linear(32, 32),
        student_norm=norms.BatchNorm(32),
        teacher_norm=norms.BatchNorm(32),
        correlation_loss=losses.log_correlation,
        student_pool=pooling.spatial_positions,
        teacher_pool=pooling.spatial_positions,
    )
    distiller = Distiller(
        student, trunk_only(teacher), Detection(student), terms={"feature": term}, weights={"feature": 0.1}
    )
    train = [boxes.batch(8, seed=seed) for seed in range(4)]
    val = [boxes.batch(8, seed=9)]
    untrained = evaluate(student, distiller.task, val, CPU)
    optimizer = torch.optim.AdamW(distiller.trainable_parameters().values(), lr=3e-3)
    result = fit(distiller, Repeated(train), val, epochs=12, optimizer=optimizer, cpu=True)
    assert untrained["ap50"] < 0.1
    assert result.last["ap50"] > 0.5
    assert result.best["ap"] >= result.last["ap"]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert term.form_used.value == "moments"


class Repeated:
    """A loader that gives the same batches in every epoch."""

    def __init__(self, batches: list[DetectionBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        del epoch

    def shard(self, rank: int, world_size: int) -> "Repeated":
        return Repeated([type(batch)(*(value[rank::world_size] for value in batch)) for batch in self.batches])


def test_other_batches_and_models_are_refused():
    task = Detection(detector())
    with pytest.raises(UserError, match=r"detection reads limbeck\.detection\.DetectionBatch, got a tuple"):
        task.student_input((torch.zeros(1, 3, 8, 8), torch.zeros(1)))
    with pytest.raises(UserError, match="a Linear is no detector"):
        evaluate(nn.Linear(2, 2), task, [boxes.batch(1)], CPU)
    assert evaluate(detector(), task, [], CPU) == {}
    with pytest.raises(UserError, match="labels"):
        Classification().loss(torch.zeros(2, 3), (torch.zeros(2, 3, 8, 8), None))


@pytest.mark.processes
def test_two_processes_measure_what_one_does(tmp_path: Path):
    """Also where the second one has no batch of its own."""
    spawned.found_by(detection_worker.work, 2, tmp_path)
    for count in (1, 3):
        expected = detection_worker.figures(count)
        assert expected["ap50"] > 0
        for rank in range(2):
            assert torch.load(tmp_path / f"rank{rank}.pt")[count] == expected
