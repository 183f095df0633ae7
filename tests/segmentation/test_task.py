"""The task's loss and scores, and the terms of logits, against loops, other libraries, and several processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import jaccard_score
from torch import nn

import spawned
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.segmentation import VOID, ChannelTerm, PixelTerm, Segmentation, SegmentationBatch, confusion, scores_of
from limbeck.segmentation.task import predicted_classes
from segmentation import masks, terms_worker


def test_loss_is_the_mean_over_places_with_a_class():
    batch = masks.batch(3)
    logits = torch.randn(3, 3, 8, 8, requires_grad=True)
    value = Segmentation().loss(logits, batch)
    large = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    rows = large.permute(0, 2, 3, 1)[batch.masks != VOID]
    expected = F.cross_entropy(rows, batch.masks[batch.masks != VOID].long())
    torch.testing.assert_close(value, expected)
    empty = batch._replace(masks=torch.full_like(batch.masks, VOID))
    assert Segmentation().loss(logits.detach(), empty) == 0


def test_scores_are_those_of_other_libraries():
    """Of classes that are there, are missing, or are only predicted; void counts nowhere."""
    random = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(5, (4, 9, 7), generator=random) for _ in range(2))
    truth[truth == 4] = VOID
    truth[truth == 3] = 2
    predicted[predicted == 4] = 1
    scores = scores_of(confusion(predicted, truth, 5))
    kept = truth != VOID
    iou = jaccard_score(truth[kept], predicted[kept], average=None, labels=[0, 1, 2, 3])
    assert scores.iou[:4] == pytest.approx(iou, abs=1e-9)
    assert math.isnan(scores.iou[4])
    assert scores.miou == pytest.approx(float(iou.mean()), abs=1e-9)
    assert scores.pixel_accuracy == pytest.approx(float((truth == predicted)[kept].double().mean()), abs=1e-9)
    metrics = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    theirs = metrics.multiclass_jaccard_index(predicted, truth, num_classes=5, ignore_index=VOID, average=None)
    assert scores.iou[:4] == pytest.approx(theirs[:4].tolist(), abs=1e-6)
    miou = metrics.multiclass_jaccard_index(predicted, truth, num_classes=5, ignore_index=VOID)
    assert scores.miou == pytest.approx(float(miou), abs=1e-6)


def test_classes_are_predicted_at_the_size_of_the_masks():
    """Logits of a frame of 64, of which the image has 40 x 50, for masks of 80 x 100: no padding is seen."""
    logits = torch.zeros(1, 2, 16, 16)
    logits[:, 1, :5] = 1.0  # the upper 20 rows of the frame
    logits[:, 0] = 0.5
    logits[:, 1, 11:] = 99.0  # padding
    batch = SegmentationBatch(
        torch.zeros(1, 3, 64, 64), torch.zeros(1, 80, 100, dtype=torch.uint8), (40, 50), torch.tensor([0])
    )
    found = predicted_classes(logits, batch)
    assert found.shape == (1, 80, 100)
    assert found[0].float().mean(1).tolist() == [1.0] * 40 + [0.0] * 40


def test_terms_are_their_loops():
    random = torch.Generator().manual_seed(2)
    batch = masks.batch(2)
    y_s, y_t = (torch.randn(2, 3, 8, 8, generator=random, dtype=torch.float64) for _ in range(2))
    student, teacher = (Captured(y, {}, target=batch.masks) for y in (y_s, y_t))
    total, count = 0.0, 0
    for n, i, j in [(n, i, j) for n in range(2) for i in range(8) for j in range(8)]:
        if batch.masks[n, 4 * i + 2, 4 * j + 2] != VOID:
            p, q = (torch.softmax(y[n, :, i, j] / 2.0, 0) for y in (y_t, y_s))
            total, count = total + 4.0 * float((p * (p / q).log()).sum()), count + 1
    assert count < 128
    assert float(PixelTerm(temperature=2.0)(student, teacher)) == pytest.approx(total / count, rel=1e-9)
    total = 0.0
    for n, k in [(n, k) for n in range(2) for k in range(3)]:
        p, q = (torch.softmax(y[n, k].flatten() / 4.0, 0) for y in (y_t, y_s))
        total += 16.0 * float((p * (p / q).log()).sum()) / 6
    assert float(ChannelTerm(stride=4)(student, teacher)) == pytest.approx(total, rel=1e-9)
    for term in (PixelTerm(), ChannelTerm()):
        assert float(term(student, student)) == pytest.approx(0, abs=1e-12)
        with pytest.raises(UserError, match="3 classes and the teacher 2"):
            term(student, teacher._replace(output=y_t[:, :2]))
        with pytest.raises(UserError, match="needs masks"):
            term(student._replace(target=None), teacher)


@pytest.mark.processes
def test_two_processes_compute_what_one_computes(tmp_path: Path):
    """Three images with little void on one process, one with much on the other."""
    expected = terms_worker.everything()
    for found in spawned.found_by(terms_worker.work, 2, tmp_path):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
            assert value.abs().sum() > 0


def test_a_batch_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"segmentation reads limbeck\.segmentation\.SegmentationBatch, got a tuple"):
        Segmentation().student_input((torch.zeros(1), torch.zeros(1)))
    assert Segmentation().evaluate(nn.Identity(), []) == {}
