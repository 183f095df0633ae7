"""Whole commands with ``--compile on``: they end well, and the record says what the compiler did."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compiled_commands import COMMANDS

WORKER = Path(__file__).parent.parent / "compiled_commands.py"


def done(folder: Path, backend: str, name: str) -> list[Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(WORKER), backend, name]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith('["')]


def check(folder: Path, backend: str, name: str) -> None:
    assert done(folder, backend, name) == [[words, 0] for words in COMMANDS[name]]
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("summary.json")]
    assert summaries
    for summary in summaries:
        assert summary["compiled"]["student"]["graphs"] >= 1
        assert all(part["plain"] == 0 and part["graphs"] >= 1 for part in summary["compiled"].values()), summary
        assert ("teacher" in summary["compiled"]) == (summary["method"] not in ("alone", "none"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.long
def test_a_distillation_its_resumption_and_what_comes_after(tmp_path: Path) -> None:
    check(tmp_path, "eager", "distill")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_comparison_goes_on_after_its_first_method(tmp_path: Path) -> None:
    check(tmp_path, "eager", "compare")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", COMMANDS)
def test_whole_commands_with_the_real_compiler(tmp_path: Path, name: str) -> None:
    check(tmp_path, "inductor", name)
