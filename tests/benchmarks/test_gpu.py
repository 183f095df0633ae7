"""What runs first on a machine with a GPU has run here before, in tiny sizes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")


@pytest.mark.parametrize("part", ["dense", "images"])
def test_a_part_runs_on_a_cpu(part: str) -> None:
    found = gpu.PARTS[part](gpu.REHEARSAL, CPU, 60.0, None)
    assert "<table>" in gpu.table(found)
    assert "failed" not in json.dumps(found)


def test_a_machine_without_a_gpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "no CUDA device here; --rehearse" in capsys.readouterr().err


@pytest.mark.long
def test_all_parts_are_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--out", str(tmp_path)])
    assert gpu.main() == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert list(record["parts"]) == list(gpu.PARTS)
    commands = record["parts"]["commands"]["found"]
    assert {way["exit code"] for way in commands.values()} == {0}
    assert "bf16" in commands["compiled, bf16"]["kd-seed0"]
    assert {found["exit code"] for name, found in record["parts"]["training"]["found"].items() if name != "epochs"} == {
        0
    }
    assert "<h2>detector</h2>" in (tmp_path / "gpu.html").read_text()
