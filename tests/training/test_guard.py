"""Steps whose numbers are not finite: left out without a trace, limited, told, and never in a checkpoint."""

import copy
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import guarded
import tiny
from guarded import BATCHES, EPOCHS, Planted, train
from limbeck import Distiller, fit
from limbeck.errors import Stopped, UserError
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints, Counters
from limbeck.tasks import Classification
from limbeck.training import meter, optim
from limbeck.training.bad_batch import BAD_BATCH
from limbeck.training.guard import SMALLEST_SCALE, Guard, Skip
from training.test_resume import timeless

CPU = torch.device("cpu")
FAULTS: dict[str, dict[str, Any]] = {"inputs": {"inputs": ((1, 1),)}, "gradients": {"gradients": ((1, 1), (2, 2))}}


def steps_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in tiny.records(folder) if record["kind"] == kind]


@pytest.mark.parametrize("fault", ["gradients"])
def test_what_is_left_out_leaves_the_bytes_of_a_loop_that_puts_everything_back(fault: str) -> None:
    """The twin is torch's own loop; around the bad step it copies the whole distiller and goes on with the copy."""
    found = train(Planted(**FAULTS[fault]), skip=Skip())
    loader = Planted(**FAULTS[fault])
    subject = guarded.distiller()
    loader.plant(subject)
    optimizer = optim.adamw(subject, lr=0.01)
    blend = get_ema_multi_avg_fn(0.8)
    average = AveragedModel(subject.student, multi_avg_fn=blend, use_buffers=True)
    torch.manual_seed(5)
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        subject.train()
        for number, batch in enumerate(loader):
            before = copy.deepcopy([subject.student.state_dict(), subject.term_modules.state_dict()])
            subject.progress = (epoch + number / BATCHES) / EPOCHS
            subject(batch).loss.backward()
            if loader.is_bad:
                subject.student.load_state_dict(before[0])
                subject.term_modules.load_state_dict(before[1])
            else:
                nn.utils.clip_grad_norm_(subject.trainable_parameters().values(), 1.0)
                optimizer.step()
                average.update_parameters(subject.student)
            optimizer.zero_grad()
    for averaged, own in zip(average.module.buffers(), subject.student.buffers(), strict=True):
        if not own.is_floating_point():  # torch's average takes the mean of whole numbers
            averaged.copy_(own)
    assert found.result.counters.skipped == len(FAULTS[fault]["gradients"])
    assert tiny.same_bytes(found.state, guarded.state_of(subject, average.module, optimizer))


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("accumulate", [1, 2])
def test_where_nothing_is_drawn_it_is_as_if_the_batch_had_never_been_there(fault: str, accumulate: int) -> None:
    """With a constant rate; of a group that counts as one, all batches are left out."""
    found = train(Planted(**FAULTS[fault], draws=False), skip=Skip(), random=False, accumulate=accumulate)
    without = Planted(draws=False)
    places = next(iter(FAULTS[fault].values()))
    without.left_out = tuple(
        (epoch, number)
        for epoch, bad in places
        for number in range(BATCHES)
        if number // accumulate == bad // accumulate
    )
    expected = train(without, random=False, accumulate=accumulate)
    assert tiny.same_bytes(found.state, expected.state)
    assert found.result.counters.images == expected.result.counters.images
    assert found.result.counters.skipped == len(places)
    steps = EPOCHS * math.ceil(BATCHES / accumulate)
    assert found.result.counters.step == steps  # the place in the epoch is not given up


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_resumed_behind_a_step_that_was_left_out_it_ends_with_the_same_bytes_and_rate(
    tmp_path: Path, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "LOG_EVERY", 1)
    faults, skip = FAULTS["gradients"], Skip(factor=factor)
    unbroken = train(Planted(**faults), skip=skip, folder=tmp_path / "unbroken")
    records = timeless(tmp_path / "unbroken")
    rates = {record["step"]: record["lr"] for record in records if record["kind"] == "step"}
    assert rates == {
        step: pytest.approx(0.01 * (factor if step > 5 else 1))
        for step in range(1, EPOCHS * BATCHES + 1)
        if step not in (5, 9)
    }
    for at in range(2, EPOCHS * BATCHES):
        folder = tmp_path / str(at)
        with pytest.raises(Stopped):
            train(Stopping(at, **faults), skip=skip, folder=folder)
        torch.rand(3)
        found = train(Planted(**faults), skip=skip, folder=folder)
        assert tiny.same_bytes(found.state, unbroken.state), at
        assert found.result.counters.skipped == unbroken.result.counters.skipped == 2
        assert timeless(folder) == records, at
        assert steps_of(folder, "bad") == steps_of(tmp_path / "unbroken", "bad")


class Stopping(Planted):
    """Sends its process a signal while it makes a batch."""

    def __init__(self, at: int, **faults: Any) -> None:
        super().__init__(**faults)
        self.at = at

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.at -= 1
            if self.at == 0:
                signal.raise_signal(signal.SIGTERM)
            yield batch


def test_it_is_told_in_a_line_and_a_record(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(Planted(**FAULTS["gradients"]), skip=Skip(limit=2, factor=0.5), folder=tmp_path)
    bad = steps_of(tmp_path, "bad")
    assert [(each["step"], each["epoch"], each["skipped"], each["factor"]) for each in bad] == [
        (5, 2, 1, 0.5),
        (9, 3, 2, 0.25),
    ]
    said = " ".join(capfd.readouterr().err.split())
    assert "skipped, 1 of at most 2, and the learning rate is 0.5 of what it would be: the gradient is not" in said
    assert "skipped, 2 of at most 2, and the learning rate is 0.25 of what it would be" in said
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert bad[0]["images"] == order[8:16].tolist()
    assert json.loads((tmp_path / BAD_BATCH).read_text())["step"] == 9  # the last one


def test_a_run_that_was_killed_behind_it_tells_of_it_once(tmp_path: Path) -> None:
    """The log is ahead of the checkpoint by the step that is then left out again."""
    unbroken = train(Planted(**FAULTS["gradients"]), skip=Skip(), folder=tmp_path / "unbroken")
    loader = Planted(**FAULTS["gradients"])
    loader.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        train(loader, skip=Skip(), folder=tmp_path / "killed")
    assert [each["step"] for each in steps_of(tmp_path / "killed", "bad")] == [5]
    found = train(Planted(**FAULTS["gradients"]), skip=Skip(), folder=tmp_path / "killed")
    assert tiny.same_bytes(found.state, unbroken.state)
    assert found.result.counters.skipped == 2
    assert [each["step"] for each in steps_of(tmp_path / "killed", "bad")] == [5, 9]


def test_one_more_than_the_limit_stops_with_a_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at step 9 .*; steps skipped before: 1, and the most is 1"):
        train(Planted(**FAULTS["gradients"]), skip=Skip(limit=1), folder=tmp_path)
    assert [path.name for path in Checkpoints(tmp_path / "checkpoint").states()] == ["step-000000003", "step-000000006"]


def test_an_epoch_of_which_nothing_is_left_stops(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no step of epoch 2 could be taken"):
        train(Planted(inputs=tuple((1, n) for n in range(BATCHES))), skip=Skip(), folder=tmp_path, random=False)


@pytest.mark.parametrize("values", [{"limit": 0}, {"factor": 0.0}, {"factor": 1.5}, {"factor": math.nan}])
def test_what_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Skip: limit is"):
        Skip(**values)


@pytest.mark.parametrize("fault", ["inputs", "gradients"])
@pytest.mark.parametrize("skip", [None, Skip()])
def test_at_the_last_step_and_at_a_signal_no_checkpoint_has_it(tmp_path: Path, fault: str, skip: Skip | None) -> None:
    """The last step of an epoch, then one at which a signal comes."""
    planted: dict[str, Any] = {fault: ((1, BATCHES - 1),)}
    options = {"skip": skip, "folder": tmp_path, "random": False}
    if skip is None:
        for loader in (Planted(**planted), Stopping(BATCHES, **planted)):  # the second one starts in epoch 2
            with pytest.raises(UserError, match="not finite at step 6"):
                train(loader, **options)
        assert [path.name for path in Checkpoints(tmp_path / "checkpoint").states()] == ["step-000000003"]
    else:
        with pytest.raises(Stopped):
            train(Stopping(2 * BATCHES, **planted), **options)
    assert_finite(tmp_path)


def assert_finite(folder: Path) -> None:
    """All states that are kept."""
    states = Checkpoints(folder / "checkpoint").states()
    assert states
    subject = guarded.distiller(random=False)
    kept = {"student": subject.student, "terms": subject.term_modules}
    trainer, _ = Checkpoints(folder / "checkpoint").load(kept, CPU) or ({}, None)
    tensors = [value for module in kept.values() for value in module.state_dict().values()]
    tensors += [value for entry in trainer["optimizer"]["state"].values() for value in entry.values()]
    assert all(bool(value.isfinite().all()) for value in tensors if isinstance(value, Tensor))


@pytest.mark.parametrize("signaled", [False, True])
def test_a_finite_gradient_that_makes_parameters_infinite_reaches_no_checkpoint(tmp_path: Path, signaled: bool) -> None:
    subject = tiny.distiller()
    subject.weights["task"] = 1e6
    loader = StoppingTiny(6 if signaled else None)
    optimizer = torch.optim.SGD(subject.trainable_parameters().values(), lr=1e-9, momentum=0.9)
    with pytest.raises(
        UserError, match=r"not finite after step \d: student\.conv1\.weight.*the last checkpoint is from"
    ):
        fit(
            subject,
            loader,
            epochs=3,
            optimizer=optimizer,
            rate=lambda done: 1.0 if done < (1.25 if signaled else 1.75) else 3e47,
            checkpoints=Checkpoints(tmp_path),
            cpu=True,
        )
    assert [path.name for path in Checkpoints(tmp_path).states()] == ["step-000000004"]


class StoppingTiny(tiny.Loader):
    """Four batches an epoch; a signal with one of them."""

    def __init__(self, at: int | None) -> None:
        super().__init__(32, 8)
        self.at = at

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.at = self.at - 1 if self.at is not None else None
            if self.at == 0:
                signal.raise_signal(signal.SIGTERM)
            yield batch


def test_infinities_that_were_there_before_are_no_fault_and_new_ones_are(tmp_path: Path) -> None:
    """An attention mask is a buffer with infinities."""
    subject = Distiller(tiny.Net(4), None, Classification())
    subject.student.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    subject.student.register_buffer("seen", torch.zeros(1))
    fit(subject, tiny.Loader(16, 8), epochs=1, checkpoints=Checkpoints(tmp_path), cpu=True)

    def see(*_: Any) -> None:
        subject.student.seen.add_(math.inf)

    subject.student.register_forward_hook(see)
    with pytest.raises(UserError, match=r"not finite after step 4: student\.seen; "):
        fit(subject, tiny.Loader(16, 8), epochs=2, checkpoints=Checkpoints(tmp_path), cpu=True)


def made(subject: Distiller, scaler: torch.amp.GradScaler, *, late: bool = False) -> Guard:
    optimizer = optim.sgd(subject)
    kept = {"student": subject.student}
    counters = Counters()
    guard = Guard(
        subject,
        kept,
        optimizer,
        None,
        RunLog(),
        counters,
        autocast=lambda: torch.autocast("cpu", enabled=False),
        scaler=scaler,
    )
    guard.reads_at_once = not late
    return guard


def test_in_float16_a_gradient_that_overflows_is_the_scalers_and_a_scale_that_collapses_is_not() -> None:
    found = train(Planted(**FAULTS["gradients"]), precision=torch.float16, random=False)
    assert (found.result.counters.skipped, found.result.counters.step) == (0, EPOCHS * BATCHES)
    subject = tiny.distiller()
    scaler = torch.amp.GradScaler("cpu", init_scale=2 * SMALLEST_SCALE)
    scaler.scale(torch.ones(()))  # it makes its scale when it is first used
    guard = made(subject, scaler)
    guard.read()
    scaler.update(SMALLEST_SCALE / 2)
    with pytest.raises(
        UserError, match=r"not finite in float16 at step 0, however small the loss is made \(scale 0\.5\)"
    ):
        guard.read()


@pytest.mark.parametrize("fault", ["input", "gradient"])
def test_where_reads_are_rare_the_step_is_found_at_the_next_one(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is only said to be one; the step is taken, and reaches no checkpoint."""
    real = Guard

    def late(*values: Any, **named: Any) -> Guard:
        guard = real(*values, **named)
        guard.reads_at_once = False
        return guard

    monkeypatch.setattr("limbeck.training.fit.Guard", late)
    monkeypatch.setattr(meter, "LOG_EVERY", 2)
    real_read = meter.Meter._read
    monkeypatch.setattr(meter.Meter, "_read", lambda self: real_read(self) if self.is_recorded else None)
    loader = Planted(inputs=((1, 1),)) if fault == "input" else Planted(gradients=((1, 1),))
    expected = {
        "input": r"the loss is not finite at step 5 \(epoch 2\): .*; the input is not finite before it, the batch",
        "gradient": r"the gradient is not finite at step 5 \(epoch 2\): its norm is nan, the batch is in",
    }
    with pytest.raises(UserError, match=expected[fault]):
        train(loader, folder=tmp_path, random=False)
    assert [path.name for path in Checkpoints(tmp_path / "checkpoint").states()] == ["step-000000003"]
    told = json.loads((tmp_path / BAD_BATCH).read_text(encoding="utf-8"))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert (told["step"], told["first"], told["images"]) == (5, fault, order[8:16].tolist())
    assert not (tmp_path / BAD_BATCH).with_suffix(".safetensors").exists()  # the batch was gone
