"""The short form of ``make faults``, and that it sees what it looks for."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "kills.py"


@pytest.fixture(scope="module")
def kills() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("kills")


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="it looks into Linux's /proc")
def test_killed_and_resumed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), *(path for path in sys.path if path)])
    out = tmp_path / "kills.json"
    words = ["--only", "cached", "ema", "--kills", "6", "--no-sweep", "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--out", str(out)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["wrong"] == []
    assert found["all"]["kills"] + found["all"]["signals"] >= 6
    assert found["all"]["lost"] == found["all"]["different"] == 0
    assert list(found["kinds"]) == ["cached", "ema"]


def write(folder: Path, weights: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "student.safetensors").write_text(weights)
    record = {"kind": "epoch", "step": 3, "val": {"top1": 0.5}, "seconds": 3.1}
    (folder / "log.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({"kind": "note", "text": "a"}) + "\n")


@pytest.mark.parametrize(("weights", "is_different"), [("right", False), ("wrong", True)])
def test_another_byte_is_seen(
    kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, is_different: bool
) -> None:
    """A training that is killed once and goes on to other weights than those of the unbroken run."""
    (tmp_path / "unbroken").mkdir()
    write(tmp_path / "unbroken" / "run", "right")
    codes = iter((-signal.SIGKILL, 0))

    def live(recipe: object, folder: Path, death: object) -> int:
        write(folder, weights)
        return next(codes)

    monkeypatch.setattr(kills, "live", live)
    counts = kills.Counts()
    deaths = iter((kills.Death(seconds=1.0), None))
    expected = kills.results(tmp_path / "unbroken")
    kills.broken(None, tmp_path / "killed", lambda: next(deaths), counts, expected)
    assert (counts.runs, counts.kills, counts.from_start, counts.lost) == (1, 1, 1, [])
    assert len(counts.different) == is_different
    if is_different:
        assert "run/student.safetensors;" in counts.different[0]


def test_a_run_that_cannot_go_on_is_lost(kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter((-signal.SIGKILL, 2))

    def live(recipe: object, folder: Path, death: object) -> int:
        (folder.parent / "said.txt").write_text("error: no checkpoint can be read\n")
        return next(codes)

    monkeypatch.setattr(kills, "live", live)
    counts = kills.Counts()
    deaths = iter((kills.Death(seconds=1.0), None))
    kills.broken(None, tmp_path / "killed", lambda: next(deaths), counts, {})
    assert counts.different == []
    assert len(counts.lost) == 1
    assert "error: no checkpoint can be read" in counts.lost[0]


@pytest.mark.parametrize("what", ["state", "shard"])
def test_what_was_there_and_is_gone_is_lost(
    kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The first child leaves a checkpoint or a shard, the second one takes it away and goes on as if nothing was."""
    place = tmp_path / "killed"
    files = {"state": "run/checkpoint/step-000000003/counters.json", "shard": "caches/a/view-0000-00000.safetensors"}
    lives = iter((-signal.SIGKILL, 0))

    def live(recipe: object, folder: Path, death: object) -> int:
        path = place / files[what]
        if path.exists():
            path.unlink()
        else:
            path.parent.mkdir(parents=True)
            path.write_text("{}")
        return next(lives)

    monkeypatch.setattr(kills, "live", live)
    counts = kills.Counts()
    deaths = iter((kills.Death(seconds=1.0), None))
    kills.broken(None, place, lambda: next(deaths), counts, {})
    assert len(counts.lost) == 1
    assert "became" in counts.lost[0]
