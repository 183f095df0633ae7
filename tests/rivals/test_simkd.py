import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from limbeck import Distiller
from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.rivals import HintTerm, ReusedClassifier, bottleneck
from limbeck.tasks import Classification
from limbeck.training import optim
from tiny import Batch


class Teacher(tiny.Net):
    """``tiny.Net`` with its last map at a tap."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Backbone(nn.Module):
    """Headless: a map, and its mean as output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))


def build(*, size: tuple[int, int] | None = None) -> tuple[ReusedClassifier, Teacher]:
    torch.manual_seed(0)
    teacher = Teacher(6)
    return ReusedClassifier(Backbone(), "conv", projector=bottleneck(4, 6), classifier=teacher.fc, size=size), teacher


def batch(count: int = 8) -> Batch:
    return Batch(*tiny.images(count))


@pytest.mark.parametrize("size", [None, (3, 3), (4, 9)])
def test_its_logits_are_those_of_the_teachers_classifier_on_the_projected_map(size: tuple[int, int] | None) -> None:
    student, teacher = build(size=size)
    x = batch().images
    with evaluating(student), evaluating(teacher):
        feature = student.student.conv(x)
        if size is not None:
            feature = F.adaptive_avg_pool2d(feature, (min(6, size[0]), min(6, size[1])))
        expected = teacher.fc(student.projector(feature).mean((2, 3)))
        assert torch.allclose(student(x), expected, rtol=1e-6)


def test_where_the_maps_are_equal_it_is_the_teacher() -> None:
    _, teacher = build()
    student = ReusedClassifier(copy.deepcopy(teacher), "last", projector=nn.Identity(), classifier=teacher.fc)
    x = batch().images
    assert torch.equal(student(x), teacher(x))


def test_the_classifier_is_a_frozen_copy_in_eval_mode() -> None:
    student, teacher = build()
    before = {name: value.clone() for name, value in student.classifier.state_dict().items()}
    assert student.classifier.model is not teacher.fc
    assert teacher.fc.weight.requires_grad
    student.train()
    assert not any(part.training for part in student.classifier.modules())
    assert not any(p.requires_grad for p in student.classifier.parameters())
    with torch.no_grad():
        teacher.fc.weight.add_(1)
    assert tiny.same_bytes(dict(student.classifier.state_dict()), before)


def test_it_trains_on_the_teachers_map_alone_and_leaves_teacher_and_classifier_as_they_are() -> None:
    student, teacher = build()
    term = HintTerm("projector", "last", regressor=nn.Identity())
    distiller = Distiller(student, teacher, Classification(), terms={"feature": term}, weights={"task": 0.0})
    optimizer = optim.sgd(distiller, lr=0.05)
    optim.check_optimizer(distiller, optimizer)
    frozen = {f"t.{name}": v.clone() for name, v in teacher.state_dict().items()}
    frozen |= {f"c.{name}": v.clone() for name, v in student.classifier.state_dict().items()}
    values: list[float] = []
    for _ in range(40):
        result = distiller(batch(24))
        optimizer.zero_grad()
        result.loss.backward()
        optim.check_gradients(distiller)
        optimizer.step()
        values.append(result.parts["feature"].item())
    assert values[-1] < 0.5 * values[0]
    now = {f"t.{name}": v for name, v in teacher.state_dict().items()}
    now |= {f"c.{name}": v for name, v in student.classifier.state_dict().items()}
    assert tiny.same_bytes(now, frozen)
    assert not any("classifier" in name for name in distiller.trainable_parameters())


def test_projector_and_classifier_are_in_the_state_and_a_copy_computes_the_same() -> None:
    student, _ = build()
    assert {name.split(".")[0] for name in student.state_dict()} == {"student", "projector", "classifier"}
    other, _ = build()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(student.state_dict())
    x = batch().images
    with evaluating(student), evaluating(other):
        assert torch.equal(student(x), other(x))
        assert torch.equal(copy.deepcopy(student)(x), other(x))  # a moving average is a copy


def test_a_copy_reads_its_own_backbone() -> None:
    student, _ = build()
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.student.conv.weight.zero_()
    x = batch().images
    with evaluating(student), evaluating(other):
        assert not torch.equal(student(x), other(x))


def test_it_can_be_exported_with_a_free_batch_size() -> None:
    student, _ = build(size=(3, 3))
    with evaluating(student):
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(student, (batch().images,), dynamic_shapes=shapes)
        x = batch(3).images
        assert torch.allclose(program.module()(x), student(x), rtol=1e-5, atol=1e-6)


def test_the_bottleneck_has_the_parameters_of_its_formula() -> None:
    d_s, d_t, r = 256, 128, 4
    hidden = d_t // r
    norms = 2 * (2 * hidden + d_t)
    expected = d_s * hidden + 9 * hidden**2 + hidden * d_t + norms
    assert sum(p.numel() for p in bottleneck(d_s, d_t, reduction=r).parameters()) == expected
    assert bottleneck(4, 6)(torch.randn(2, 4, 5, 3)).shape == (2, 6, 5, 3)


def test_errors_name_the_fault() -> None:
    with pytest.raises(UserError, match='no submodule "conv9"'):
        ReusedClassifier(Backbone(), "conv9", projector=nn.Identity(), classifier=nn.Linear(4, 3))
    student = ReusedClassifier(tiny.Net(4), "fc:input", projector=nn.Identity(), classifier=nn.Linear(4, 3))
    with pytest.raises(UserError, match=r"expected \(n, c, h, w\)"):
        student(batch().images)
    with pytest.raises(UserError, match="bottleneck"):
        bottleneck(4, 1)
