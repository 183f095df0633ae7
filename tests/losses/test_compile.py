"""Every loss compiles into one graph, as a user has it: a process without the run-time shape checks of the tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("compile_worker.py")


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    """Loss -> largest difference between the compiled and the plain value, or the error's first line."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, str(WORKER)], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.long
def test_every_loss_compiles_into_one_graph(differences: dict[str, float | str]) -> None:
    assert len(differences) >= 8
    wrong = {name: found for name, found in differences.items() if isinstance(found, str) or not found < 1e-5}
    assert wrong == {}
