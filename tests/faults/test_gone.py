"""Folders that vanish, disks that refuse and halves that a kill leaves, each part by itself."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cache.subject import VIEWS, subject
from limbeck import cache
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog
from limbeck.recipes.recipe import Recipe
from limbeck.report.page import write_page
from limbeck.runs.run import run
from limbeck.storage.checkpoint import Checkpoints, Counters
from limbeck.storage.files import save_weights

CPU = torch.device("cpu")
SMALL = Recipe(
    data="digits",
    student="small/cnn-2",
    method="alone",
    train_limit=100,
    epochs=1,
    batch_size=50,
    probe_images=16,
    precision="float32",
    memory_format="contiguous",
    device="cpu",
)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_whose_folder_is_removed_is_not_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def removed() -> None:
        with RunLog(folder) as log:
            log.write("note", text="a")
            shutil.rmtree(folder)
            log.write("note", text="b")

    with pytest.raises(UserError, match=r"run/log.jsonl is gone: the folder was removed or moved"):
        removed()
    assert not folder.exists()


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)
    log.write("step", step=1, loss=1.0)
    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(UserError, match=r"cannot write .*log.jsonl: No space left on device"):
        log.write("step", step=2, loss=1.0)
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*log.jsonl: No space left on device"):
        log.rewind(0)
    assert len((tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save({"student": nn.Linear(2, 2)}, {"optimizer": {}}, Counters(step=step), CPU)


def test_a_checkpoint_is_not_written_into_a_run_that_was_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoint")
    save(checkpoints, 1)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot write checkpoint .*step-000000002: No such file"):
        save(checkpoints, 2)
    assert not (tmp_path / "run").exists()


def test_the_trainers_state_says_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own error is of a position in a zip file."""
    save(Checkpoints(tmp_path), 1)

    class Full:
        write = full

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def flush(self) -> None:
            pass

    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *args, **kw: Full() if path.suffix == ".pt" and "wb" in args else opened(path, *args, **kw),
    )
    with pytest.raises(UserError, match=r"cannot write checkpoint .*step-000000002: No space left on device"):
        save(Checkpoints(tmp_path), 2)


def test_what_a_kill_left_of_a_checkpoint_is_removed_on_loading(tmp_path: Path) -> None:
    """Behind the last epoch nothing is saved any more."""
    save(Checkpoints(tmp_path), 1)
    for name in (".removing-step-000000000", ".writing-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "student.safetensors").write_bytes(b"half")
    assert Checkpoints(tmp_path).load({"student": nn.Linear(2, 2)}, CPU) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_half_a_recipe_is_no_run(tmp_path: Path) -> None:
    """Killed before anything else was there: the same command begins, and clears what was left."""
    (tmp_path / ".recipe.yaml.123.tmp").write_text("name: sm")
    run(SMALL, tmp_path)
    assert (tmp_path / "summary.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] in ([], [".lock"])


def test_a_run_that_was_killed_before_its_start_checks_the_images_when_it_goes_on(tmp_path: Path) -> None:
    """What is found once, of duplicates and of inputs, is in the log of a run that was killed before it had looked."""
    run(SMALL.changed({"student_weights": None}), tmp_path / "whole")
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert kinds.count("data") == 1
    early = tmp_path / "early"
    early.mkdir()
    shutil.copy(tmp_path / "whole" / "recipe.yaml", early)
    for begins in ("", '{"kind": "data", "leaked": 3}\n'):
        (early / "log.jsonl").write_text(begins)
        for name in ("summary.json", "student.safetensors"):
            (early / name).unlink(missing_ok=True)
        shutil.rmtree(early / "checkpoint", ignore_errors=True)
        run(SMALL, early, resume=True)
        found = [json.loads(line)["kind"] for line in (early / "log.jsonl").read_text().splitlines()]
        assert found.count("data") == 1
        assert found.index("data") < found.index("start")


def test_a_removed_folder_of_a_run_that_did_not_begin_is_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def fails(*_: object) -> None:
        shutil.rmtree(folder)
        raise UserError("the data are not there")

    monkeypatch.setattr("limbeck.runs.run.prepare", fails)
    with pytest.raises(UserError, match="the data are not there"):
        run(SMALL, folder)


def test_half_a_card_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".cache.json.77.tmp").write_text('{"form')
    assert subject(tmp_path / "c").fill() > 0


def test_a_cache_that_is_removed_while_it_is_made_is_not_made_anew(tmp_path: Path) -> None:
    made = subject(tmp_path / "c")
    made.cache.begin()
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(UserError, match=r"c was removed while the cache was written"):
        made.cache.write(made.cache.shards(VIEWS)[0], {})
    assert not (tmp_path / "c").exists()


def test_a_shard_that_is_gone_is_not_called_damaged(tmp_path: Path) -> None:
    made = subject(tmp_path / "c")
    made.fill()
    made.cache.path(made.cache.shards(VIEWS)[-1]).unlink()
    with pytest.raises(UserError, match=r"view-0002-00000.safetensors is gone; start again"):
        cache.verify(made.cache, VIEWS)


def test_a_card_knows_when_it_was_changed(tmp_path: Path) -> None:
    """A number that fits and is wrong; a card of a version that wrote no checksum is read."""
    made = subject(tmp_path / "c")
    made.fill()
    card = tmp_path / "c" / "cache.json"
    values = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps({**values, "classes": 11}), encoding="utf-8")
    with pytest.raises(UserError, match=r"cache.json cannot be read \(its checksum differs\); delete its folder"):
        subject(tmp_path / "c")
    del values["checksum"]
    card.write_text(json.dumps(values), encoding="utf-8")
    assert subject(tmp_path / "c").cache.missing(VIEWS) == []


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("limbeck.report.page._environment", Pages)
    with pytest.raises(UserError, match=r"cannot write .*report.html: No space left on device"):
        write_page("run.html.j2", tmp_path / "report.html", {})
    assert list(tmp_path.iterdir()) == []


class Pages:
    """Stands for the templates."""

    def get_template(self, _: str) -> "Pages":
        return self

    def render(self, **_: object) -> str:
        return "<html>"


def test_weights_that_cannot_be_written_leave_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    save_weights({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*student.safetensors: No space left on device"):
        save_weights({"a": torch.zeros(2)}, path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]
