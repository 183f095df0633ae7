"""A writer that is killed, within a shard and between two, goes on and leaves the files of an unbroken one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache import subject as worker
from cache.subject import VIEWS, small_shards, subject
from limbeck.cache import writer


def killed(folder: Path, last: int) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(Path(worker.__file__)), str(folder), str(last)],
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.processes
@pytest.mark.long
def test_it_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """The first file that is synced is the card: killed at the fourth, two shards exist, and half of a third."""
    unbroken = small_shards(subject(tmp_path / "unbroken"), 1)
    unbroken.fill()
    killed(tmp_path / "c", 4)
    files = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert [name for name in files if name.endswith(".safetensors")] == [
        "view-0000-00000.safetensors",
        "view-0000-00001.safetensors",
    ]
    assert [name for name in files if name.startswith(".")] != []
    killed(tmp_path / "c", 1)  # and again, in its first shard: the card is there
    made = subject(tmp_path / "c")
    assert made.cache.card.layout.batches == 1  # the layout is that of the folder
    missing = made.cache.missing(VIEWS)
    assert len(missing) == len(made.cache.shards(VIEWS)) - 2
    made.fill()
    assert made.files() == unbroken.files()


def test_half_files_are_removed_once_no_writer_can_be_at_them(tmp_path: Path) -> None:
    made = subject(tmp_path / "c")
    made.cache.begin()
    old, young = tmp_path / "c" / ".view-0.1.tmp", tmp_path / "c" / ".view-0.2.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - writer._STALE - 1,) * 2)
    made.fill()
    assert not old.exists()
    assert young.exists()
