"""A step whose loss is not finite: what is written of its batch, on the CPU and where reads come at records only."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import tiny
from limbeck.checkpoint import Counters
from limbeck.errors import UserError
from limbeck.meter import BAD_BATCH, LOG_EVERY, Meter
from limbeck.runlog import RunLog
from limbeck.train import fit


class Indexed(NamedTuple):
    images: Tensor
    target: Tensor
    index: Tensor


class Loader:
    """Batches of eight images with their numbers; one image is not finite."""

    def __init__(self, bad: int | None) -> None:
        self.images, self.target = tiny.images(32)
        if bad is not None:
            self.images[bad, 0, 0, 0] = math.inf

    def __len__(self) -> int:
        return 4

    def __iter__(self):
        for start in range(0, 32, 8):
            rows = torch.arange(start, start + 8)
            yield Indexed(self.images[rows], self.target[rows], rows)

    def set_epoch(self, epoch: int) -> None:
        pass

    def shard(self, rank: int, world_size: int) -> "Loader":
        return self


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_image_that_is_not_finite_is_found_at_its_step_and_its_batch_is_named(tmp_path: Path, accumulate: int):
    with pytest.raises(UserError, match=r"step \d \(epoch 1\).*the input is not finite before it, the batch is in "):
        fit(tiny.distiller(), Loader(bad=19), epochs=1, accumulate=accumulate, log=RunLog(tmp_path), cpu=True)
    told = json.loads((tmp_path / BAD_BATCH).read_text(encoding="utf-8"))
    assert told["step"] == (3 if accumulate == 1 else 2)
    assert told["images"] == list(range(16, 24 if accumulate == 1 else 32))
    assert told["first"] == "input"
    assert told["finite"]["input"] is False
    assert told["losses"]["loss"] == "nan"


def test_the_student_is_told_from_its_input(tmp_path: Path):
    distiller = tiny.distiller()
    with torch.no_grad():
        next(iter(distiller.student.parameters())).fill_(math.nan)
    with pytest.raises(UserError, match="the student is not finite before it"):
        fit(distiller, Loader(bad=None), epochs=1, log=RunLog(tmp_path), cpu=True)
    told = json.loads((tmp_path / BAD_BATCH).read_text(encoding="utf-8"))
    assert told["finite"] == {"input": True, "student": False}


def test_a_loss_alone_is_told_and_a_sound_run_leaves_no_such_file(tmp_path: Path):
    distiller = tiny.distiller()
    fit(distiller, Loader(bad=None), epochs=1, log=RunLog(tmp_path), cpu=True)
    assert not (tmp_path / BAD_BATCH).exists()
    distiller.weights["task"] = math.inf
    with pytest.raises(UserError, match="the weighted sum is inf, the batch is in"):
        fit(distiller, Loader(bad=None), epochs=1, log=RunLog(tmp_path), cpu=True)
    assert json.loads((tmp_path / BAD_BATCH).read_text(encoding="utf-8"))["first"] == "loss"


def test_on_another_device_the_right_batch_is_told_at_the_next_record(tmp_path: Path):
    """The device is only said to be one; what is kept of each step is what would lie on it."""
    distiller = tiny.distiller()
    good, bad = next(iter(Loader(None))), next(iter(Loader(3)))
    counters = Counters()
    meter = Meter(RunLog(tmp_path), counters, 0, torch.device("cuda"))
    for step in range(LOG_EVERY - 1):
        batch = bad._replace(index=bad.index + 100) if step == 5 else good
        meter.check(distiller(batch), distiller.task, [batch])
        counters.step += 1
    with pytest.raises(UserError, match="step 6 "):
        meter.check(distiller(good), distiller.task, [good])
    told = json.loads((tmp_path / BAD_BATCH).read_text(encoding="utf-8"))
    assert (told["step"], told["first"], told["images"][0]) == (6, "input", 100)
