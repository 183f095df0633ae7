import contextlib
import errno
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck import checkpoint
from limbeck.checkpoint import Checkpoints, Counters, load_weights, replacing, save_json, save_text, save_weights
from limbeck.errors import UserError
from reference import as_a_user

CPU = torch.device("cpu")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def kept(value: float = 1.0) -> dict[str, nn.Module]:
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    nn.init.constant_(student[0].weight, value)
    return {"student": student, "terms": nn.ModuleDict()}


def save(folder: Path, step: int, value: float = 1.0) -> Path:
    return Checkpoints(folder).save(kept(value), {"optimizer": {"lr": value}}, Counters(epoch=step, step=step), CPU)


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    modules = kept()
    parameters = list(modules["student"].parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    modules["student"](torch.randn(4, 2)).sum().backward()
    optimizer.step()
    counters = Counters(epoch=3, step=21, best={"epoch": 2, "top1": 0.5}, seconds=1.5, images=84)
    with as_a_user():  # the tests' checker of annotations draws random numbers itself
        Checkpoints(tmp_path).save(modules, {"optimizer": optimizer.state_dict()}, counters, CPU)
        drawn = (torch.rand(3), random.random())
        others = kept(7.0)
        loaded = Checkpoints(tmp_path).load(others, CPU)
        again = (torch.rand(3), random.random())
    assert loaded is not None
    trainer, other_counters = loaded
    assert other_counters == counters
    assert torch.equal(again[0], drawn[0])
    assert again[1] == drawn[1]
    for name, value in modules["student"].state_dict().items():
        assert torch.equal(value, others["student"].state_dict()[name])
    moments = trainer["optimizer"]["state"][0]["exp_avg_sq"]
    assert torch.equal(moments, optimizer.state_dict()["state"][0]["exp_avg_sq"])
    assert set(trainer) == {"optimizer"}


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "missing").load(kept(), CPU) is None


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step, float(step))
    assert [path.name for path in Checkpoints(tmp_path).states()] == ["step-000000002", "step-000000010"]
    loaded = Checkpoints(tmp_path).load(kept(), CPU)
    assert loaded is not None
    assert loaded[0]["optimizer"]["lr"] == 10.0
    save(tmp_path, 10, 11.0)  # the same step again takes its place
    loaded = Checkpoints(tmp_path).load(kept(), CPU)
    assert loaded is not None
    assert loaded[0]["optimizer"]["lr"] == 11.0


@pytest.mark.parametrize("failing", ["_save_tensors", "torch.save", "os.fsync"])
def test_a_failure_in_the_middle_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    save(tmp_path, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    module, _, name = failing.rpartition(".")
    target = {"": checkpoint, "torch": torch, "os": os}[module]
    monkeypatch.setattr(target, name, full)
    with pytest.raises(UserError, match="No space left on device") as raised:
        save(tmp_path, 2)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert Checkpoints(tmp_path).load(kept(), CPU) is not None


def test_what_a_killed_process_left_is_no_state_and_is_cleared(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".writing-killed").mkdir()
    (tmp_path / ".writing-killed" / "student.safetensors").write_bytes(b"half")
    (tmp_path / "step-000000009").mkdir()  # half removed: without counters
    assert [path.name for path in Checkpoints(tmp_path).states()] == ["step-000000001"]
    save(tmp_path, 2)
    assert not (tmp_path / ".writing-killed").exists()


@pytest.mark.parametrize("file", ["student.safetensors", "trainer.pt", "counters.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_one_line(tmp_path: Path, file: str, share: float) -> None:
    path = save(tmp_path, 1) / file
    written = path.read_bytes()
    path.write_bytes(written[: int(len(written) * share)])
    with pytest.raises(UserError) as raised:
        Checkpoints(tmp_path).load(kept(), CPU)
    assert "step-000000001" in str(raised.value)
    assert "\n" not in str(raised.value)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("raw", [True, False])
def test_no_code_is_executed(tmp_path: Path, raw: bool) -> None:
    folder, witness = save(tmp_path / "checkpoint", 1), tmp_path / "executed"
    if raw:
        (folder / "trainer.pt").write_bytes(pickle.dumps(Malicious(witness)))
    else:
        torch.save({"optimizer": Malicious(witness), "random": {}}, folder / "trainer.pt")
    with pytest.raises(UserError, match="cannot be read") as raised:
        Checkpoints(tmp_path / "checkpoint").load(kept(), CPU)
    assert "\n" not in str(raised.value)
    assert not witness.exists()


def test_a_state_of_another_model_is_one_line(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(UserError, match="does not fit this run's student") as raised:
        Checkpoints(tmp_path).load({"student": nn.Linear(5, 5)}, CPU)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="average"):
        Checkpoints(tmp_path).load({**kept(), "average": nn.Linear(1, 1)}, CPU)
    counters = tmp_path / "step-000000001" / "counters.json"
    counters.write_text(json.dumps({"epoch": 1, "from_the_future": 2}))
    with pytest.raises(UserError, match="from_the_future"):
        Checkpoints(tmp_path).load(kept(), CPU)


def test_tied_weights_are_saved_twice_and_load_strictly(tmp_path: Path) -> None:
    model = Tied()
    save_weights(model.state_dict(), tmp_path / "student.safetensors")
    state = load_weights(tmp_path / "student.safetensors")
    assert set(state) == set(model.state_dict())
    other = Tied()
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.second.weight, model.first.weight)
    assert other.second.weight is other.first.weight


def test_strided_weights_are_saved(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    save_weights({**conv.state_dict(), "view": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "a.safetensors")
    state = load_weights(tmp_path / "a.safetensors")
    assert torch.equal(state["weight"], conv.weight)
    assert torch.equal(state["view"], torch.arange(6.0).reshape(2, 3).T)


def test_bad_weight_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights file"):
        load_weights(tmp_path / "missing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_weights(tmp_path / "bad.safetensors")


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    save_json({"a": 1}, path)
    with contextlib.suppress(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    save_text("whole", path)
    assert path.read_text() == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_text("x", tmp_path / "file" / "below")
