import pytest
import torch

from limbeck.distiller import Task
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.tasks import Classification, LabelFree


def test_it_is_a_task() -> None:
    assert isinstance(Classification(), Task)


def test_loss_equals_the_formula_also_for_soft_and_smoothed_labels() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    log_p = torch.log_softmax(logits, -1)
    hard = -log_p[torch.arange(6), target]
    x = torch.zeros(6, 1)
    assert Classification().loss(logits, (x, target)).item() == pytest.approx(hard.mean().item())
    soft = torch.softmax(torch.randn(6, 4, dtype=torch.float64), -1)
    expected = -(soft * log_p).sum(-1).mean().item()
    assert Classification().loss(logits, (x, soft)).item() == pytest.approx(expected)
    smoothed = 0.9 * hard.mean() - 0.1 * log_p.mean()
    assert Classification(label_smoothing=0.1).loss(logits, (x, target)).item() == pytest.approx(smoothed.item())


def test_the_score_is_never_smoothed() -> None:
    logits, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    batch = (torch.zeros(6, 1), target)
    plain, smoothed = Classification().score(logits, batch), Classification(label_smoothing=0.1).score(logits, batch)
    assert torch.equal(plain["loss"], smoothed["loss"])
    assert plain["loss"].mean().item() == pytest.approx(Classification().loss(logits, batch).item(), rel=1e-6)


def test_top5_counts_the_five_largest() -> None:
    logits = torch.arange(7.0).repeat(7, 1)
    scores = Classification().score(logits, (torch.zeros(7, 1), torch.arange(7)))
    assert scores["top1"].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert scores["top5"].tolist() == [0, 0, 1, 1, 1, 1, 1]


def test_soft_targets_are_scored_by_their_largest_class() -> None:
    soft = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    scores = Classification().score(torch.eye(2), (torch.zeros(2, 1), soft))
    assert scores["top1"].tolist() == [1, 1]


def test_bf16_logits_give_a_float32_loss() -> None:
    loss = Classification().loss(torch.randn(4, 3).bfloat16(), (torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("batch", [(torch.zeros(2, 1),), (torch.zeros(2, 1), None)])
def test_a_batch_without_labels_is_refused(batch: tuple[object, ...]) -> None:
    with pytest.raises(UserError, match="needs labels"):
        Classification().loss(torch.zeros(2, 3), batch)


def test_labels_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(2, 1)
    with pytest.raises(UserError, match=r"labels go from 0 to 3; expected 0 to 2"):
        Classification().loss(torch.zeros(2, 3), (x, torch.tensor([0, 3])))
    with pytest.raises(UserError, match="do not fit labels"):
        Classification().loss(torch.zeros(2, 3), (x, torch.zeros(2, 4)))
    with pytest.raises(UserError, match="do not fit labels"):
        Classification().loss(torch.zeros(2, 3, 4, 4), (x, torch.tensor([0, 1])))
    with pytest.raises(UserError, match=r"do not fit labels of shape \(1,\)"):
        Classification().loss(torch.zeros(2, 3), (x, torch.tensor([1])))
    with pytest.raises(UserError, match=r"labels are \(2,\), torch.float32; expected whole numbers"):
        Classification().loss(torch.zeros(2, 3), (x, torch.tensor([0.0, 1.0])))
    with pytest.raises(UserError, match=r"labels go from -1 to 1; expected 0 to 2"):
        Classification().loss(torch.zeros(2, 3), (x, torch.tensor([-1, 1])))


def test_labels_of_any_whole_number_format_and_those_left_out() -> None:
    y = torch.randn(3, 3)
    expected = torch.nn.functional.cross_entropy(y[:2], torch.tensor([2, 0]))
    for dtype in (torch.int64, torch.int32, torch.int16):
        label = torch.tensor([2, 0, -100]).to(dtype)
        assert torch.equal(Classification().loss(y, (torch.zeros(3, 1), label)), expected)


def test_a_batch_may_bring_what_the_teacher_gave() -> None:
    brought = Captured(torch.zeros(2, 3), {})
    for task in (Classification(), LabelFree()):
        assert task.teacher_output((torch.zeros(2, 1), None, None, brought)) is brought
        assert task.teacher_output((torch.zeros(2, 1), None, torch.arange(2))) is None
        assert task.teacher_output((torch.zeros(2, 1), None, None, torch.zeros(2))) is None
    assert LabelFree().teacher_output(torch.zeros(2, 1)) is None
