import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import tiny
from limbeck import Distiller, fit
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification, LabelFree
from limbeck.training import optim
from limbeck.training.meter import LOG_EVERY
from limbeck.training.modules import Average
from tiny import Batch, Loader, Net, records
from training.test_resume import flat, timeless

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


def alone(seed: int = 0) -> Distiller:
    torch.manual_seed(seed)
    return Distiller(Net(4), None, Classification())


def plain_sgd(distiller: Distiller) -> torch.optim.Optimizer:
    return optim.sgd(distiller, **SGD)


def state(distiller: Distiller) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in distiller.state_dict().items()}


class Poisoned(Loader):
    """Gives one image that is not a number, at one batch of one epoch."""

    def __iter__(self) -> Iterator[Batch]:
        for step, batch in enumerate(super().__iter__()):
            if self.epoch == 1 and step == 2:
                batch.images[0, 0, 0, 0] = math.nan
            yield batch


def test_one_epoch_equals_the_loop_written_out() -> None:
    subject, twin = tiny.distiller(), tiny.distiller()
    fit(subject, Loader(32, 8), epochs=2, optimizer=plain_sgd(subject), rate=lambda done: 1 / (1 + done), cpu=True)

    optimizer = plain_sgd(twin)
    twin.train()
    loader = Loader(32, 8)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for index, batch in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + epoch + index / 4)
            optimizer.zero_grad()
            twin(batch).loss.backward()
            optimizer.step()
    assert tiny.same_bytes(state(subject), state(twin))


def test_it_learns_and_the_teacher_keeps_its_bytes() -> None:
    distiller = tiny.distiller(norm=True)
    assert distiller.teacher is not None
    before = copy.deepcopy(distiller.teacher.state_dict())
    start = distiller(next(iter(Loader(64, 64)))).loss.item()
    result = fit(distiller, Loader(64, 16), list(Loader(32, 16, seed=1)), epochs=6, cpu=True)
    assert tiny.same_bytes(before, distiller.teacher.state_dict())
    distiller.train()
    assert distiller(next(iter(Loader(64, 64)))).loss.item() < start - 0.2
    assert result.counters.step == 24
    assert result.counters.images == 6 * 64
    assert result.student is distiller.student


def test_an_optimizer_without_the_projector_is_refused() -> None:
    distiller = tiny.distiller()
    forgetful = torch.optim.SGD(distiller.student.parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"not in the optimizer: terms\.feature\.projector\.weight"):
        fit(distiller, Loader(16, 8), epochs=1, optimizer=forgetful, cpu=True)


def test_a_parameter_that_nothing_trains_is_refused_before_the_first_step() -> None:
    distiller = alone()
    distiller.student.extra = nn.Linear(2, 2)
    before = state(distiller)
    with pytest.raises(UserError, match=r"no gradient reaches student\.extra\.weight, student\.extra\.bias"):
        fit(distiller, Loader(16, 8), epochs=1, cpu=True)
    assert tiny.same_bytes(before, state(distiller))


def test_bad_numbers_in_the_data_stop_with_step_and_part_and_a_good_checkpoint(tmp_path: Path) -> None:
    distiller = tiny.distiller()
    with pytest.raises(UserError, match=r'not finite at step 7 \(epoch 2\): part "logit" is nan') as raised:
        fit(distiller, Poisoned(32, 8), epochs=3, checkpoints=Checkpoints(tmp_path), cpu=True)
    assert "\n" not in str(raised.value)
    good = tiny.distiller()
    loaded = Checkpoints(tmp_path).load({"student": good.student, "terms": good.term_modules}, torch.device("cpu"))
    assert loaded is not None
    assert loaded[1].step == 4
    optim.check_finite(good)
    optim.check_finite(distiller)  # stopped before the optimizer


def test_a_bad_loss_names_its_part() -> None:
    distiller = tiny.distiller()
    distiller.terms["feature"].correlation_loss = lambda c: c.sum() * math.inf
    with pytest.raises(UserError, match='part "feature"'):
        fit(distiller, Loader(32, 8), epochs=1, cpu=True)
    distiller = tiny.distiller()
    distiller.weights["task"] = math.inf
    with pytest.raises(UserError, match="the weighted sum is inf"):
        fit(distiller, Loader(32, 8), epochs=1, cpu=True)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * math.nan


def test_a_bad_gradient_in_the_last_batch_of_an_epoch_reaches_no_checkpoint(tmp_path: Path) -> None:
    distiller = alone()
    calls = itertools.count()

    def loss(output: Tensor, batch: Batch) -> Tensor:
        value = nn.functional.cross_entropy(output, batch.target)
        return BadGradient.apply(value) if next(calls) == 7 else value

    distiller.task.loss = loss
    with pytest.raises(UserError, match=r"the gradient is not finite at step 8 \(epoch 2\): that of student\."):
        fit(distiller, Loader(32, 8), epochs=3, checkpoints=Checkpoints(tmp_path), cpu=True)
    assert [path.name for path in Checkpoints(tmp_path).states()] == ["step-000000004"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipping_is_of_the_true_gradient(accumulate: int) -> None:
    """Twice, with and without a scale on the loss: with the clip behind the unscaling both give the same step."""
    moved: list[list[Tensor]] = []
    real_scaler = torch.amp.GradScaler
    for scale in (1.0, 1024.0):
        distiller = tiny.distiller()
        before = {name: p.detach().clone() for name, p in distiller.trainable_parameters().items()}
        optimizer = torch.optim.SGD(distiller.trainable_parameters().values(), lr=1.0)
        with pytest.MonkeyPatch.context() as patch:
            if scale > 1:

                def scaler(*_: Any, scale: float = scale, **__: Any) -> torch.amp.GradScaler:
                    return real_scaler("cpu", init_scale=scale, enabled=True)

                patch.setattr(torch.amp, "GradScaler", scaler)
            loader = Loader(8 * accumulate, 8)
            fit(distiller, loader, epochs=1, optimizer=optimizer, clip=0.01, accumulate=accumulate, cpu=True)
        moved.append([p.detach() - before[name] for name, p in distiller.trainable_parameters().items()])
        norm = torch.sqrt(sum((step**2).sum() for step in moved[-1]))
        assert norm.item() == pytest.approx(0.01, rel=1e-3)
    for a, b in zip(*moved, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_batches_equal_one_large_batch(accumulate: int) -> None:
    """For a task loss and a student without batch norm; the last group of an epoch may be short."""
    small, large = alone().double(), alone().double()
    size = 32 // accumulate
    kwargs = {"epochs": 2, "cpu": True}
    result = fit(
        small, Loader(64, size, dtype=torch.float64), optimizer=plain_sgd(small), accumulate=accumulate, **kwargs
    )
    fit(large, Loader(64, 32, dtype=torch.float64), optimizer=plain_sgd(large), **kwargs)
    assert result.counters.step == 4
    for name, value in state(large).items():
        assert torch.allclose(state(small)[name], value, rtol=1e-10, atol=1e-12), name


def test_a_short_last_group_is_averaged_over_its_own_batches() -> None:
    subject, twin = alone(), alone()
    fit(subject, Loader(24, 8), epochs=1, optimizer=plain_sgd(subject), accumulate=2, cpu=True)  # 2 batches, then 1
    optimizer = plain_sgd(twin)
    for group in ([0, 1], [2]):
        optimizer.zero_grad()
        batches = list(Loader(24, 8))
        for index in group:
            (twin(batches[index]).loss / len(group)).backward()
        optimizer.step()
    assert tiny.same_bytes(state(subject), state(twin))


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_accumulated_batches_are_one_large_batch_for_the_terms_and_all_else(accumulate: int, tmp_path: Path) -> None:
    """Weights, moving average, schedules, clipping, counters, figures and log."""
    outcomes: list[tuple[dict[str, Tensor], dict[str, Tensor], Any]] = []
    for batch, count, name in ((4, accumulate, "small"), (4 * accumulate, 1, "large")):
        subject = tiny.distiller().double()
        subject.weights["feature"] = lambda done: 1 - done
        result = fit(
            subject,
            Loader(48, batch, dtype=torch.float64),
            [Batch(images.double(), target) for images, target in Loader(16, 8, seed=1)],
            epochs=3,
            optimizer=plain_sgd(subject),
            rate=optim.cosine_decay(3, warmup=1),
            clip=0.5,
            accumulate=count,
            ema_decay=0.8,
            log=RunLog(tmp_path / name),
            cpu=True,
        )
        figures = (result.last, result.counters.step, result.counters.images)
        outcomes.append((state(subject), result.student.state_dict(), figures))
    (small, small_average, small_figures), (large, large_average, large_figures) = outcomes
    for found, expected in ((small, large), (small_average, large_average)):
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-10, atol=1e-12), name
    assert small_figures == (pytest.approx(large_figures[0]), *large_figures[1:])
    logs = [[flat(record) for record in timeless(folder)] for folder in (tmp_path / "small", tmp_path / "large")]
    assert len(logs[0]) == len(logs[1]) == 6
    assert len(records(tmp_path / "small")) == 6  # nothing to note
    for found, expected in zip(*logs, strict=True):
        assert found == {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-5) for k, v in expected.items()}


def test_unequal_batches_count_by_their_rows() -> None:
    """Of 28 images in eights, two by two, the last four belong to a whole of twelve."""
    images, target = tiny.images(28)
    data = TensorDataset(images.double(), target)
    for build in (tiny.distiller, alone):
        small, large = build().double(), build().double()
        fit(small, DataLoader(data, batch_size=8), epochs=2, optimizer=plain_sgd(small), accumulate=2, cpu=True)
        fit(large, DataLoader(data, batch_size=16), epochs=2, optimizer=plain_sgd(large), cpu=True)
        for name, value in state(large).items():
            assert torch.allclose(state(small)[name], value, rtol=1e-10, atol=1e-12), name


def test_bad_numbers_in_a_later_batch_of_a_group_stop_before_its_step() -> None:
    for build in (tiny.distiller, alone):
        distiller = build()
        with pytest.raises(UserError, match=r"not finite at step 4 \(epoch 2\)"):
            fit(distiller, Poisoned(32, 8), epochs=3, accumulate=2, cpu=True)
        optim.check_finite(distiller)


def test_the_moving_average_equals_its_formula_and_is_what_is_evaluated() -> None:
    subject, twin = tiny.distiller(norm=True), tiny.distiller(norm=True)
    val = list(Loader(32, 16, seed=1))
    given: list[nn.Module] = []
    result = fit(
        subject,
        Loader(32, 8),
        val,
        epochs=1,
        optimizer=plain_sgd(subject),
        ema_decay=0.9,
        on_best=given.append,
        cpu=True,
    )
    optimizer = plain_sgd(twin)
    expected: dict[str, Tensor] = {}
    for index, batch in enumerate(Loader(32, 8)):
        optimizer.zero_grad()
        twin(batch).loss.backward()
        optimizer.step()
        for name, value in twin.student.state_dict().items():
            if not value.is_floating_point():
                continue
            expected[name] = value.clone() if index == 0 else 0.9 * expected[name] + 0.1 * value
    averaged = result.student.state_dict()
    for name, value in expected.items():
        assert torch.allclose(averaged[name], value, atol=1e-6), name
    assert set(averaged) == set(subject.student.state_dict())  # it loads into the plain model
    assert tiny.same_bytes(state(subject), state(twin))  # the student itself is not touched
    assert given == [result.student]
    result.student.eval()
    right = [(result.student(batch.images).argmax(-1) == batch.target).float().mean().item() for batch in val]
    assert result.last["top1"] == pytest.approx(sum(right) / 2)


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_whole_numbers_and_masks_survive_the_moving_average(decay: float) -> None:
    """A buffer with infinities is copied, as whole numbers are; a statistic of numbers is averaged."""
    student = nn.BatchNorm1d(3)
    student.register_buffer("index", torch.arange(3000))
    student.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    average = Average(student, decay)
    for value in (1.0, 3.0, 4.0):
        student.get_buffer("running_mean").fill_(value)
        student.get_buffer("num_batches_tracked").add_(1)
        average.update_parameters(student)
    assert torch.equal(average.module.get_buffer("index"), torch.arange(3000))
    assert torch.equal(average.module.get_buffer("mask"), student.get_buffer("mask"))
    assert average.module.get_buffer("num_batches_tracked") == 3
    expected = decay * (decay * 1 + (1 - decay) * 3) + (1 - decay) * 4
    assert average.module.get_buffer("running_mean")[0].item() == pytest.approx(expected)


def test_a_decay_that_is_none_is_one_line() -> None:
    with pytest.raises(UserError, match="a number from 0 to 1"):
        fit(alone(), Loader(16, 8), epochs=1, ema_decay=1.5, cpu=True)


def test_the_rate_is_a_function_of_epochs_done(tmp_path: Path) -> None:
    seen: list[float] = []

    def rate(done: float) -> float:
        seen.append(done)
        return 0.5

    distiller = alone()
    optimizer = plain_sgd(distiller)
    fit(distiller, Loader(32, 8), epochs=2, optimizer=optimizer, rate=rate, log=RunLog(tmp_path), cpu=True)
    assert seen == [step / 4 for step in range(8)]
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert [record["lr"] for record in records(tmp_path) if record["kind"] == "step"] == [0.05, 0.05]


def test_weight_schedules_see_the_share_of_training_done() -> None:
    distiller = tiny.distiller()
    seen: list[float] = []

    def weight(done: float) -> float:
        seen.append(done)
        return 1.0

    distiller.weights["feature"] = weight
    fit(distiller, Loader(32, 8), epochs=2, cpu=True)
    assert seen == [step / 8 for step in range(8)]


def test_label_free_training_and_validation(tmp_path: Path) -> None:
    source = tiny.distiller()
    assert source.teacher is not None
    distiller = Distiller(source.student, source.teacher.model, LabelFree(), terms=source.terms)
    val = list(Loader(17, 8, seed=1, labels=False))
    result = fit(distiller, Loader(32, 8, labels=False), val, epochs=3, log=RunLog(tmp_path), cpu=True)
    assert {"loss", "feature", "logit", "feature/correlation"} <= set(result.last)
    by_epoch = [record["val"]["loss"] for record in records(tmp_path) if record["kind"] == "epoch"]
    assert result.best["loss"] == min(by_epoch)
    assert result.best["epoch"] == by_epoch.index(min(by_epoch)) + 1
    assert result.last["loss"] == by_epoch[-1]


def test_best_is_the_highest_top1_and_last_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([{"top1": 0.2}, {"top1": 0.6}, {"top1": 0.6}, {"top1": 0.4}])
    monkeypatch.setattr("limbeck.training.fit.validate", lambda *_: next(figures))
    called: list[nn.Module] = []
    result = fit(alone(), Loader(16, 8), [], epochs=4, on_best=called.append, log=RunLog(tmp_path), cpu=True)
    assert result.best == {"epoch": 2, "top1": 0.6}  # the first of equals
    assert result.last == {"top1": 0.4}
    assert len(called) == 2


def test_what_an_epoch_ends_with_may_end_the_training_which_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early stopping from outside: told behind the checkpoint, so that nothing is lost."""

    class EnoughError(Exception):
        pass

    monkeypatch.setattr("limbeck.training.fit.validate", lambda *_: {"top1": 0.5})
    told: list[tuple[int, dict[str, float]]] = []

    def stop(epoch: int, figures: Mapping[str, float]) -> None:
        told.append((epoch, dict(figures)))
        if epoch == 2:
            raise EnoughError

    broken = Checkpoints(tmp_path / "broken")
    with pytest.raises(EnoughError):
        fit(alone(), Loader(16, 8), [], epochs=4, on_epoch=stop, checkpoints=broken, log=RunLog(tmp_path), cpu=True)
    assert told == [(1, {"top1": 0.5}), (2, {"top1": 0.5})]
    assert [record["epoch"] for record in records(tmp_path) if record["kind"] == "epoch"] == [1, 2]
    ended, whole = alone(), alone()
    fit(ended, Loader(16, 8), [], epochs=4, on_epoch=stop, checkpoints=broken, cpu=True)
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4]  # of a training that goes on the epochs to come
    fit(whole, Loader(16, 8), [], epochs=4, checkpoints=Checkpoints(tmp_path / "whole"), cpu=True)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, ended.student.state_dict()[name]), name


def test_without_validation_there_is_no_best() -> None:
    result = fit(alone(), Loader(16, 8), epochs=1, cpu=True)
    assert result.last == result.best == {}


def test_records_hold_unweighted_parts_and_readings_also_of_short_epochs(tmp_path: Path) -> None:
    distiller = tiny.distiller()
    fit(distiller, Loader(200, 8), epochs=2, log=RunLog(tmp_path), cpu=True)  # 25 batches an epoch
    got = records(tmp_path)
    assert [(record["kind"], record["step"]) for record in got] == [
        ("step", LOG_EVERY),
        ("step", 25),
        ("epoch", 25),
        ("step", 45),
        ("step", 50),
        ("epoch", 50),
    ]
    for record in got:
        if record["kind"] == "step":
            parts = record["parts"]
            assert record["loss"] == pytest.approx(parts["task"] + 0.5 * parts["feature"] + parts["logit"], rel=1e-5)
            assert set(record["readings"]) == {"feature/correlation", "feature/log_mean", "logit/agreement"}
    first, second, whole = (record if i < 2 else record["train"] for i, record in enumerate(got[:3]))
    assert whole["loss"] == pytest.approx((20 * first["loss"] + 5 * second["loss"]) / 25, rel=1e-6)


def test_no_batch_is_one_line() -> None:
    with pytest.raises(UserError, match="gives no batch"):
        fit(alone(), Loader(4, 8), epochs=1, cpu=True)
    empty = DataLoader(TensorDataset(*tiny.images(4)), batch_size=8, drop_last=True)
    with pytest.raises(UserError, match="gives no batch"):
        fit(alone(), empty, epochs=1, cpu=True)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(*tiny.images(4), strict=True))


def test_a_loader_without_a_length_is_one_line() -> None:
    with pytest.raises(UserError, match="has no length"):
        fit(alone(), DataLoader(Stream(), batch_size=2), epochs=1, cpu=True)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"epochs": 1, "accumulate": 0}])
def test_impossible_counts_are_one_line(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        fit(alone(), Loader(16, 8), cpu=True, **wrong)


def test_a_plain_data_loader_with_a_short_last_batch() -> None:
    loader = DataLoader(TensorDataset(*tiny.images(20)), batch_size=8, shuffle=True)
    result = fit(tiny.distiller(), loader, loader, epochs=2, cpu=True)
    assert result.counters.step == 6
    assert result.counters.images == 40


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_autocast_trains_float32_weights(precision: torch.dtype, accumulate: int) -> None:
    distiller = tiny.distiller()
    seen: list[torch.dtype] = []
    distiller.student.fc.register_forward_hook(lambda module, _, output: seen.append(output.dtype))
    more = {"epochs": 1, "precision": precision, "accumulate": accumulate, "cpu": True}
    result = fit(distiller, Loader(32, 8), list(Loader(8, 8)), **more)
    assert seen == [precision] * 4 * accumulate + [torch.float32]  # two passes if so; evaluation is in float32
    assert all(p.dtype == torch.float32 for p in distiller.trainable_parameters().values())
    assert math.isfinite(result.last["loss"])
