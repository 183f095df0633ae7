"""The rivals inside a distiller: training, the teacher's bytes, checkpoints, and what broke off and went on."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import tiny
from limbeck import Distiller, fit, losses
from limbeck.rivals import CRDTerm, HintTerm, ReviewTerm, VIDTerm, regressor
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification, LabelFree
from limbeck.terms import Term
from limbeck.training import optim

IMAGES = 24
TAPS = ["conv1", "conv2"]


class Batch(NamedTuple):
    images: Tensor
    target: Tensor | None
    numbers: Tensor


def build(kind: str) -> Term:
    if kind == "vid":
        return VIDTerm(TAPS, TAPS, d_s=[4, 4], d_t=[6, 6])
    if kind == "review":
        return ReviewTerm(
            [*TAPS, "fc:input"], [*TAPS, "fc:input"], d_s=[4] * 3, d_t=[6] * 3, loss=losses.mean_squared_error
        )
    if kind == "hint":
        return HintTerm("conv2", "conv2", regressor=regressor(4, 6, size_s=(3, 3), size_t=(3, 3)))
    labels = tiny.images(IMAGES)[1] if kind == "crd with labels" else None
    return CRDTerm("fc:input", "fc:input", d_s=4, d_t=6, images=IMAGES, negatives=8, width=5, labels=labels)


KINDS = ["vid", "review", "hint", "crd", "crd with labels"]


def distiller(kind: str, *, label_free: bool = False) -> Distiller:
    torch.manual_seed(0)
    task = LabelFree() if label_free else Classification()
    return Distiller(tiny.Net(4), tiny.Net(6), task, terms={"rival": build(kind)}, weights={"rival": 0.5})


def batches(order: Tensor, *, labels: bool = True) -> Iterator[Batch]:
    x, target = tiny.images(IMAGES)
    for chosen in order.split(8):
        yield Batch(x[chosen], target[chosen] if labels else None, chosen)


class Loader:
    """A ``ShardedLoader`` on one process, of batches that say which images they hold."""

    def __init__(self, *, stop_after: int | None = None, labels: bool = True) -> None:
        self.epoch, self.left, self.labels = 0, stop_after, labels

    def __len__(self) -> int:
        return IMAGES // 8

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def shard(self, rank: int, world_size: int) -> "Loader":
        return self

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(self.epoch))
        for batch in batches(order, labels=self.labels):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            yield batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_five_steps_train_everything_but_the_teacher(kind: str, autocast: bool) -> None:
    subject = distiller(kind)
    optimizer = optim.sgd(subject, lr=0.05)
    optim.check_optimizer(subject, optimizer)
    assert subject.teacher is not None
    teacher = {name: value.clone() for name, value in subject.teacher.state_dict().items()}
    before = {name: p.detach().clone() for name, p in subject.trainable_parameters().items()}
    assert any(name.startswith("terms.rival") for name in before)
    batch = next(iter(batches(torch.arange(IMAGES))))
    values: list[float] = []
    for _ in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            result = subject(batch)
        optimizer.zero_grad()
        result.loss.backward()
        optim.check_gradients(subject)
        optimizer.step()
        optim.check_finite(subject)
        values.append(result.parts["rival"].item())
        assert result.readings
        assert all(name.startswith("rival/") and not r.requires_grad for name, r in result.readings.items())
    assert all(not torch.equal(p, before[name]) for name, p in subject.trainable_parameters().items())
    assert tiny.same_bytes(dict(subject.teacher.state_dict()), teacher)
    if not kind.startswith("crd"):  # whose negatives are new at every step
        assert values[-1] < values[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_goes_round(kind: str) -> None:
    first, second = distiller(kind), distiller(kind)
    optimizer = optim.sgd(first, lr=0.05)
    for batch in batches(torch.arange(IMAGES)):
        first(batch).loss.backward()
        optimizer.step()
    second.load_state_dict(first.state_dict(), strict=True)
    results: list[float] = []
    for subject in (first, second):
        torch.manual_seed(3)
        results.append(subject(batch).loss.item())
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_off_it_ends_with_the_bytes_of_an_unbroken_run(kind: str, tmp_path: Path) -> None:
    def train(folder: Path, stop_after: int | None = None) -> dict[str, Tensor]:
        subject = distiller(kind)
        torch.manual_seed(7)
        loader = Loader(stop_after=stop_after)
        fit(subject, loader, epochs=3, optimizer=optim.sgd(subject), checkpoints=Checkpoints(folder), cpu=True)
        return {f"s.{k}": v for k, v in subject.student.state_dict().items()} | {
            f"t.{k}": v for k, v in subject.term_modules.state_dict().items()
        }

    unbroken = train(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_after=5)
    torch.rand(7)
    assert tiny.same_bytes(train(tmp_path / "broken"), unbroken)


@pytest.mark.parametrize("kind", ["vid", "review", "hint", "crd"])
def test_without_labels_it_is_measured_on_other_images(kind: str) -> None:
    subject = distiller(kind, label_free=True)
    subject.student.fc.requires_grad_(False)  # nothing trains it without a logit term
    val = [Batch(tiny.images(8, seed=1)[0], None, torch.arange(1000, 1008))]
    result = fit(subject, Loader(labels=False), val, epochs=1, cpu=True)
    assert {"loss", "rival"} <= result.last.keys()
    assert all(value == value and abs(value) < 1e6 for value in result.last.values())
