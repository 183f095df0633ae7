"""The clock of a part of every step: a planted slow teacher, events of a device that is behind, compiled code."""

import copy
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import tiny
from limbeck import Distiller, LogitTerm, fit
from limbeck.distiller import Clock, module
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Counters
from limbeck.tasks import Classification, LabelFree
from limbeck.training.guard import Guard
from limbeck.training.meter import Meter

CPU = torch.device("cpu")
PAUSE = 0.02


class Slow(nn.Module):
    """A teacher that takes 20 ms a batch: by a clock that nothing else moves, or by sleeping."""

    now = 0.0
    sleeps = False

    def __init__(self, width: int = tiny.CLASSES) -> None:
        super().__init__()
        self.fc = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        Slow.now += PAUSE
        if Slow.sleeps:
            time.sleep(PAUSE)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def _planted_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "now", 0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: Slow.now))


def slow(task: Classification | LabelFree | None = None) -> Distiller:
    return Distiller(tiny.Net(4), Slow(), task or Classification(), terms={"logit": LogitTerm()})


def times(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [r["teacher_seconds"] for r in map(json.loads, lines) if r["kind"] == "step" and "teacher_seconds" in r]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_records_have_what_a_slow_teacher_took(tmp_path: Path, accumulate: int) -> None:
    """25 batches: 20 in the first record, 5 in the second; without accumulation."""
    log = RunLog(tmp_path)
    fit(slow(), tiny.Loader(100, 4), epochs=2, accumulate=accumulate, log=log, cpu=True)
    found = times(tmp_path)
    assert len(found) == (4 if accumulate == 1 else 2)
    assert sum(found) == pytest.approx(50 * PAUSE)
    if accumulate == 1:
        assert found == pytest.approx([20 * PAUSE, 5 * PAUSE] * 2)


def test_a_teacher_that_sleeps_is_timed_by_the_clock_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is busy may take longer, but never less."""
    monkeypatch.setattr(Slow, "sleeps", True)
    monkeypatch.setattr(module, "time", time)
    began = time.perf_counter()
    fit(slow(), tiny.Loader(20, 4), epochs=1, log=RunLog(tmp_path), cpu=True)
    assert 5 * PAUSE <= sum(times(tmp_path)) < time.perf_counter() - began


def test_what_validation_asks_of_a_teacher_is_not_training(tmp_path: Path) -> None:
    distiller = slow(LabelFree())
    fit(distiller, tiny.Loader(8, 4), tiny.Loader(40, 4), epochs=1, log=RunLog(tmp_path), cpu=True)
    assert times(tmp_path) == pytest.approx([2 * PAUSE])
    before = distiller.clock.seconds
    distiller.eval()
    distiller.capture(tiny.images(4))
    assert distiller.clock.seconds == before


def test_a_student_that_learns_alone_has_no_teacher_to_time(tmp_path: Path) -> None:
    fit(Distiller(tiny.Net(4), None, Classification()), tiny.Loader(8, 4), epochs=1, log=RunLog(tmp_path), cpu=True)
    assert times(tmp_path) == []


def test_a_stop_in_mid_epoch_loses_nothing_of_it(tmp_path: Path) -> None:
    """3 batches before the stop, 1 behind it: the record has all four."""
    distiller = slow()
    distiller.train()
    optimizer = torch.optim.SGD(distiller.trainable_parameters().values(), lr=0.1)

    def meter() -> Meter:
        log, counters = RunLog(tmp_path), Counters()
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        guard = Guard(distiller, {}, optimizer, None, log, counters, autocast=torch.no_grad, scaler=scaler)
        return Meter(log, counters, 0, CPU, guard, distiller.clock)

    meters = [meter()]
    for batch in range(4):
        if batch == 3:
            state = meters[0].state()
            distiller.clock = Clock()  # of another process
            meters.append(meter())
            meters[-1].go_on(state)
        result = distiller(tiny.images(4))
        meters[-1].add(result, optimizer)
    meters[-1].finish()
    assert times(tmp_path) == pytest.approx([4 * PAUSE])


def test_a_copy_has_a_clock_of_its_own() -> None:
    distiller = slow()
    distiller.train()
    distiller(tiny.images(4))
    assert distiller.clock.seconds is not None
    assert copy.deepcopy(distiller).clock.seconds is None


class Event:
    """An event of a device that is `behind` the host: past once the device has come so far."""

    done = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at = -1

    def record(self) -> None:
        self.at = Event.recorded = Event.recorded + 1

    def query(self) -> bool:
        return self.at <= Event.done

    def elapsed_time(self, other: "Event") -> float:
        assert self.at <= Event.done >= other.at, "an event was read that is not past, which would wait for it"
        return 1000.0 * (other.at - self.at)


def test_events_are_read_once_they_are_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece of work lies between two events, one second apart; a GPU has them, here they are planted."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "recorded", 0, raising=False)
    monkeypatch.setattr(Event, "done", 0)
    timer = Clock()
    for _ in range(3):
        assert timer(torch.device("cuda"), lambda: "work") == "work"
    assert timer.seconds == 0.0, "the device has done nothing yet"
    Event.done = 3  # the first piece, and half of the second
    assert timer.seconds == 1.0
    Event.done = 6
    assert timer.seconds == timer.seconds == 3.0
    for _ in range(100):  # nobody reads, as in a loop of one's own
        Event.done += 2
        timer(torch.device("cuda"), lambda: None)
    assert len(timer._pending) <= 2
    assert timer.seconds == 103.0


@pytest.mark.gpu
def test_a_gpu_times_what_it_computes() -> None:
    timer, device = Clock(), torch.device("cuda")
    x = torch.randn(2048, 2048, device=device)
    for _ in range(20):
        timer(device, lambda: x @ x)
    torch.cuda.synchronize()
    assert 0 < (timer.seconds or 0.0) < 10


def test_devices_that_return_at_once_are_not_timed() -> None:
    timer = Clock()
    assert timer(torch.device("mps"), lambda: 3) == 3
    assert timer.seconds is None


def test_compiled_code_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Clock()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert timer(CPU, lambda: 3) == 3
    assert timer.seconds is None
