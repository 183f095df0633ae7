import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import resume_worker
import tiny
from limbeck import Distiller, fit
from limbeck.errors import UserError
from limbeck.storage.checkpoint import Checkpoints
from limbeck.training import meter, optim
from resume_worker import BATCHES, EPOCHS, Outcome, train
from tiny import Loader

TIMES = ("seconds", "images_per_second", "teacher_seconds")


def timeless(folder: Path) -> list[dict[str, Any]]:
    """Steps and epochs of the log, without what a clock decides."""
    kept = [record for record in tiny.records(folder) if record["kind"] in ("step", "epoch")]
    for record in kept:
        for part in (record, record.get("train", {})):
            for name in TIMES:
                part.pop(name, None)
    return kept


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested state to path and leaf."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{path}/{key}").items()}
    return {path: value}


def assert_same(a: Outcome, b: Outcome) -> None:
    assert tiny.same_bytes(a.student, b.student)
    assert tiny.same_bytes(a.average, b.average)
    assert tiny.same_bytes(a.terms, b.terms)
    assert a.figures == b.figures
    left, right = flat(a.optimizer), flat(b.optimizer)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]) if isinstance(value, Tensor) else value == right[name], name


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record in the middle of each epoch, so that a log can be ahead of its checkpoint."""
    monkeypatch.setattr(meter, "LOG_EVERY", resume_worker.LOG_EVERY)


@pytest.mark.parametrize("kind", [{}, {"adamw": True}, {"shuffled": True}])
def test_broken_off_anywhere_it_ends_with_the_bytes_of_an_unbroken_run(tmp_path: Path, kind: dict[str, bool]) -> None:
    unbroken = train(tmp_path / "unbroken", **kind)
    assert len(timeless(tmp_path / "unbroken")) == 3 * EPOCHS
    for stops in ([2], [BATCHES], [BATCHES + 2], [2 * BATCHES + 1, 1, BATCHES + 1], [EPOCHS * BATCHES - 1]):
        folder = tmp_path / "-".join(map(str, stops))
        for stop in stops:  # killed, resumed, killed again
            with pytest.raises(KeyboardInterrupt):
                train(folder, stop_after=stop, **kind)
            torch.rand(7)  # a new process does not go on where this one's generator stands
        assert_same(train(folder, **kind), unbroken)
        assert timeless(folder) == timeless(tmp_path / "unbroken"), stops


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
                "1.25 GiB is free. Including non-PyTorch memory"
            ),
            r"2\.00 GiB more were needed, 1\.25 GiB of 79\.15 GiB were free",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: you tried to allocate 64 bytes."),
            "64 bytes more were needed",
        ),
    ],
)
def test_out_of_memory_in_a_step_is_one_line_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    unbroken = train(tmp_path / "unbroken")
    calls = iter(range(1000))
    plain = Distiller.forward

    def forward(self: Distiller, batch: Any, *more: Any) -> Any:
        if next(calls) == BATCHES + 1:
            raise error
        return plain(self, batch, *more)

    monkeypatch.setattr(Distiller, "forward", forward)
    with pytest.raises(UserError, match=rf"out of memory in step {BATCHES + 2} with \d+ images in a batch \({said}"):
        train(tmp_path / "broken")
    assert_same(train(tmp_path / "broken"), unbroken)


def test_a_finished_run_is_only_measured_again(tmp_path: Path) -> None:
    first = train(tmp_path)
    log = timeless(tmp_path)
    assert_same(train(tmp_path), first)
    assert timeless(tmp_path) == log


@pytest.mark.processes
def test_killed_while_it_writes_a_checkpoint(tmp_path: Path) -> None:
    unbroken = train(tmp_path / "unbroken")
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(Path(resume_worker.__file__)), str(tmp_path / "killed")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(path.name for path in (tmp_path / "killed" / "checkpoint").iterdir())
    assert left[0].startswith(".writing-")  # half a checkpoint
    assert left[1:] == [f"step-{step:09d}" for step in (BATCHES, 2 * BATCHES)]
    assert timeless(tmp_path / "killed")[-1]["step"] == 3 * BATCHES  # the log is ahead of the checkpoint
    assert_same(train(tmp_path / "killed"), unbroken)
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "unbroken")
    assert not any(path.name.startswith(".") for path in (tmp_path / "killed").rglob("*"))


def test_another_optimizer_is_one_line(tmp_path: Path) -> None:
    distiller = tiny.distiller()
    fit(distiller, Loader(16, 8), epochs=1, checkpoints=Checkpoints(tmp_path), cpu=True)
    with pytest.raises(UserError, match="is of another optimizer") as raised:
        fit(
            distiller,
            Loader(16, 8),
            epochs=2,
            optimizer=optim.adamw(distiller),
            checkpoints=Checkpoints(tmp_path),
            cpu=True,
        )
    assert "\n" not in str(raised.value)


def test_another_student_is_one_line(tmp_path: Path) -> None:
    fit(tiny.distiller(), Loader(16, 8), epochs=1, checkpoints=Checkpoints(tmp_path), cpu=True)
    with pytest.raises(UserError, match="does not fit this run's student"):
        fit(tiny.distiller(norm=True), Loader(16, 8), epochs=2, checkpoints=Checkpoints(tmp_path), cpu=True)
