"""Figures 2 and 3 as a command: runs that begin alike, tables that agree with the logs, nothing made twice."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "projector_figures.py"

BASE = {
    "data": "digits",
    "teacher": "small/cnn-4",
    "student": "small/cnn-2",
    "train_limit": 200,
    "epochs": 1,
    "batch_size": 50,
    "precision": "float32",
    "memory_format": "channels_last",
    "device": "cpu",
    "probe": 2,
    "probe_images": 64,
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("projector_figures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def probes(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "probe"]


def test_the_figures_of_two_seeds(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    out = tmp_path / "out"
    monkeypatch.setattr(script, "PROJECTORS", {"mlp64": script.PROJECTORS["mlp64"]})
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "base.yaml"), "--seeds", "0", "1", "--out", str(out)])
    script.main()
    names = [*script.NORMS, *script.PROJECTORS]
    folders = sorted(path.name for path in out.glob("*-s*"))
    assert folders == sorted(f"{name}-s{seed}" for name in names for seed in (0, 1))
    # The same W, before training, whatever norm is behind it.
    first = {name: probes(out / f"{name}-s0")[0]["terms"]["feature"]["spectrum"]["values"] for name in script.NORMS}
    assert first["none"] == first["l2"] == first["batch"]
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    plain, unit, decorrelation = figures["tables"]
    ends = [probes(out / f"l2-s{seed}")[-1]["terms"]["feature"]["spectrum"]["stable_rank"] for seed in (0, 1)]
    row = next(row for row in plain["rows"] if row[0] == "stable rank")
    assert row[plain["heads"].index("l2")].startswith(f"{sum(ends) / 2:.2f} ± ")
    assert unit["rows"] != plain["rows"]
    assert [row[0] for row in decorrelation["rows"]] == ["linear", "mlp64"]
    page = (out / "figures.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    before = {path: path.stat().st_mtime_ns for path in out.glob("*-s*/summary.json")}
    script.main()
    assert {path: path.stat().st_mtime_ns for path in before} == before
