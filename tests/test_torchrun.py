"""One process of several dies, or falls silent: the others end in time, and the same command brings the run back.

Real processes, started by ``torchrun`` as a user starts them.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from limbeck.storage.files import load_weights
from tiny import same_bytes

pytestmark = pytest.mark.processes

SOURCE = Path(__file__).resolve().parents[1] / "src"
EPOCHS, STEPS = 3, 50
FLAGS = f"""train --data digits --model small/cnn-8 --train-limit {20 * STEPS} --batch-size 20 --epochs {EPOCHS}
    --precision float32 --memory-format contiguous --device cpu --probe off --resume-if-begun""".split()
LIMIT = 200.0  # seconds for what must come to an end by itself


@dataclass
class Ended:
    """How a launcher ended."""

    code: int
    seconds: float  # since the fault, or the start
    said: str


@contextlib.contextmanager
def launched(
    folder: Path, *more: str, restarts: int = 0, flags: Sequence[str] = FLAGS, count: int = 2
) -> Iterator[subprocess.Popen[str]]:
    """``torchrun`` with two processes, or others; nothing of it is left behind."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", f"--max-restarts={restarts}"]
    command = [sys.executable, "-m", *launcher, "-m", "limbeck.cli", *flags, "--out", str(folder), *more]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "LIMBECK_CACHE": str(folder.parent)}
    with (folder.parent / f"{folder.name}.txt").open("w+", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True)
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for left in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        left.kill()
            process.wait()


def ended(process: subprocess.Popen[str], folder: Path) -> Ended:
    began = time.monotonic()
    code = process.wait(timeout=LIMIT)
    said = (folder.parent / f"{folder.name}.txt").read_text(encoding="utf-8")
    return Ended(code, time.monotonic() - began, said)


def steps(folder: Path) -> list[int]:
    """The steps of the records so far."""
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    found: list[int] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            found += [record["step"]] if record["kind"] == "step" else []
    return found


def when(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert process.poll() is None, "the launcher has ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def worker(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process {rank}")


def in_mid_epoch(process: subprocess.Popen[str], folder: Path) -> None:
    """Behind the first record of the second epoch: there is a checkpoint, and the log is ahead of it."""
    when(lambda: any(step > STEPS for step in steps(folder)), process)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    with launched(folder) as process:
        done = ended(process, folder)
    assert done.code == 0, done.said
    return folder


def assert_same_run(folder: Path, unbroken: Path) -> None:
    for name in ("student.safetensors", "student_best.safetensors"):
        assert same_bytes(load_weights(folder / name), load_weights(unbroken / name))
    assert steps(folder) == steps(unbroken)
    summaries = [json.loads((place / "summary.json").read_text(encoding="utf-8")) for place in (folder, unbroken)]
    assert summaries[0]["last"] == summaries[1]["last"]
    assert summaries[0]["best"] == summaries[1]["best"]


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_brings_a_run_back_that_lost_a_process(tmp_path: Path, unbroken: Path, rank: int) -> None:
    folder = tmp_path / "run"
    with launched(folder, restarts=1) as process:
        in_mid_epoch(process, folder)
        worker(process, rank).send_signal(signal.SIGKILL)
        done = ended(process, folder)
    assert done.code == 0, done.said
    assert "continuing from the end of epoch 1, step 50" in done.said
    assert_same_run(folder, unbroken)


@pytest.mark.long
def test_without_restarts_the_others_end_and_the_same_command_goes_on(tmp_path: Path, unbroken: Path) -> None:
    folder = tmp_path / "run"
    with launched(folder) as process:
        in_mid_epoch(process, folder)
        other = worker(process, 0)
        worker(process, 1).send_signal(signal.SIGKILL)
        done = ended(process, folder)
        assert not other.is_running()
    assert done.code != 0
    assert done.seconds < 60  # 30 of them are what torchrun gives a process that does not heed SIGTERM
    ours = [line for line in done.said.splitlines() if line.startswith("limbeck: ")]
    assert all(re.match(r"limbeck: error: process 0 cannot continue: another one of the 2 has ended", x) for x in ours)
    assert "limbeck/train.py" not in done.said  # no traceback of ours; torchrun's own is its own
    with launched(folder) as process:
        again = ended(process, folder)
    assert again.code == 0, again.said
    assert_same_run(folder, unbroken)


@pytest.mark.long
def test_a_launcher_that_is_told_to_end_lets_the_run_write_a_checkpoint(tmp_path: Path, unbroken: Path) -> None:
    """As a scheduler tells it before it takes the machine away."""
    folder = tmp_path / "run"
    with launched(folder) as process:
        in_mid_epoch(process, folder)
        process.send_signal(signal.SIGTERM)
        done = ended(process, folder)
    assert done.code != 0
    step = int(re.findall(r"stopped by SIGTERM after step (\d+); the checkpoint is written", done.said)[0])
    assert STEPS < step < 3 * STEPS
    assert "limbeck/train.py" not in done.said
    with launched(folder) as process:
        again = ended(process, folder)
    assert again.code == 0, again.said
    assert f"step {step}" in again.said
    assert_same_run(folder, unbroken)


@pytest.mark.long
def test_a_process_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    """Stopped, not dead: its connections stay open, and only the time limit tells."""
    folder = tmp_path / "run"
    with launched(folder, "--process-timeout", "5") as process:
        in_mid_epoch(process, folder)
        worker(process, 1).suspend()
        done = ended(process, folder)
    assert done.code != 0
    assert done.seconds < 5 + 60
    line = next(line for line in done.said.splitlines() if line.startswith("limbeck: error"))
    assert "process 0 cannot continue: another one of the 2 has ended or does not answer (Timed out" in line
    assert f"continue with: limbeck train --resume {folder}" in line
    assert "limbeck/train.py" not in done.said
