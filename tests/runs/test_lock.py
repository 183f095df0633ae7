"""Two processes do not write one run folder, and a killed one stands in nobody's way."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import lock
from limbeck.runs.lock import LOCK, only_run_in
from limbeck.runs.run import run

CPU = torch.device("cpu")
HOLDER = """
import sys, time
from pathlib import Path
import torch
from limbeck.runs.lock import only_run_in
with only_run_in(Path(sys.argv[1]), torch.device("cpu")):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_second_run_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with only_run_in(tmp_path / "run", CPU):
        for _ in range(2):
            with (
                pytest.raises(UserError, match=r"another process is writing .*; wait until") as raised,
                only_run_in(tmp_path / "run", CPU),
            ):
                pass
            assert "\n" not in str(raised.value)
    with only_run_in(tmp_path / "run", CPU):
        pass


def test_one_that_may_wait_says_so_once_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    holder = FileLock(tmp_path / "run" / LOCK)
    holder.acquire()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            holder.release()

    monkeypatch.setattr(lock.time, "sleep", sleep)
    told: list[str] = []
    with only_run_in(tmp_path / "run", CPU, waiting=told.append):
        assert len(slept) == 3
    (line,) = told
    assert line.startswith(f"another process is writing {tmp_path / 'run'}, and this one needs what comes of it")


def test_one_that_may_wait_does_not_wait_for_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="cannot make or lock"), only_run_in(tmp_path / "run", CPU, waiting=print):
        pass


@pytest.mark.parametrize("ends", [True, False], ids=["ended", "given up"])
def test_two_runs_that_need_one_teacher_train_it_once(
    small: Recipe,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ends: bool,
) -> None:
    """The other run is planted: it holds the teacher's folder, and ends, or is given up and leaves nothing."""
    (trained,) = (finished.parent / "teachers").iterdir()
    teacher = tmp_path / "teachers" / trained.name
    shutil.copytree(trained, teacher, ignore=shutil.ignore_patterns("summary.json"))
    holder = FileLock(teacher / LOCK)
    holder.acquire()

    def sleep(_: float) -> None:
        if ends:
            shutil.copy(trained / "summary.json", teacher)
        else:
            shutil.rmtree(teacher)
        holder.release()

    monkeypatch.setattr(lock.time, "sleep", sleep)
    before = (teacher / "student.safetensors").stat().st_mtime_ns
    run(small.changed({"epochs": 1, "teacher_epochs": 2, "milestones": []}), tmp_path / "run")
    assert capfd.readouterr().err.count(f"another process is writing {teacher}, and this one needs") == 1
    assert ((teacher / "student.safetensors").stat().st_mtime_ns == before) == ends
    assert (teacher / "summary.json").is_file()


def test_a_run_in_a_held_folder_is_one_line_and_writes_nothing(small: Recipe, tmp_path: Path) -> None:
    with only_run_in(tmp_path / "run", CPU), pytest.raises(UserError, match="another process is writing"):
        run(small, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_lock_file_alone_is_an_empty_folder(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text("")
    with pytest.raises(UserError, match="no weights"):  # far behind the lock, and the folder is given up again
        run(small.changed({"teacher_weights": str(tmp_path / "missing")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is writing"), only_run_in(tmp_path, CPU):
            pass
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists()
    with only_run_in(tmp_path, CPU):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make or lock") as raised, only_run_in(tmp_path / "file" / "run", CPU):
        pass
    assert "\n" not in str(raised.value)
