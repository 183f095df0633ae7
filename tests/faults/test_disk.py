"""Disks that are full or read-only, folders that vanish: one line that names the place, and the run goes on later."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="points of writing are found by Linux's /proc"),
]

WORKER = Path(__file__).with_name("disk_worker.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
FLAGS = ["--data", "digits", "--train-limit", "200", "--teacher", "small/cnn-4", "--student", "small/cnn-2"]
FLAGS += ["--method", "projector", "--epochs", "3", "--batch-size", "50", "--probe", "3", "--probe-images", "16"]
FLAGS += ["--device", "cpu", "--precision", "float32", "--memory-format", "contiguous", "--compile", "off"]
BYTES = ("student.safetensors", "student_best.safetensors", "terms.safetensors", "samples.json")


@dataclass
class Done:
    """How a command ended."""

    code: int
    said: str
    points: dict[str, int]

    @property
    def error(self) -> str:
        """The one line of an error, which is the last thing that was said."""
        assert "Traceback" not in self.said, self.said
        lines = [line for line in self.said.splitlines() if line.startswith("limbeck: error: ")]
        assert len(lines) == 1, self.said
        assert self.said.splitlines()[-1] == lines[0]
        return lines[0]


class Worker:
    """The worker in a process of its own, where it may be in its own mount namespace."""

    def __init__(self, out: Path, prefix: list[str]) -> None:
        paths = os.pathsep.join([str(SOURCE), *(path for path in sys.path if path)])
        environment = os.environ | {"PYTHONPATH": paths, "LIMBECK_CACHE": str(out / "downloads"), "COLUMNS": "200"}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        out.mkdir()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(WORKER), str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **values: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def run(self, words: list[str], folder: Path, **fault: Any) -> Done:
        """A command; faults are at points of writing below the folder."""
        return Done(**self.ask(words=words, folder=str(folder), fault=fault))

    def mount(self, *words: str) -> None:
        """Mount, or skip the test."""
        if problem := self.ask(mount=words)["problem"]:
            pytest.skip(f"nothing can be mounted here ({problem})")

    def inside(self, path: Path) -> Path:
        """A path as the worker sees it, with what it has mounted."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(tmp_path_factory.mktemp("disk") / "worker", [])
    yield made
    made.close()


@pytest.fixture(scope="module")
def mounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount namespace of its own is not allowed here")
    made = Worker(tmp_path_factory.mktemp("mounts") / "worker", own)
    yield made
    made.close()


@pytest.fixture(scope="module")
def teacher(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk-teacher") / "run"
    words = ["train", "--data", "digits", "--model", "small/cnn-4", "--epochs", "2", "--device", "cpu"]
    done = worker.run([*words, "--out", str(folder)], folder)
    assert done.code == 0, done.said
    return folder


def command(teacher: Path, folder: Path, *more: str) -> list[str]:
    """What trains, or goes on with what is there."""
    if (folder / "recipe.yaml").is_file():
        return ["distill", "--resume", str(folder)]
    return ["distill", *FLAGS, "--teacher-weights", str(teacher), *more, "--out", str(folder)]


@pytest.fixture(scope="module")
def unbroken(worker: Worker, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """An undisturbed run, and how many points of writing it has."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    done = worker.run(command(teacher, folder), folder.parent)
    assert done.code == 0, done.said
    return folder, done.points


CACHED = ("--cache-views", "2", "--augmentation", "standard")


@pytest.fixture(scope="module")
def cached(worker: Worker, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The same with a teacher cache."""
    folder = tmp_path_factory.mktemp("cached") / "run"
    done = worker.run(command(teacher, folder, *CACHED), folder.parent)
    assert done.code == 0, done.said
    return folder, done.points


def assert_goes_on(worker: Worker, teacher: Path, folder: Path, unbroken: Path, *more: str) -> None:
    """With a disk that works again the run ends with the bytes of one that never met a fault."""
    done = worker.run(command(teacher, folder, *more), folder.parent)
    assert done.code == 0, done.said
    for name in BYTES:
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name


LONG = pytest.mark.long
SHARES = (0.7, 0.0, 0.35, 1.0)


@pytest.mark.parametrize("share", [SHARES[0], *(pytest.param(share, marks=LONG) for share in SHARES[1:])])
@pytest.mark.parametrize(("area", "number"), [("other", errno.ENOSPC), ("checkpoint", errno.EROFS)])
def test_a_disk_that_fails_from_some_point_on(
    worker: Worker,
    teacher: Path,
    unbroken: tuple[Path, dict[str, int]],
    tmp_path: Path,
    area: str,
    number: int,
    share: float,
) -> None:
    whole, points = unbroken
    point = 1 + round(share * (points[area] - 1))
    folder = tmp_path / "run"
    done = worker.run(command(teacher, folder), tmp_path, area=area, point=point, errno=number)
    assert done.code == 2, done.said
    assert str(folder) in done.error
    assert os.strerror(number) in done.error
    assert_goes_on(worker, teacher, folder, whole)


@pytest.mark.parametrize("share", [SHARES[0], *(pytest.param(share, marks=LONG) for share in SHARES[1:])])
def test_a_disk_that_fails_while_a_cache_is_made(
    worker: Worker, teacher: Path, cached: tuple[Path, dict[str, int]], tmp_path: Path, share: float
) -> None:
    whole, points = cached
    point = 1 + round(share * (points["cache"] - 1))
    folder = tmp_path / "run"
    done = worker.run(command(teacher, folder, *CACHED), tmp_path, area="cache", point=point, errno=errno.ENOSPC)
    assert done.code == 2, done.said
    assert str(tmp_path) in done.error
    assert "No space left" in done.error
    assert_goes_on(worker, teacher, folder, whole, *CACHED)


@pytest.mark.parametrize("most", [2000, pytest.param(6000, marks=LONG), pytest.param(12_000, marks=LONG)])
def test_files_that_may_not_grow(
    worker: Worker, teacher: Path, unbroken: tuple[Path, dict[str, int]], tmp_path: Path, most: int
) -> None:
    """The limit is the system's: the write itself fails in the middle, in Python, in Rust or in C++."""
    folder = tmp_path / "run"
    done = worker.run(command(teacher, folder), tmp_path, bytes=most)
    assert done.code == 2, done.said
    assert str(folder) in done.error
    assert "File too large" in done.error
    assert_goes_on(worker, teacher, folder, unbroken[0])


@pytest.mark.parametrize("size", [pytest.param(size, marks=LONG) for size in (4, 24, 64, 120)])
def test_a_small_disk_that_is_full_and_then_larger(
    mounting: Worker, teacher: Path, unbroken: tuple[Path, dict[str, int]], tmp_path: Path, size: int
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting.mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk))
    folder = disk / "run"
    done = mounting.run(command(teacher, folder), disk)
    assert done.code == 2, done.said
    assert str(folder) in done.error
    assert "No space left" in done.error
    mounting.mount("-o", "remount,size=10m", str(disk))
    inside = mounting.inside(folder)
    words = command(teacher, folder)
    if (inside / "recipe.yaml").is_file():
        words = ["distill", "--resume", str(folder)]
    done = mounting.run(words, disk)
    assert done.code == 0, done.said
    for name in BYTES:
        assert (inside / name).read_bytes() == (unbroken[0] / name).read_bytes(), name


def test_a_folder_that_can_only_be_read(
    mounting: Worker, teacher: Path, unbroken: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    """Nothing can be begun or gone on with there; a finished run can be asked for its figures."""
    disk = tmp_path / "disk"
    shutil.copytree(unbroken[0], disk / "done")
    shutil.copytree(unbroken[0], disk / "half")
    (disk / "half" / "summary.json").unlink()
    mounting.mount("--bind", str(disk), str(disk))
    mounting.mount("-o", "remount,bind,ro", str(disk))
    for folder, words in (
        (disk / "new", command(teacher, disk / "new")),
        (disk / "half", ["distill", "--resume", str(disk / "half")]),
    ):
        done = mounting.run(words, folder)
        assert done.code == 2, done.said
        assert str(folder) in done.error
        assert "Read-only file system" in done.error
    assert mounting.run(["evaluate", str(disk / "done")], disk).code == 0


@pytest.mark.parametrize("share", [SHARES[0], *(pytest.param(share, marks=LONG) for share in SHARES[1:])])
def test_a_run_folder_that_is_removed_under_the_run(
    worker: Worker, teacher: Path, unbroken: tuple[Path, dict[str, int]], tmp_path: Path, share: float
) -> None:
    whole, points = unbroken
    folder = tmp_path / "run"
    count = points["other"]
    point = 20 + round(share * (count - 20))  # behind the recipe: before it there is nothing to lose
    done = worker.run(command(teacher, folder), tmp_path, area="other", point=point, remove=str(folder))
    assert done.code == 2, done.said
    assert str(folder) in done.error
    shutil.rmtree(folder, ignore_errors=True)  # what a write behind the removal may have made
    assert_goes_on(worker, teacher, folder, whole)


@pytest.mark.parametrize("share", [0.2, pytest.param(0.8, marks=LONG)])
def test_a_cache_that_is_removed_while_it_is_made(
    worker: Worker, teacher: Path, cached: tuple[Path, dict[str, int]], tmp_path: Path, share: float
) -> None:
    whole, points = cached
    point = 4 + round(share * (points["cache"] - 4))
    folder = tmp_path / "run"
    gone = str(tmp_path / "caches")
    done = worker.run(command(teacher, folder, *CACHED), tmp_path, area="cache", point=point, remove=gone)
    assert done.code == 2, done.said
    assert gone in done.error
    shutil.rmtree(gone, ignore_errors=True)
    assert_goes_on(worker, teacher, folder, whole, *CACHED)


def test_a_cache_that_is_removed_while_it_is_read(
    worker: Worker, teacher: Path, cached: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    """The second epoch has another view, whose shards are gone."""
    whole, _ = cached
    folder = tmp_path / "run"
    gone = str(tmp_path / "caches")
    done = worker.run(command(teacher, folder, *CACHED), tmp_path, area="checkpoint", point=1, remove=gone)
    assert done.code == 2, done.said
    assert gone in done.error
    assert_goes_on(worker, teacher, folder, whole, *CACHED)


@pytest.mark.parametrize("cut", [1, pytest.param(400, marks=LONG)])
def test_a_log_that_ends_in_the_middle_of_a_line(
    worker: Worker, teacher: Path, unbroken: tuple[Path, dict[str, int]], tmp_path: Path, cut: int
) -> None:
    """Killed behind the second checkpoint; what the log lost behind its end is lost, and nothing else is."""
    whole, points = unbroken
    folder = tmp_path / "run"
    done = worker.run(
        command(teacher, folder), tmp_path, area="checkpoint", point=points["checkpoint"], errno=errno.EIO
    )
    assert done.code == 2, done.said
    log = folder / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-cut])
    assert_goes_on(worker, teacher, folder, whole)
    for line in log.read_text(encoding="utf-8").splitlines():
        json.loads(line)
