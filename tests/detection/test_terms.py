"""Terms of boxes and heads: equal to loops, exact where it can be known, silent towards the teacher."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detection import boxes
from limbeck import Distiller, FeatureTerm, losses, norms, projectors
from limbeck.detection import DenseHeadTerm, Detection, ForegroundTerm, RegionTerm, soft_focal, truth_of
from limbeck.detection.batch import learned
from limbeck.detection.foreground import touched
from limbeck.detection.models import build_detector, trunk_only
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured

TARGET = torch.tensor(
    [
        [[3.0, 2.0, 13.0, 9.0, 1.0], [20.0, 20.0, 31.9, 31.0, 0.0], [0.0, 0.0, 0.0, 0.0, -1.0]],
        [[8.0, 8.0, 16.0, 24.0, 2.0], [0.0, 0.0, 32.0, 4.0, -1.0], [0.0, 0.0, 0.0, 0.0, -1.0]],
    ]
)


def touched_in_loops(target: Tensor, height: int, width: int, stride: int) -> Tensor:
    found = torch.zeros(*target.shape[:2], height, width, dtype=torch.bool)
    for image, rows in enumerate(target.tolist()):
        for number, (left, top, right, bottom, label) in enumerate(rows):
            for i in range(height):
                for j in range(width):
                    overlaps_x = min(right, (j + 1) * stride) > max(left, j * stride)
                    overlaps_y = min(bottom, (i + 1) * stride) > max(top, i * stride)
                    found[image, number, i, j] = label >= 0 and overlaps_x and overlaps_y
    return found


@pytest.mark.parametrize(("stride", "size"), [(4, (8, 8)), (8, (4, 4)), (32, (1, 1)), (8, (3, 5))])
def test_places_that_a_box_touches(stride: int, size: tuple[int, int]):
    assert torch.equal(touched(TARGET, size, stride), touched_in_loops(TARGET, *size, stride))
    assert touched(TARGET, (4, 4), 8)[0, 2].sum() == 0


def feature_term(d_s: int = 3, d_t: int = 5, *, pool: Any = pooling.vector) -> FeatureTerm:
    torch.manual_seed(0)
    return FeatureTerm(
        "a",
        "b",
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        correlation_loss=losses.log_correlation,
        student_pool=pool,
        teacher_pool=pool,
    )


def sides(size: int = 4, target: Tensor | None = TARGET) -> tuple[Captured, Captured]:
    torch.manual_seed(1)
    student = Captured(torch.zeros(2), {"a": torch.randn(2, 3, size, size, requires_grad=True)}, target)
    return student, Captured(torch.zeros(2), {"b": torch.randn(2, 5, size, size)}, target)


def by_rows(student: Captured, teacher: Captured, inside: Tensor) -> Tensor:
    """The term of the chosen places, collected one by one."""
    places = inside.nonzero().tolist()
    rows_s = torch.stack([student.features["a"][n, :, i, j] for n, i, j in places])
    rows_t = torch.stack([teacher.features["b"][n, :, i, j] for n, i, j in places])
    return feature_term()(student._replace(features={"a": rows_s}), teacher._replace(features={"b": rows_t}))


@pytest.mark.parametrize("background", [0.0, 0.5, 1.0])
def test_foreground_and_background_are_two_batches_of_one_term(background: float):
    student, teacher = sides()
    inside = touched_in_loops(TARGET, 4, 4, 8).any(1)
    value = ForegroundTerm(feature_term(), stride=8, background=background)(student, teacher)
    expected = by_rows(student, teacher, inside)
    if background:
        expected = (expected + background * by_rows(student, teacher, ~inside)) / (1 + background)
    torch.testing.assert_close(value, expected)


def test_without_background_only_places_in_boxes_get_a_gradient():
    student, teacher = sides()
    term = ForegroundTerm(feature_term(), stride=8)
    term(student, teacher).backward()
    reached = student.features["a"].grad.abs().sum(1) > 0
    assert torch.equal(reached, touched_in_loops(TARGET, 4, 4, 8).any(1))
    assert term.readings["foreground"] == reached.float().mean()


def test_a_batch_without_boxes_counts_nothing_and_trains_nothing():
    none = torch.full_like(TARGET, -1.0)
    student, teacher = sides(target=none)
    term = ForegroundTerm(feature_term(), stride=8)
    value = term(student, teacher)
    value.backward()
    assert value.item() == 0.0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in term.parameters())


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU: numbers that Python reads, and choices whose size depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1])
        self.count += by_mask or name in ("nonzero", "masked_select", "_local_scalar_dense")
        return func(*args, **(kwargs or {}))


def counted(call: Callable[[], object], patch: pytest.MonkeyPatch) -> int:
    with patch.context() as own, Reads() as reads:
        plain = Tensor.tolist

        def tolist(self: Tensor) -> list[Any]:
            reads.count += 1
            return plain(self)

        own.setattr(Tensor, "tolist", tolist)
        call()
    return reads.count


@pytest.mark.parametrize("background", [0.0, 0.5])
def test_the_device_is_read_once_a_step(background: float, monkeypatch: pytest.MonkeyPatch):
    """By the choice of places; by the boxes that are learned, of all images; and by those of a validation batch."""
    student, teacher = sides()
    inner = feature_term()
    rows = student._replace(features={"a": torch.randn(9, 3)}), teacher._replace(features={"b": torch.randn(9, 5)})
    own = counted(lambda: inner(*rows), monkeypatch) * (1 if background == 0 else 2)
    term = ForegroundTerm(inner, stride=8, background=background)
    assert counted(lambda: term(student, teacher), monkeypatch) - own == 1
    batch = boxes.batch(6)
    assert counted(lambda: learned(batch), monkeypatch) == 1
    assert counted(lambda: truth_of(batch), monkeypatch) == 1


def test_a_foreground_term_refuses_what_it_cannot_read():
    student, teacher = sides()
    with pytest.raises(UserError, match=r"background is -1 and stride 8; expected 0 and 1 or more"):
        ForegroundTerm(feature_term(), stride=8, background=-1)
    with pytest.raises(UserError, match="needs boxes"):
        ForegroundTerm(feature_term(), stride=8)(student._replace(target=torch.zeros(2)), teacher)
    with pytest.raises(UserError, match="expected maps of one size"):
        ForegroundTerm(feature_term(), stride=8)(student, sides(2)[1])


def test_soft_focal_is_the_formula_and_zero_at_equality():
    y_s, y_t = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)
    for a, b, found in zip(
        y_s.flatten().tolist(), y_t.flatten().tolist(), soft_focal(y_s, y_t).flatten().tolist(), strict=True
    ):
        p, q = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
        assert found == pytest.approx((p - q) ** 2 * -(q * math.log(p) + (1 - q) * math.log(1 - p)))
    assert torch.autograd.gradcheck(lambda y: soft_focal(y, y_t).sum(), y_s)
    assert soft_focal(y_t, y_t).abs().sum() == 0


def head_loss_in_loops(out_s: Tensor, out_t: Tensor, k: int) -> float:
    scores = boxes_ = weight = 0.0
    for row_s, row_t in zip(out_s.flatten(0, 1), out_t.flatten(0, 1), strict=True):
        sure = max(1 / (1 + math.exp(-float(y))) for y in row_t[:k])
        weight += sure
        scores += float(soft_focal(row_s[:k], row_t[:k]).sum())
        for a, b in zip(row_s[k : k + 4].tolist(), row_t[k : k + 4].tolist(), strict=True):
            boxes_ += sure * (0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5)
    return scores / weight + boxes_ / weight


def test_the_heads_term_equals_its_loops_and_leaves_centerness_alone():
    torch.manual_seed(0)
    out_s, out_t = torch.randn(2, 7, 8, requires_grad=True), torch.randn(2, 7, 8)
    term = DenseHeadTerm(3)
    value = term(Captured(out_s, {}), Captured(out_t, {}))
    assert value.item() == pytest.approx(head_loss_in_loops(out_s.detach(), out_t, 3), rel=1e-5)
    value.backward()
    assert out_s.grad[..., 7].abs().sum() == 0
    assert out_s.grad[..., :7].abs().min() > 0
    assert term(Captured(out_t, {}), Captured(out_t, {})).item() == 0.0
    assert float(term.readings["scores"] + term.readings["boxes"]) == 0.0


def test_heads_of_other_shapes_are_refused():
    with pytest.raises(UserError, match=r"the student's heads give \(2, 7, 8\) and the teacher's \(2, 6, 8\)"):
        DenseHeadTerm(3)(Captured(torch.zeros(2, 7, 8), {}), Captured(torch.zeros(2, 6, 8), {}))
    with pytest.raises(UserError, match="classes is 0"):
        DenseHeadTerm(0)


def distilled(student: nn.Module, teacher: nn.Module, term: Any) -> Distiller:
    return Distiller(student, teacher, Detection(student), terms={"term": term})


def test_heads_of_detectors_can_be_distilled():
    torch.manual_seed(0)
    student, teacher = (build_detector("fcos-32/cifar/resnet8", num_classes=2).module for _ in range(2))
    distiller = distilled(student, teacher, DenseHeadTerm(2))
    result = distiller(boxes.batch(2))
    result.loss.backward()
    assert sorted(result.parts) == ["task", "term"]
    assert not [p for p in distiller.teacher.parameters() if p.grad is not None]


def test_regions_are_judged_on_the_students_proposals():
    """The same detector agrees with itself; the gradient reaches second stage and pyramid, not the proposals."""
    torch.manual_seed(0)
    student, other = (build_detector("fasterrcnn-32/cifar/resnet8", num_classes=2).module for _ in range(2))
    term = RegionTerm(student, other, loss=losses.kl_divergence, proposals=16)
    distiller = distilled(student, other, term)
    batch = boxes.batch(2)
    captured = distiller.capture(batch)
    value = term(*captured)
    assert value.item() > 0
    value.backward()
    reached = {
        name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert reached == {"backbone", "roi_heads"}
    assert not [p for p in other.parameters() if p.grad is not None]
    student.eval()
    own = RegionTerm(student, student, loss=losses.kl_divergence, proposals=16)
    output = student(batch.images)
    tap = {student.levels[0].tap: torch.zeros(2, 32, 16, 16)}
    assert own(Captured(output, tap), Captured(output, {})).item() == pytest.approx(0.0, abs=1e-6)
    assert own.readings["agreement"] == 1.0


def test_a_teacher_of_features_runs_no_heads():
    torch.manual_seed(0)
    student, teacher = (build_detector("fasterrcnn-32/cifar/resnet8", num_classes=2).module for _ in range(2))
    calls: list[str] = []
    for part in (teacher.rpn.head, teacher.roi_heads.box_head):
        part.register_forward_hook(lambda *_: calls.append("head"))
    level = student.levels[0].tap
    term = feature_term(32, 32, pool=pooling.spatial_positions)
    term.student_taps = term.teacher_taps = (level,)
    distiller = distilled(student, trunk_only(teacher), term)
    distiller(boxes.batch(2)).loss.backward()
    assert calls == []
    assert not [name for name in distiller.teacher.state_dict() if "rpn" in name or "roi_heads" in name]
