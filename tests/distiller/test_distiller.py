import contextlib
import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from limbeck import Distiller, FeatureTerm, LabelledLogitTerm, LogitTerm, losses, projectors
from limbeck.distiller import FrozenTeacher, evaluating
from limbeck.errors import UserError
from limbeck.tasks import Classification, LabelFree
from tiny import Batch, Net


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def batch(count: int = 8, *, soft: bool = False) -> Batch:
    x, target = tiny.images(count)
    if soft:
        return Batch(x, (nn.functional.one_hot(target, tiny.CLASSES) + 0.1).float() / 1.3)
    return Batch(x, target)


def test_parts_are_unweighted_and_weights_are_applied_once() -> None:
    distiller = tiny.distiller()
    distiller.weights = {"task": 0.25, "feature": 3.0, "logit": 0.0}
    result = distiller(batch())
    student, teacher = distiller.capture(batch())
    assert teacher is not None
    expected = {
        "task": nn.functional.cross_entropy(student.output, batch().target),
        "feature": distiller.terms["feature"](student, teacher),
        "logit": distiller.terms["logit"](student, teacher),
    }
    assert list(result.parts) == ["task", "feature", "logit"]
    for name, part in expected.items():
        assert torch.equal(result.parts[name], part.detach())
        assert not result.parts[name].requires_grad
    assert result.loss.item() == pytest.approx((0.25 * expected["task"] + 3 * expected["feature"]).item(), rel=1e-6)
    assert torch.equal(result.output, student.output)
    assert set(result.readings) == {"feature/correlation", "feature/log_mean", "logit/agreement"}


def test_a_missing_weight_is_one_and_a_schedule_follows_progress() -> None:
    distiller = tiny.distiller()
    assert distiller.current_weights() == {"task": 1.0, "feature": 0.5, "logit": 1.0}
    distiller.weights["feature"] = lambda done: 4 * (1 - done)
    for progress, weight in ((0.0, 4.0), (0.75, 1.0)):
        distiller.progress = progress
        result = distiller(batch())
        expected = result.parts["task"] + weight * result.parts["feature"] + result.parts["logit"]
        assert result.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_float64_stays_float64_and_bf16_becomes_float32() -> None:
    distiller = tiny.distiller().double()
    assert distiller(Batch(batch().images.double(), batch().target)).loss.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = tiny.distiller()(batch())
    assert result.loss.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in result.parts.values())
    assert result.output.dtype == torch.bfloat16


def test_the_teacher_cannot_be_woken() -> None:
    distiller = tiny.distiller(norm=True, dropout=0.5)
    assert distiller.teacher is not None
    bare = distiller.teacher.model
    before = copy.deepcopy(bare.state_dict())
    optimizer = torch.optim.SGD(distiller.trainable_parameters().values(), lr=0.1)
    for wake in (distiller.train, distiller.teacher.train, bare.train, lambda: bare.requires_grad_(True)):
        wake()
        result = distiller(batch())
        result.loss.backward()
        optimizer.step()
        assert not any(part.training for part in distiller.teacher.modules())
        assert distiller.student.training
        assert all(p.grad is None for p in bare.parameters())
    distiller.eval()
    distiller.train()
    assert distiller.student.training
    assert not bare.training
    assert tiny.same_bytes(before, bare.state_dict())


def test_frozen_norms_keep_their_statistics_and_train_their_parameters() -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_mean = torch.ones(4)
    distiller = Distiller(nn.Sequential(norm, nn.Dropout(), nn.Linear(4, 3)), None, Classification(), frozen_norms=True)
    with evaluating(distiller):
        pass
    for mode in (True, False, True):
        distiller.train(mode)
    assert [module.training for module in distiller.student.children()] == [False, True, True]
    distiller((torch.randn(8, 4), torch.randint(3, (8,)))).loss.backward()
    assert norm.running_mean.tolist() == [1, 1, 1, 1]
    assert norm.weight.grad is not None
    assert not distiller.with_student(nn.BatchNorm1d(3)).student.training


def test_trainable_are_student_and_projectors_never_the_teacher() -> None:
    distiller = tiny.distiller()
    named = distiller.trainable_parameters()
    assert "terms.feature.projector.weight" in named
    assert "student.fc.weight" in named
    assert not any("teacher" in name for name in named)
    held = {id(p) for p in named.values()}
    assert distiller.teacher is not None
    assert not any(id(p) in held for p in distiller.teacher.parameters())
    assert len(named) == len(list(distiller.student.parameters())) + 1
    distiller.student.fc.requires_grad_(False)
    assert "student.fc.weight" not in distiller.trainable_parameters()


def test_each_model_gets_its_own_input() -> None:
    seen: dict[str, Tensor] = {}
    student, teacher = Net(4), Net(6)
    student.register_forward_pre_hook(lambda _, inputs: seen.update(student=inputs[0]))
    teacher.register_forward_pre_hook(lambda _, inputs: seen.update(teacher=inputs[0]))
    resize = nn.Sequential(Scale(3.0), nn.Upsample(scale_factor=2))
    for task in (
        Classification(student_input=Scale(2.0), teacher_input=resize),
        LabelFree(student_input=Scale(2.0), teacher_input=resize),
    ):
        distiller = Distiller(student, teacher, task, terms={"logit": LogitTerm()})
        distiller(batch())
        assert torch.equal(seen["student"], 2 * batch().images)
        assert torch.equal(seen["teacher"], nn.functional.interpolate(3 * batch().images, scale_factor=2))
        # Input statistics move with the models, and are no parameter.
        assert {"task.student_transform.factor"} <= set(distiller.state_dict())


def test_soft_targets_and_what_the_terms_see() -> None:
    distiller = tiny.distiller()
    student, teacher = distiller.capture(batch(soft=True))
    assert teacher is not None
    assert student.target is teacher.target
    assert student.target is not None
    assert student.target.shape == (8, tiny.CLASSES)
    result = distiller(batch(soft=True))
    log_p = torch.log_softmax(student.output, -1)
    assert result.parts["task"].item() == pytest.approx(-(student.target * log_p).sum(-1).mean().item(), rel=1e-5)


def test_label_free_has_no_task_part() -> None:
    labelled = tiny.distiller()
    assert labelled.teacher is not None
    free = Distiller(labelled.student, labelled.teacher.model, LabelFree(), terms=labelled.terms)
    for given in (Batch(batch().images, None), batch(), batch().images):
        assert list(free(given).parts) == ["feature", "logit"]
    with pytest.raises(UserError, match="nothing to train on"):
        Distiller(Net(4), None, LabelFree())(batch())


def test_a_student_alone() -> None:
    alone = Distiller(Net(4), None, Classification())
    assert list(alone(batch()).parts) == ["task"]
    assert alone.capture(batch())[1] is None


def test_wrong_arguments_are_one_clear_line() -> None:
    term = tiny.feature_term(4, 6)
    cases = [
        ({"terms": {"logit": LogitTerm()}, "weights": {"logits": 1.0}}, 'did you mean "logit"'),
        ({"terms": {"task": LogitTerm()}}, 'cannot be called "task"'),
        ({"terms": {"a.b": term}}, 'cannot be called "a.b"'),
        ({"terms": {"keys": term}}, 'cannot be called "keys"'),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            Distiller(Net(4), Net(6), Classification(), **arguments)
    with pytest.raises(UserError, match="need a teacher"):
        Distiller(Net(4), None, Classification(), terms={"logit": LogitTerm()})
    with pytest.raises(UserError, match='no submodule "fc"'):
        Distiller(nn.Sequential(), Net(6), Classification(), terms={"feature": term})


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), lambda done: -done - 1])
def test_a_weight_that_is_none_is_one_line(weight: Any) -> None:
    with pytest.raises(UserError, match=r'weight "logit" is .*; expected a finite number of at least 0'):
        Distiller(Net(4), Net(6), Classification(), terms={"logit": LogitTerm()}, weights={"logit": weight})(batch())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: None, "the batch is None"),
        (lambda x, y: ((255 * x).to(torch.uint8), y), r"cannot read images of torch\.uint8; expected torch\.float32"),
        (lambda x, y: (x.double(), y), r"cannot read images of torch\.float64; .* images\.to\(torch\.float32\)"),
        (lambda x, y: (x, y + 1), "labels go from 1 to 3; expected 0 to 2"),
        (lambda x, y: (x, y.float()), r"labels are .* torch\.float32"),
        (lambda x, y: (x, y[1:]), "do not fit labels"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_line(spoil: Any, message: str) -> None:
    """Also with a teacher and with terms of the labels, whatever of them is computed first."""
    x, y = tiny.images(9)
    term = LabelledLogitTerm(losses.decoupled_kl)
    with pytest.raises(UserError, match=message):
        Distiller(Net(4), Net(6), Classification(), terms={"logit": term})(spoil(x, y))


@pytest.mark.parametrize("loss", [losses.decoupled_kl, losses.normalized_kl])
def test_a_label_beyond_the_logits_is_one_line_in_a_loss_by_itself(loss: Any) -> None:
    y = torch.randn(2, 3)
    with pytest.raises(UserError, match="labels go from 1 to 3; expected 0 to 2"):
        loss(y, y, torch.tensor([1, 3]))


@pytest.mark.parametrize(
    "projector",
    [
        projectors.linear(5, 6),
        projectors.mlp(5, 6, hidden=4),
        projectors.orthogonal(5, 6),
        projectors.ensemble(5, 6, count=2),
        projectors.low_rank(5, 6, rank=2),
        projectors.Ridge(5, 6),
    ],
)
def test_a_projector_of_another_width_is_one_line(projector: nn.Module) -> None:
    term = FeatureTerm("fc:input", "fc:input", projector=projector, loss=losses.squared_error)
    with pytest.raises(UserError, match=r"fc:input.*reads 5 channels; build it for 4|expected \(n, 5\)"):
        Distiller(Net(4), Net(6), Classification(), terms={"feature": term})(batch())


def test_two_threads_may_share_a_teacher_and_a_distiller() -> None:
    """Each call has the values that it has by itself: the hooks of one do not fire in the other."""
    teacher = Net(6)
    pair = [Distiller(Net(4), teacher, Classification(), terms={"f": tiny.feature_term(4, 6)}) for _ in range(2)]
    given = [batch(4) for _ in range(8)]
    expected = [[float(distiller(one).loss.detach()) for one in given] for distiller in pair]

    def losses_of(number: int) -> list[float]:
        return [float(pair[number](one).loss.detach()) for one in given]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(losses_of, [0, 1, 0, 1]))
    assert found == [expected[0], expected[1]] * 2


def test_student_and_teacher_may_not_share_a_parameter() -> None:
    student, teacher = Net(4), Net(4)
    teacher.conv1 = student.conv1
    with pytest.raises(UserError, match=r"share conv1\.weight"):
        Distiller(student, teacher, Classification())
    assert student.conv1.weight.requires_grad  # refused before anything was frozen
    Distiller(student, copy.deepcopy(student), Classification())


def test_a_copy_trains_by_itself() -> None:
    distiller = tiny.distiller()
    copied = copy.deepcopy(distiller)
    before = copy.deepcopy(distiller.state_dict())
    copied(batch()).loss.backward()
    assert all(p.grad is not None for p in copied.trainable_parameters().values())
    assert all(p.grad is None for p in distiller.trainable_parameters().values())
    assert tiny.same_bytes(before, distiller.state_dict())


def test_with_student_keeps_everything_else() -> None:
    distiller = tiny.distiller()
    distiller.progress = 0.5
    other = distiller.with_student(copy.deepcopy(distiller.student))
    assert other.progress == 0.5
    assert torch.equal(other(batch()).loss, distiller(batch()).loss)
    assert other.terms == distiller.terms


def test_evaluating_gives_every_mode_back_also_after_an_exception() -> None:
    net = Net(4, norm=True).train()
    net.norm.eval()  # a frozen batch norm
    with contextlib.suppress(RuntimeError), evaluating(net):
        assert not any(part.training for part in net.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError
    assert torch.is_grad_enabled()
    assert net.training
    assert net.fc.training
    assert not net.norm.training


def test_frozen_teacher_is_a_plain_module_outside() -> None:
    teacher = FrozenTeacher(Net(4, norm=True))
    assert teacher.train() is teacher
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_in_bfloat16_reads_images_of_its_type_and_such_a_student_is_refused() -> None:
    images, target = tiny.images(8)
    net, taught = tiny.Net(4), tiny.Net(6)
    terms = {"logit": LogitTerm()}
    wide = Distiller(net, copy.deepcopy(taught), Classification(), terms=terms)((images, target))
    narrow = Distiller(net, taught.bfloat16(), Classification(), terms=terms)((images, target))
    assert narrow.parts["logit"].dtype == torch.float32
    torch.testing.assert_close(narrow.parts["logit"], wide.parts["logit"], rtol=0.05, atol=1e-3)
    with pytest.raises(UserError, match=r"the student is torch.bfloat16: train student.float\(\)"):
        Distiller(tiny.Net(4).bfloat16(), None, Classification())
