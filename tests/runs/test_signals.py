"""A scheduler's signal: the command ends with its exit code behind a checkpoint, and goes on to the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("interruptible")]

LIMIT = 120.0  # seconds


def command(folder: Path, weights: Path) -> list[str]:
    flags = ["--data", "digits", "--teacher", "small/cnn-4", "--student", "small/cnn-2", "--method", "projector"]
    flags += ["--train-limit", "300", "--epochs", "100", "--batch-size", "50", "--device", "cpu"]
    flags += ["--precision", "float32", "--memory-format", "contiguous", "--teacher-weights", str(weights)]
    return [sys.executable, "-m", "limbeck.cli", "distill", *flags, "--out", str(folder)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), check=False, capture_output=True, text=True, timeout=LIMIT)


def wait_for(path: Path, process: subprocess.Popen[str], word: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not (path.is_file() and word in path.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.long
def test_the_exit_codes_and_the_bytes(finished: Path, tmp_path: Path) -> None:
    weights = next((finished.parent / "teachers").iterdir())
    assert run(command(tmp_path / "whole", weights)).returncode == 0
    folder = tmp_path / "stopped"
    words = command(folder, weights)
    for signum, code, word in ((signal.SIGTERM, 143, '"kind": "epoch"'), (signal.SIGINT, 130, "continuing from")):
        with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) as process:
            wait_for(folder / "log.jsonl", process, word)
            process.send_signal(signum)
            _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == code, said
        assert f"stopped by {signum.name} after step" in said
        assert f"continue with: limbeck distill --resume {folder}" in said
        assert "Traceback" not in said
        words = [sys.executable, "-m", "limbeck.cli", "distill", "--resume", str(folder)]
    done = run(words)
    assert done.returncode == 0, done.stderr
    for name in ("student.safetensors", "terms.safetensors", "student_best.safetensors"):
        assert tiny.same_bytes(load_file(folder / name), load_file(tmp_path / "whole" / name))
