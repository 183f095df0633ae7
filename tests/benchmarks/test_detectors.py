"""The benchmark of the detectors runs on one small frame and says what it compares; its figures are not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux's /proc")
def test_it_compares_four_steps(tmp_path: Path):
    options = ["--pairs", "coco-fasterrcnn-r50-mv2", "--images", "1", "--frame", "128", "160", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "detectors.py"), *options, "--out", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert "student alone" in done.stdout
    pair = json.loads((tmp_path / "out.json").read_text())["pairs"]["coco-fasterrcnn-r50-mv2"]
    assert set(pair) == {"student alone", "by hand", "Limbeck, direct", "Limbeck, moments"}
    assert pair["student alone"]["ratio"] == [1.0, 1.0, 1.0]
    assert all(row["seconds"] > 0 and row["mib"] >= 0 for row in pair.values())
