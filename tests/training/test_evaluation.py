from collections.abc import Iterator

import pytest
import torch

import tiny
from limbeck import Distiller
from limbeck.tasks import Classification, LabelFree
from limbeck.training.evaluation import evaluate, evaluate_terms, shared_batches, to_device, validate
from tiny import Batch, Net

CPU = torch.device("cpu")


def batches(*sizes: int, labels: bool = True) -> list[Batch]:
    x, target = tiny.images(sum(sizes))
    parts = zip(x.split(sizes), target.split(sizes), strict=True)
    return [Batch(a, b if labels else None) for a, b in parts]


def label_free() -> Distiller:
    source = tiny.distiller()
    assert source.teacher is not None
    return Distiller(source.student, source.teacher.model, LabelFree(), terms=source.terms)


def test_scores_are_means_over_samples_whatever_the_batches() -> None:
    torch.manual_seed(0)
    model = Net(4, norm=True, dropout=0.5)
    whole = evaluate(model, Classification(), batches(17), CPU)
    split = evaluate(model, Classification(), batches(8, 8, 1), CPU)
    assert split == pytest.approx(whole, rel=1e-6)
    model.eval()
    x, target = tiny.images(17)
    logits = model(x)
    assert whole["top1"] == pytest.approx((logits.argmax(-1) == target).float().mean().item())
    assert whole["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), rel=1e-6)
    assert "top5" not in whole  # three classes


def test_it_leaves_the_model_as_it_was() -> None:
    model = Net(4, norm=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, Classification(), batches(8), CPU)
    assert model.training
    assert tiny.same_bytes(before, model.state_dict())


def test_no_batch_and_no_score_are_no_figures() -> None:
    assert evaluate(Net(4), Classification(), [], CPU) == {}
    assert evaluate(Net(4), LabelFree(), batches(8), CPU) == {}


def test_without_labels_the_terms_are_measured() -> None:
    distiller = label_free()
    figures = validate(distiller, distiller.student, batches(8, 8, labels=False), CPU)
    distiller.eval()
    results = [distiller(batch) for batch in batches(8, 8, labels=False)]
    assert figures["feature"] == pytest.approx(sum(r.parts["feature"].item() for r in results) / 2, rel=1e-6)
    assert figures["loss"] == pytest.approx(sum(r.loss.item() for r in results) / 2, rel=1e-6)
    assert "feature/correlation" in figures
    assert "logit/agreement" in figures


def test_without_labels_it_is_the_given_model_that_is_measured() -> None:
    distiller = label_free()
    other = Net(4)
    figures = validate(distiller, other, batches(8), CPU)
    assert figures == validate(distiller.with_student(other), other, batches(8), CPU)
    assert figures != validate(distiller, distiller.student, batches(8), CPU)


def test_a_last_batch_of_one_image_does_not_stop_a_label_free_run() -> None:
    distiller = label_free()
    with_one = evaluate_terms(distiller, distiller.student, batches(8, 1, labels=False), CPU)
    assert with_one == evaluate_terms(distiller, distiller.student, batches(8, 1, labels=False)[:1], CPU)


def test_evaluation_is_in_float32_whatever_training_is() -> None:
    seen: list[torch.dtype] = []
    model = Net(4)
    model.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    evaluate(model, Classification(), batches(4), CPU)
    assert seen == [torch.float32]


def test_to_device_keeps_the_kind_of_batch() -> None:
    x = torch.ones(2)
    for value in (x, (x, 3), [x, None], {"a": x, "b": [x]}, Batch(x, None)):
        moved = to_device(value, torch.device("meta"))
        assert type(moved) is type(value)
    moved = to_device({"a": (x, "name")}, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1] == "name"


def test_a_loader_is_read_once_per_evaluation() -> None:
    class Counting:
        reads = 0

        def __iter__(self) -> Iterator[Batch]:
            self.reads += 1
            return iter(batches(4, 4))

    loader = Counting()
    distiller = tiny.distiller()
    validate(distiller, distiller.student, loader, CPU)
    assert loader.reads == 1


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9])
def test_every_batch_is_counted_once_and_in_step_all_have_as_many(
    monkeypatch: pytest.MonkeyPatch, world: int, count: int
) -> None:
    monkeypatch.setattr("limbeck.distributed.collectives.world_size", lambda: world)
    for in_step in (False, True):
        shares: list[list[tuple[int, bool]]] = []
        for rank in range(world):
            monkeypatch.setattr("limbeck.distributed.collectives.rank", lambda rank=rank: rank)
            shares.append(list(shared_batches(range(count), torch.device("cpu"), in_step=in_step)))
        assert sorted(batch for share in shares for batch, is_own in share if is_own) == list(range(count))
        assert all(share for share in shares) or count == 0
        if in_step:
            assert len({len(share) for share in shares}) == 1
