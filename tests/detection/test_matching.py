"""Which object a detection is right about: equal to plain loops, and the cut where the F1 is greatest."""

import pytest
import torch

from detection.test_precision import planted
from limbeck.detection import Detections, Truth, best_cut, match


def overlap(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def by_loops(truth: Truth, found: Detections, iou: float) -> list[int]:
    taken = [-1] * len(found.scores)
    for row in sorted(range(len(taken)), key=lambda row: -float(found.scores[row])):
        best, place = 0.0, -1
        for other in range(len(truth.labels)):
            free = other not in taken and not truth.crowd[other]
            alike = truth.image[other] == found.image[row] and truth.labels[other] == found.labels[row]
            value = overlap(found.boxes[row].tolist(), truth.boxes[other].tolist()) if free and alike else 0.0
            if value >= iou and value > best:
                best, place = value, other
        taken[row] = place
    return taken


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_loops(seed: int, iou: float):
    truth, found = planted(8, seed)
    taken = match(truth, found, iou=iou)
    assert taken.tolist() == by_loops(truth, found, iou)
    assert 0 < int((taken >= 0).sum()) < len(taken)


def test_the_cut_is_where_the_f1_is_greatest():
    truth, found = planted(8, 0)
    taken = match(truth, found)
    objects = int((~truth.crowd).sum())
    f1 = {}
    for score in found.scores.tolist():
        kept = found.scores >= score
        f1[score] = 2 * int((kept & (taken >= 0)).sum()) / (int(kept.sum()) + objects)
    assert best_cut(truth, found, taken) == pytest.approx(max(f1, key=lambda score: f1[score]))


def test_nothing_right_is_cut_off_whole():
    truth, found = planted(4, 0)
    assert best_cut(truth, found, torch.full_like(found.labels, -1)) == 1.0
    none = Detections(*(column[:0] for column in found))
    assert match(truth, none).tolist() == []
    assert best_cut(truth, none, match(truth, none)) == 1.0
