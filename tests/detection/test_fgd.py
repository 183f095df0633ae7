"""FGD: equal to loops over places and channels, in which a box is where it is."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.detection import FGDTerm
from limbeck.detection.fgd import Weights, masks
from limbeck.errors import UserError
from limbeck.features.taps import Captured

TARGET = torch.tensor(
    [
        [[0.0, 8.0, 16.0, 24.0, 1.0], [8.0, 16.0, 31.0, 24.0, 0.0]],
        [[24.0, 0.0, 32.0, 8.0, 2.0], [0.0, 0.0, 0.0, 0.0, -1.0]],
    ]
)  # on a map of 4 x 5 places of 8 pixels
PARTS = Weights(foreground=1.0, background=0.5, attention=0.1, relation=0.01)


def attention(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """S and G of one image's map, place by place."""
    c, h, w = x.shape
    size = x.abs()
    places = torch.tensor([[math.exp(float(size[:, i, j].mean()) / temperature) for j in range(w)] for i in range(h)])
    channels = torch.tensor([math.exp(float(size[k].mean()) / temperature) for k in range(c)])
    return h * w * places / places.sum(), c * channels / channels.sum()


def in_loops(x_s: Tensor, x_t: Tensor, front: Tensor, behind: Tensor, temperature: float) -> float:
    """The first three parts; contexts add nothing before they are trained."""
    total = 0.0
    n, c, h, w = x_s.shape
    for image in range(n):
        places_s, channels_s = attention(x_s[image], temperature)
        places_t, channels_t = attention(x_t[image], temperature)
        for i in range(h):
            for j in range(w):
                for k in range(c):
                    error = float((x_t[image, k, i, j] - x_s[image, k, i, j]) ** 2 * places_t[i, j] * channels_t[k])
                    weight = PARTS.foreground * float(front[image, i, j]) + PARTS.background * float(
                        behind[image, i, j]
                    )
                    total += weight * error
        total += PARTS.attention * float((places_s - places_t).abs().sum() + (channels_s - channels_t).abs().sum())
        total += PARTS.relation * float((x_s[image] - x_t[image]).square().sum())
    return total / n


def sides() -> tuple[Captured, Captured]:
    torch.manual_seed(0)
    student = Captured(torch.zeros(2), {"a": torch.randn(2, 3, 4, 5, requires_grad=True)}, TARGET)
    return student, Captured(torch.zeros(2), {"b": torch.randn(2, 3, 4, 5)}, TARGET)


def test_boxes_weigh_by_their_area_and_lie_where_they_are():
    front, behind = masks(TARGET, (4, 5), 8)
    expected = torch.zeros(2, 4, 5)
    expected[0, 1:3, 0:2] = 1 / 4  # the box 2 x 2
    expected[0, 2, 1:4] = 1 / 3  # the smaller box wins where both are
    expected[1, 0, 3] = 1.0
    torch.testing.assert_close(front, expected)
    torch.testing.assert_close(behind, (expected == 0).float() / (expected == 0).sum((1, 2), keepdim=True))


@pytest.mark.parametrize("temperature", [0.5, 0.8])
def test_equals_the_loops(temperature: float):
    student, teacher = sides()
    term = FGDTerm("a", "b", d_s=3, d_t=3, stride=8, weights=PARTS, temperature=temperature)
    value = term(student, teacher)
    expected = in_loops(student.features["a"].detach(), teacher.features["b"], *masks(TARGET, (4, 5), 8), temperature)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert float(sum(term.readings.values())) == pytest.approx(value.item(), rel=1e-5)


def test_zero_at_equality_and_silent_towards_the_teacher():
    student, teacher = sides()
    x_t = teacher.features["b"].clone().requires_grad_()
    term = FGDTerm("a", "b", d_s=3, d_t=3, stride=8, weights=PARTS)
    same = Captured(torch.zeros(2), {"a": x_t.detach().clone()}, TARGET)
    assert term(same, teacher).item() == pytest.approx(0.0, abs=1e-6)
    term(student, teacher).backward()
    assert student.features["a"].grad.abs().sum() > 0
    assert all(p.grad is not None for p in term.parameters())


def test_other_widths_go_through_a_convolution():
    term = FGDTerm("a", "b", d_s=3, d_t=6, stride=8)
    student, _ = sides()
    teacher = Captured(torch.zeros(2), {"b": torch.randn(2, 6, 4, 5)}, TARGET)
    term(student, teacher).backward()
    assert term.align.weight.shape == (6, 3, 1, 1)
    assert term.align.weight.grad.abs().sum() > 0


def test_an_image_without_boxes_is_all_background():
    front, behind = masks(torch.full((1, 2, 5), -1.0), (2, 2), 8)
    assert front.sum() == 0
    assert behind.tolist() == [[[0.25, 0.25], [0.25, 0.25]]]


def test_a_batch_in_which_no_image_has_a_box_is_all_background():
    student, teacher = sides()
    none = torch.zeros(2, 0, 5)
    term = FGDTerm("a", "b", d_s=3, d_t=3, stride=8, weights=PARTS)
    value = term(student._replace(target=none), teacher._replace(target=none))
    value.backward()
    assert value.item() > 0
    assert term.readings["foreground"] == 0
    assert masks(none, (2, 2), 8)[1].tolist() == [[[0.25, 0.25], [0.25, 0.25]]] * 2


def published_masks(boxes: Tensor, h: int, w: int, stride: int) -> Tensor:
    """The published foreground mask of an image without padding: rows are down, columns across, one place further."""
    front = torch.zeros(h, w)
    for left, top, right, bottom in (boxes / stride).tolist():
        columns, rows = (math.floor(left), math.ceil(right) + 1), (math.floor(top), math.ceil(bottom) + 1)
        area = 1 / ((rows[1] - rows[0]) * (columns[1] - columns[0]))
        front[rows[0] : rows[1], columns[0] : columns[1]] = front[rows[0] : rows[1], columns[0] : columns[1]].clamp_min(
            area
        )
    return front


def test_published_masks_differ_by_one_place_to_the_right_and_down_and_by_nothing_else():
    box = torch.tensor([[8.0, 0.0, 40.0, 16.0]])
    target = torch.cat([box, torch.ones(1, 1)], 1)[None]
    further = torch.cat([box + torch.tensor([0.0, 0.0, 8.0, 8.0]), torch.ones(1, 1)], 1)[None]
    theirs = published_masks(box, 6, 8, 8)
    assert torch.equal(masks(further, (6, 8), 8)[0][0], theirs)
    assert not torch.equal(masks(target, (6, 8), 8)[0][0], theirs)


def test_what_it_cannot_read_is_refused():
    student, teacher = sides()
    term = FGDTerm("a", "b", d_s=3, d_t=3, stride=8)
    with pytest.raises(UserError, match="needs boxes"):
        term(student._replace(target=None), teacher)
    with pytest.raises(UserError, match=r'"a" gave \(2, 3, 4, 5\); expected \(n, 4\) or \(n, 4, h, w\)'):
        FGDTerm("a", "b", d_s=4, d_t=3, stride=8)(student, teacher)
    with pytest.raises(UserError, match="expected equal"):
        term(student, Captured(torch.zeros(2), {"b": torch.randn(2, 3, 2, 5)}, TARGET))
    with pytest.raises(UserError, match="expected positive numbers"):
        FGDTerm("a", "b", d_s=3, d_t=3, stride=0)
