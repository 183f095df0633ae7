"""Runs that are made again: to the byte, with changed images, another version, from an unfinished or an old folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from limbeck.cli import main
from limbeck.data import DataSpec, open_data
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import run as runs
from limbeck.runs.rerun import Outcome, compare_runs, rerun


def copy(finished: Path, to: Path) -> Path:
    """The finished run as one that was moved: its teacher does not lie beside it."""
    shutil.copytree(finished, to)
    return to


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = run / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    change(summary)
    path.write_text(json.dumps(summary), encoding="utf-8")


def differing(outcome: Outcome) -> list[str]:
    return [row.what for row in outcome.rows if row.same is False]


def write_images(folder: Path) -> None:
    """Two classes of plain colors with noise, as uncompressed files: all of one length."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for label, level in (("dark", 60), ("light", 180)):
            place = folder / part / label
            place.mkdir(parents=True)
            for row in range(count):
                pixels = (level + rng.integers(-40, 40, (8, 8, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{row:02}.bmp")


@pytest.fixture
def own(tmp_path: Path, small: Recipe) -> Path:
    """A finished run on a folder of images."""
    write_images(tmp_path / "images")
    recipe = small.changed(
        {"data": str(tmp_path / "images"), "size": 8, "train_limit": None, "batch_size": 8, "epochs": 1}
        | {"method": "alone", "teacher": None, "probe": "off"}
    )
    runs.run(recipe, tmp_path / "own")
    return tmp_path / "own"


def test_a_run_records_where_everything_came_from(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert {"limbeck", "python", "torch", "numpy", "pillow"} <= summary["versions"].keys()
    assert summary["machine"].keys() == {"processor", "system", "threads", "processes"}
    assert summary["machine"]["processes"] == 1
    teacher, student = summary["origins"]["teacher"], summary["origins"]["student"]
    assert teacher["weights"].startswith("run:small-cnn-4-")
    assert teacher["trained_first"] is True
    assert student["weights"] == "random"
    assert len(teacher["digest"]) == len(student["digest"]) == 32
    assert teacher["digest"] != student["digest"]
    (start,) = [record for record in tiny.records(finished) if record["kind"] == "start"]
    assert start["origins"] == summary["origins"]


def test_it_is_made_again_to_the_byte_with_a_fresh_teacher(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = copy(finished, tmp_path / "first")
    assert main(["rerun", str(first)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == "verdict: bit-identical"
    assert "differs" not in told
    place = tmp_path / "first-rerun"
    assert {path.name for path in place.iterdir()} == {"run", "teachers", "rerun.json"}
    assert len(list((place / "teachers").iterdir())) == 1
    for name in ("student.safetensors", "student_best.safetensors", "terms.safetensors"):
        assert (place / "run" / name).read_bytes() == (finished / name).read_bytes(), name
    kept = json.loads((place / "rerun.json").read_text(encoding="utf-8"))
    assert kept["to_the_byte"] is True
    rows = {row["what"]: row for row in kept["rows"]}
    assert rows["teacher's weights at the start"]["same"] is True
    assert rows["last top1"]["same"] is True
    assert rows["bytes of the images"]["same"] is True
    # What is finished is compared again, and not trained.
    before = (place / "run" / "student.safetensors").stat().st_mtime_ns
    assert main(["rerun", str(first)]) == 0
    assert (place / "run" / "student.safetensors").stat().st_mtime_ns == before
    assert len(told.splitlines()) < 14
    assert max(map(len, told.splitlines()[1:])) <= 80


def test_one_changed_image_of_the_same_length_is_told_before_anything_is_trained(own: Path, tmp_path: Path) -> None:
    image = tmp_path / "images" / "train" / "dark" / "03.bmp"
    length = image.stat().st_size
    Image.new("RGB", (8, 8), (9, 9, 9)).save(image)
    assert image.stat().st_size == length
    with pytest.raises(UserError, match=r"the images of .*own have changed since: bytes of the images; .* --anyway"):
        rerun(own, tmp_path / "again", say=print)
    assert not (tmp_path / "again").exists()
    said: list[str] = []
    outcome = rerun(own, tmp_path / "again", anyway=True, say=said.append)
    assert said[0].startswith("the images have changed since: bytes of the images")
    assert not outcome.to_the_byte
    assert "bytes of the images" in differing(outcome)
    assert "names, sizes and labels of the images" not in differing(outcome)
    assert outcome.verdict.startswith("the same recipe, but not the same bytes of the images")


def test_a_missing_image_is_seen_by_the_names(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images" / "val" / "dark" / "00.bmp").unlink()
    assert main(["rerun", str(own)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "have changed since: validation images: 16 -> 15; names, sizes and labels of the images; bytes" in line


def _remove(images: Path) -> None:
    (images / "train" / "dark" / "03.bmp").unlink()


def _add(images: Path) -> None:
    shutil.copy(images / "train" / "dark" / "03.bmp", images / "val" / "light" / "new.bmp")


def _change(images: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(images / "train" / "dark" / "03.bmp")


def _swap(images: Path) -> None:
    dark, light = images / "train" / "dark" / "03.bmp", images / "train" / "light" / "03.bmp"
    dark.rename(images / "one")
    light.rename(dark)
    (images / "one").rename(light)


def _rename(images: Path) -> None:
    for part in ("train", "val"):
        (images / part / "light").rename(images / part / "bright")


class _Killed(Exception):
    pass


def test_a_run_is_resumed_on_the_images_that_it_was_started_with(tmp_path: Path, small: Recipe) -> None:
    images, folder = tmp_path / "images", tmp_path / "run"
    write_images(images)
    shutil.copytree(images, tmp_path / "as they were")
    recipe = small.changed(
        {"data": str(images), "size": 8, "train_limit": None, "batch_size": 8, "epochs": 2}
        | {"method": "alone", "teacher": None, "probe": "off"}
    )

    def kill(epoch: int, scores: object) -> None:
        raise _Killed

    with pytest.raises(_Killed):
        runs.run(recipe, folder, on_epoch=kill)
    kept = (folder / "data.json").read_text(encoding="utf-8")
    assert {"train": 48, "val": 16, "classes": ["dark", "light"], "size": 8}.items() <= json.loads(kept).items()
    for change, told in (
        (_remove, "training images: 48 -> 47; names, sizes"),
        (_add, "validation images: 16 -> 17; names, sizes"),
        (_change, "bytes of the images"),
        (_swap, "bytes of the images"),
        (_rename, "classes: dark, light -> bright, dark; names, sizes"),
    ):
        change(images)
        for how in ({"resume": True}, {"if_begun": True}):
            with pytest.raises(
                UserError, match=f"images have changed since .*run was started: {told}.*bring them back"
            ):
                runs.run(recipe, folder, **how)
        assert (folder / "data.json").read_text(encoding="utf-8") == kept
        shutil.rmtree(images)
        shutil.copytree(tmp_path / "as they were", images)
    runs.run(recipe, folder, resume=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["data"] == json.loads(kept)


def test_pixels_that_are_not_kept_in_memory_are_not_read_for_it(tmp_path: Path) -> None:
    write_images(tmp_path)
    spec = DataSpec(source=str(tmp_path), size=8, augmentation="none")
    content = open_data(spec).content()
    assert content is not None
    assert open_data(spec).content() == content
    assert open_data(spec, memory=0).content() is None
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "val" / "light" / "03.bmp")
    assert open_data(spec).content() != content


def test_another_version_is_told_and_the_bytes_decide(finished: Path, tmp_path: Path) -> None:
    first, second = copy(finished, tmp_path / "first"), copy(finished, tmp_path / "second")
    edit(first, lambda summary: summary["versions"].update(torch="2.6.0"))
    outcome = compare_runs(first, second)
    assert differing(outcome) == ["version of torch"]
    assert outcome.to_the_byte
    (row,) = [row for row in outcome.rows if row.same is False]
    assert (row.then, row.now) == ("2.6.0", json.loads((second / "summary.json").read_text())["versions"]["torch"])


def test_other_figures_are_told_with_what_else_is_other(finished: Path, tmp_path: Path) -> None:
    first, second = copy(finished, tmp_path / "first"), copy(finished, tmp_path / "second")
    weights = bytearray((second / "student.safetensors").read_bytes())
    weights[-1] ^= 1
    (second / "student.safetensors").write_bytes(weights)
    assert compare_runs(first, second).verdict == (
        "the same recipe, the same images, versions and machine: the figures are the same, the bytes are not"
    )
    edit(second, lambda summary: summary["last"].update(top1=0.5) or summary["machine"].update(threads=64))
    outcome = compare_runs(first, second)
    assert not outcome.to_the_byte
    assert differing(outcome) == ["threads", "student.safetensors", "last top1"]
    assert "but not the same threads: figures differ: last top1" in outcome.verdict
    assert outcome.verdict.endswith("-> 0.5")


def test_a_figure_that_differs_in_the_last_digit_differs(finished: Path, tmp_path: Path) -> None:
    first, second = copy(finished, tmp_path / "first"), copy(finished, tmp_path / "second")
    edit(first, lambda summary: summary["last"].update(loss=0.1))
    edit(second, lambda summary: summary["last"].update(loss=0.1 + 1e-16))
    assert "last loss" in differing(compare_runs(first, second))


def test_a_run_of_an_earlier_version_says_what_it_did_not_record(finished: Path, tmp_path: Path) -> None:
    first, second = copy(finished, tmp_path / "first"), copy(finished, tmp_path / "second")
    edit(first, lambda summary: [summary.pop(name) for name in ("machine", "origins", "commit")])
    outcome = compare_runs(first, second)
    assert outcome.to_the_byte
    unknown = {row.what for row in outcome.rows if row.same is None}
    assert {"threads", "teacher's weights at the start", "student's weights at the start"} <= unknown
    assert all(row.then == "not recorded" for row in outcome.rows if row.same is None)


def test_what_is_no_finished_run_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = copy(finished, tmp_path / "first")
    (first / "summary.json").unlink()
    assert main(["rerun", str(first)]) == 2
    told = "holds no finished run, so there is nothing to compare with; continue it: limbeck distill --resume"
    assert f"{told} {first}" in capsys.readouterr().err
    assert main(["rerun", str(tmp_path / "nowhere")]) == 2
    assert "--resume" not in capsys.readouterr().err
    assert main(["rerun", str(finished), "--out", str(finished)]) == 2
    assert "is the run itself" in capsys.readouterr().err
    assert main(["rerun"]) == 2
    assert "RUN: missing" in capsys.readouterr().err


def test_a_second_run_that_was_stopped_is_gone_on_with(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "again"

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", stop)
        assert main(["rerun", str(own), "--out", str(place)]) == 130
    assert f"continue with: limbeck rerun {own} --out {place}" in capsys.readouterr().err
    assert (place / "run" / "recipe.yaml").is_file()
    assert main(["rerun", str(own), "--out", str(place)]) == 0
