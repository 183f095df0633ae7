"""Decoded pixels kept between runs: those that decoding gives, never those of other images, never in the way."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import psutil
import pytest
import torch
from safetensors import safe_open

from data.images import folder, picture
from limbeck.data import Data, DataSpec, decode, kept, open_data
from limbeck.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, in which also a few pixels are kept."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "WORTH", 0)
    return tmp_path / "cache" / "pixels"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    folder(root / "train", {"a": 5, "b": 4}, kind="bmp")  # all files of the same size
    folder(root / "val", {"a": 2, "b": 1}, kind="bmp")
    return root


class Run(NamedTuple):
    train: torch.Tensor
    val: torch.Tensor
    notes: str
    data: Data


def run(source: Path, **options: object) -> Run:
    """All pixels of one run, not moved."""
    data = open_data(DataSpec(source=str(source), **{"workers": 2, "size": 12, "augmentation": "none", **options}))
    (train,) = data.train_loader(batch_size=data.train_count, seed=0)
    (val,) = data.val_loader(batch_size=100)
    return Run(train.images, val.images, " / ".join(data.notes), data)


def same(a: Run, b: Run) -> bool:
    return torch.equal(a.train, b.train) and torch.equal(a.val, b.val)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "rgb", refuse)


@pytest.mark.parametrize(("size", "augmentation"), [(12, "none"), (12, "strong"), (72, "none"), (72, "standard")])
def test_a_second_run_has_the_same_pixels_without_decoding(
    cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, size: int, augmentation: str
):
    first = run(photos, size=size, augmentation=augmentation)
    assert first.notes.count("are kept for the next run") == 2
    assert len(list(cache.iterdir())) == 2
    forbid_decoding(monkeypatch)
    second = run(photos, size=size, augmentation=augmentation)
    assert same(first, second)
    assert second.notes.count("decoded pixels of an earlier run") == 2


def test_what_is_kept_equals_what_is_decoded(cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    for size in (12, 72):
        run(photos, size=size, augmentation="standard")
        second = run(photos, size=size, augmentation="standard")
        with monkeypatch.context() as patch:
            patch.setattr(kept, "WORTH", 1 << 30)
            decoded = run(photos, size=size, augmentation="standard")
        assert "run" not in decoded.notes
        assert same(second, decoded)


def test_other_frames_and_another_decoder_are_not_mixed_up(cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    run(photos)
    assert "earlier" not in run(photos, size=10).notes
    monkeypatch.setattr(decode, "_VERSION", 99)
    assert "earlier" not in run(photos).notes
    assert len(list(cache.iterdir())) == 6


def test_an_image_that_changed_is_never_read_through(cache: Path, photos: Path):
    first = run(photos)
    path = photos / "train" / "a" / "003.bmp"
    before = path.stat()
    picture(77).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = run(photos)
    assert second.notes.count("earlier run") == 1  # val
    assert not torch.equal(first.train, second.train)
    assert (second.train != first.train).flatten(1).any(1).sum() == 1


def test_a_folder_that_was_moved_is_known_and_another_order_is_not(
    cache: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run(photos)
    photos.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        assert same(first, run(tmp_path / "moved"))
    one, two = (tmp_path / "moved" / "train" / "a" / f"00{i}.bmp" for i in (0, 1))
    one.rename(one.with_name("x.bmp"))
    two.rename(one)
    one.with_name("x.bmp").rename(two)
    assert not torch.equal(first.train, run(tmp_path / "moved").train)


@pytest.mark.parametrize("damage", ["cut", "byte", "header", "text", "empty"])
def test_a_damaged_file_is_found_and_replaced(cache: Path, photos: Path, damage: str):
    first = run(photos)
    for path in cache.iterdir():
        data = path.read_bytes()
        byte = data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
        header = data.replace(b'"bad":"{}"', b'"bad":"[]"')
        assert header != data
        path.write_bytes({"cut": data[:-50], "byte": byte, "header": header, "text": b"hello", "empty": b""}[damage])
    second = run(photos)
    assert same(first, second)
    assert second.notes.count("the images are decoded again") == 2
    third = run(photos)
    assert same(first, third)
    assert third.notes.count("earlier run") == 2


def test_bad_images_are_the_same_in_the_second_run(cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    (photos / "train" / "a" / "001.bmp").write_bytes(b"BM nothing")
    (photos / "train" / "b" / "002.bmp").write_bytes(b"")
    (photos / "train" / "b" / "gone.bmp").symlink_to("nowhere")
    (photos / "val" / "a" / "000.bmp").write_bytes(b"")
    first = run(photos, skip_bad_images=4)
    assert len(first.data.skipped) == 4
    second = run(photos, skip_bad_images=4)
    assert same(first, second)
    assert second.data.skipped == first.data.skipped
    assert (second.data.train_count, second.data.val_count) == (7, 2)
    assert second.notes.count("earlier run") == 2
    with pytest.raises(UserError, match="more than the 1 unreadable") as late:
        run(photos, skip_bad_images=1)
    with pytest.raises(UserError, match=r'cannot read image "a/001.bmp"'):
        run(photos)
    shutil.rmtree(cache)
    with pytest.raises(UserError) as early:
        run(photos, skip_bad_images=1)
    assert str(early.value) == str(late.value)


def test_the_least_recently_used_are_removed(
    cache: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for size in (10, 11, 12):
        run(photos, size=size)
    files = {size: [path for path in cache.iterdir() if stored_side(path) == size] for size in (10, 11, 12)}
    for age, size in enumerate((10, 12, 11)):
        for path in files[size]:
            os.utime(path, (time.time() - 1000 * (age + 1),) * 2)
    run(photos, size=11)  # used now
    sizes = [path.stat().st_size for path in cache.iterdir()]
    monkeypatch.setattr(kept, "LIMIT", sum(sizes) + 100)
    stale = cache / ".x.safetensors.7.tmp"
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    last = run(photos, size=9)
    assert "removed now" in last.notes
    assert not stale.exists()
    assert sum(path.stat().st_size for path in cache.iterdir()) <= sum(sizes) + 100
    assert not all(path.exists() for path in files[12])
    assert all(path.exists() for path in files[11])
    monkeypatch.setattr(kept, "LIMIT", 100)
    assert "are more than the" in run(photos, size=8).notes


def stored_side(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return int(file.get_tensor("pixels").shape[-1])


def test_a_disk_that_is_full_costs_a_note(cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("No space left on device")  # as safetensors says it

    plain = run(photos)
    shutil.rmtree(cache)
    with monkeypatch.context() as patch:
        patch.setattr(kept, "save_file", refuse)
        full = run(photos)
    assert same(plain, full)
    assert full.notes.count("not kept for the next run: cannot write") == 2
    assert "No space left on device" in full.notes
    assert not list(cache.iterdir())
    usage = shutil.disk_usage(photos)
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert "more than half of what is left" in run(photos).notes
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_written_or_is_not_there_costs_a_note(
    cache: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = run(photos)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("LIMBECK_CACHE", str(blocked))
    second = run(photos)
    assert same(plain, second)
    assert second.notes.count("not kept for the next run") == 2

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LIMBECK_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    third = run(photos)
    assert same(plain, third)
    assert "run" not in third.notes


def test_small_sets_and_arrays_are_not_kept(cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    next(iter(open_data(DataSpec(source="digits")).train_loader(batch_size=8, seed=0)))
    assert not cache.exists()
    monkeypatch.setattr(kept, "WORTH", 16 << 20)
    run(photos)
    assert not cache.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="lists the mapped files of a process")
@pytest.mark.parametrize("size", [12, 72])
def test_the_pixels_are_mapped_in_both_runs_and_training_does_not_change_the_file(cache: Path, photos: Path, size: int):
    for _ in range(2):
        got = run(photos, size=size, augmentation="strong")
        mapped = {Path(entry.path) for entry in psutil.Process().memory_maps()}
        assert set(cache.iterdir()) <= mapped
        before = {path: path.read_bytes() for path in cache.iterdir()}
        list(got.data.train_loader(batch_size=3, seed=1))
        assert before == {path: path.read_bytes() for path in cache.iterdir()}
        del got


KILLED = """
import os, sys, limbeck.data.kept as kept
from limbeck.data import DataSpec, open_data
kept.WORTH = 0
def half(tensors, path, about):
    path.write_bytes(b"half of it")
    os._exit(9)
kept.save_file = half
open_data(DataSpec(source=sys.argv[1], workers=1)).train_loader(batch_size=2, seed=0)
"""


@pytest.mark.processes
def test_a_process_killed_while_writing_leaves_nothing_that_is_read(cache: Path, photos: Path):
    environment = {**os.environ, "PYTHONPATH": "src"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(photos)], check=False, env=environment)
    assert killed.returncode == 9
    assert [path.name.startswith(".") for path in cache.iterdir()] == [True]
    first = run(photos)
    assert "earlier run" not in first.notes
    assert "decoded again" not in first.notes
    assert same(first, run(photos))
