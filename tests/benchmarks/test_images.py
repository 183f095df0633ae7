"""The benchmark of the image pipeline runs and says what it compares; its figures are not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("size", [16, 80])
def test_it_prints_ratios(size: int):
    script = ROOT / "benchmarks" / "images.py"
    options = ["--size", str(size), "--images", "40", "--batch-sizes", "8", "--rounds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, check=True, env=environment
    )
    found = json.loads(done.stdout)
    assert (found["images"], found["size"]) == (40, size)
    assert found["batch size"]["8"]["ours / theirs"] > 0
    assert found["start-up, s"]["second"] > 0
