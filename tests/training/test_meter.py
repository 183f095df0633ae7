"""The means of an epoch, with steps that were left out, and in mid-epoch."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from limbeck import Distiller
from limbeck.distiller import StepResult
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Counters
from limbeck.training import meter, optim
from limbeck.training.guard import Guard
from limbeck.training.meter import Meter

CPU = torch.device("cpu")


def measured(folder: Path, subject: Distiller) -> tuple[Meter, Counters, torch.optim.Optimizer]:
    log, counters, optimizer = RunLog(folder, progress=False), Counters(), optim.sgd(subject)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    guard = Guard(subject, {}, optimizer, None, log, counters, autocast=torch.no_grad, scaler=scaler)
    return Meter(log, counters, 0, CPU, guard), counters, optimizer


def result(loss: float) -> StepResult:
    value: Tensor = torch.tensor(loss)
    return StepResult(value, {"task": value / 2}, torch.zeros(8, 3), {"task/reading": value * 3})


def test_steps_that_were_left_out_are_in_no_mean_and_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LOG_EVERY", 3)
    found, counters, optimizer = measured(tmp_path, tiny.distiller())
    for loss in (1.0, math.nan, 3.0, math.nan, math.nan, math.nan, 8.0):
        found.add(result(loss), optimizer, taken=not math.isnan(loss))
        counters.step += 1
    means = found.finish()
    assert (means["loss"], means["task"]) == (4.0, 2.0)
    assert counters.images == 3 * 8
    steps = [record for record in tiny.records(tmp_path) if record["kind"] == "step"]
    assert [(step["loss"], step["readings"]["task/reading"]) for step in steps] == [(2.0, 9.0), (8.0, 24.0)]


def test_an_epoch_without_a_step_has_no_mean(tmp_path: Path) -> None:
    found, _, optimizer = measured(tmp_path, tiny.distiller())
    found.add(result(math.nan), optimizer, taken=False)
    with pytest.raises(UserError, match="no step of epoch 1 could be taken"):
        found.finish()


def test_it_goes_on_from_its_state(tmp_path: Path) -> None:
    losses = (1.0, math.nan, 2.0, 6.0)
    whole, _, optimizer = measured(tmp_path / "whole", tiny.distiller())
    for loss in losses:
        whole.add(result(loss), optimizer, taken=not math.isnan(loss))
    first, _, _ = measured(tmp_path / "parts", tiny.distiller())
    for loss in losses[:2]:
        first.add(result(loss), optimizer, taken=not math.isnan(loss))
    second, _, _ = measured(tmp_path / "parts", tiny.distiller())
    second.go_on(first.state())
    for loss in losses[2:]:
        second.add(result(loss), optimizer)
    left, right = whole.finish(), second.finish()
    assert left["loss"] == right["loss"] == 3.0
    assert left["task"] == right["task"]


@pytest.mark.parametrize(("waited", "seconds", "lines"), [(4.0, 10.0, 1), (2.0, 10.0, 0), (4.0, 4.0, 0)])
def test_an_epoch_whose_threads_waited_for_a_core_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: float, seconds: float, lines: int
) -> None:
    delays = iter([0.0, waited])
    monkeypatch.setattr(meter, "run_delay", lambda: next(delays))
    found, _, optimizer = measured(tmp_path, tiny.distiller())
    found.add(result(1.0), optimizer)
    found._began -= seconds
    found.finish()
    said = [record["text"] for record in tiny.records(tmp_path) if record["kind"] == "note"]
    assert len(said) == lines
    assert all("threads waited for a core 40% of the first epoch" in line for line in said)
