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

from limbeck.errors import UserError
from limbeck.storage import checkpoint, manifest
from limbeck.storage.checkpoint import Checkpoints, Counters
from limbeck.storage.files import load_weights, replacing, save_json, save_text, save_weights
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


@pytest.mark.parametrize("failing", ["write_tensors", "torch.save", "os.fsync"])
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


FILES = ["student.safetensors", "terms.safetensors", "trainer.pt", "counters.json", "manifest.json"]


def damage(path: Path, how: str) -> None:
    written = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(written[: len(written) // 2])
    else:
        path.write_bytes(written[:10] + bytes([written[10] ^ 16]) + written[11:])


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_state_is_passed_over_and_named(tmp_path: Path, file: str, how: str) -> None:
    save(tmp_path, 1, 1.0)
    damage(save(tmp_path, 2, 2.0) / file, how)
    checkpoints, modules = Checkpoints(tmp_path), kept(7.0)
    loaded = checkpoints.load(modules, CPU)
    assert loaded is not None
    assert loaded[0]["optimizer"]["lr"] == 1.0
    assert float(modules["student"].state_dict()["0.weight"][0, 0]) == 1.0
    assert len(checkpoints.skipped) == 1
    assert checkpoints.skipped[0].startswith("step-000000002: ")
    assert file in checkpoints.skipped[0]
    expected = {"missing": "missing", "truncated": "truncated", "flipped": "checksum"}[how]
    assert expected in checkpoints.skipped[0] or file == "manifest.json"
    save(tmp_path, 2, 3.0)  # continuing from the first one, its second state takes the place of the damaged one
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load(kept(), CPU) is not None
    assert checkpoints.skipped == []


def test_states_behind_a_damaged_one_do_not_push_out_the_good_one(tmp_path: Path) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20) / "trainer.pt", "flipped")
    save(tmp_path, 15)  # in mid-epoch, after continuing from 10
    assert [path.name for path in Checkpoints(tmp_path).states()] == ["step-000000010", "step-000000015"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000015"]


def test_all_damaged_is_one_line_that_names_each(tmp_path: Path) -> None:
    damage(save(tmp_path, 1) / "trainer.pt", "truncated")
    damage(save(tmp_path, 2) / "student.safetensors", "missing")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read") as raised:
        Checkpoints(tmp_path).load(kept(), CPU)
    message = str(raised.value)
    assert "step-000000001: trainer.pt is truncated" in message
    assert "step-000000002: 'student.safetensors' is missing" in message
    assert "\n" not in message


def test_a_state_of_the_first_layout_loads(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, 5.0)
    (folder / "manifest.json").unlink()
    numbers = json.loads((folder / "counters.json").read_text())
    (folder / "counters.json").write_text(json.dumps({k: v for k, v in numbers.items() if k in FIRST_LAYOUT}))
    loaded = Checkpoints(tmp_path).load(kept(), CPU)
    assert loaded is not None
    assert loaded[0]["optimizer"]["lr"] == 5.0
    assert loaded[1] == Counters(epoch=3, step=3)


FIRST_LAYOUT = ("epoch", "step", "best", "seconds", "images")


def test_a_state_of_a_later_layout_is_neither_read_nor_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    numbers = json.loads((folder / "counters.json").read_text())
    (folder / "counters.json").write_text(json.dumps(numbers | {"layout": 3}))
    manifest.seal(folder)
    with pytest.raises(UserError, match="of layout 3, which a newer version"):
        Checkpoints(tmp_path).load(kept(), CPU)


def test_flipped_bits_never_give_a_wrong_state(tmp_path: Path) -> None:
    """500 bits, one after the other, in either of two states: what is loaded is one of the two as it was written."""
    paths = [save(tmp_path, step, float(step)) for step in (1, 2)]
    states = {step: load_weights(paths[step - 1] / "student.safetensors") for step in (1, 2)}
    files = [file for path in paths for file in sorted(path.iterdir())]
    draw = random.Random(0)
    passed_over = 0
    for _ in range(500):
        file = draw.choice(files)
        written = file.read_bytes()
        at, bit = draw.randrange(len(written)), draw.randrange(8)
        file.write_bytes(written[:at] + bytes([written[at] ^ (1 << bit)]) + written[at + 1 :])
        checkpoints, modules = Checkpoints(tmp_path), kept(7.0)
        loaded = checkpoints.load(modules, CPU)
        assert loaded is not None
        step = loaded[1].step
        assert loaded[0]["optimizer"]["lr"] == float(step)
        assert loaded[1] == Counters(epoch=step, step=step)
        assert all(torch.equal(v, states[step][k]) for k, v in modules["student"].state_dict().items())
        passed_over += len(checkpoints.skipped)
        # A flip that is not noticed is one in the white space or the spelling of the manifest, or in the older state.
        assert step == 1 or file.parent == paths[0] or file.name == "manifest.json"
        file.write_bytes(written)
    assert passed_over > 200


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
    manifest.seal(folder)  # who plants code can compute checksums, too
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
    manifest.seal(counters.parent)
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
