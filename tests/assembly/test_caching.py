"""Runs from a cache: the bytes of the live teacher, what is shared, what is refused, and the command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tiny
from data.images import folder as image_folder
from data.images import picture
from limbeck.assembly.teacher import _key, teacher_recipe
from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import run as runs
from limbeck.runs.precompute import precompute
from limbeck.storage.checkpoint import Checkpoints
from limbeck.studies.compare import compare


@pytest.fixture
def taught(small: Recipe, finished: Path) -> Recipe:
    """The small recipe with its teacher at hand and two cached views, exact."""
    teacher = next((finished.parent / "teachers").iterdir())
    views = {"cache_views": 2, "cache_precision": "exact"}
    return small.changed({"teacher_weights": str(teacher), "probe": "off", **views})


def live(recipe: Recipe) -> Recipe:
    return recipe.changed({"cache_views": None})


def caches(place: Path) -> list[Path]:
    return sorted((place / "caches").iterdir()) if (place / "caches").is_dir() else []


def student(folder: Path) -> dict[str, Any]:
    return load_file(folder / "student.safetensors") | load_file(folder / "terms.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": "strong"},
        {"method": "crd", "train_limit": 100, "epochs": 1},
        {"method": "sp"},
        {"accumulate": 2, "ema": 0.5, "precision": "bf16"},
        {"memory_format": "channels_last", "method": "review"},
        {"memory_format": "channels_last", "method": "at"},
        {"memory_format": "channels_last", "student_pool": "spatial_positions", "teacher_pool": "spatial_positions"}
        | {"student_tap": "conv2", "teacher_tap": "conv2", "feature_loss": "log_sum"},
    ],
    ids=str,
)
def test_with_all_views_the_student_has_the_bytes_of_the_live_run(
    taught: Recipe, changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = taught.changed(changes)
    cached = runs.run(recipe, tmp_path / "cached")
    alone = runs.run(live(recipe), tmp_path / "live")
    assert len(caches(tmp_path)) == 1
    names = ["student.safetensors", "student_best.safetensors"]
    for name in [name for name in [*names, "terms.safetensors"] if (tmp_path / "live" / name).is_file()]:
        assert (tmp_path / "cached" / name).read_bytes() == (tmp_path / "live" / name).read_bytes(), name
    assert (cached["last"], cached["best"]) == (alone["last"], alone["best"])


def test_without_labels_the_teacher_stays_for_validation(taught: Recipe, tmp_path: Path) -> None:
    recipe = taught.changed({"labels": False, "method": "projector"})
    cached, alone = (runs.run(r, tmp_path / n) for r, n in ((recipe, "cached"), (live(recipe), "live")))
    assert cached["metric"] == "loss"
    assert cached["last"] == alone["last"]
    assert tiny.same_bytes(student(tmp_path / "cached"), student(tmp_path / "live"))


def test_what_is_said(taught: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runs.run(taught.changed({"cache_views": 1}), tmp_path / "a")
    said = capfd.readouterr().err
    assert "teacher cache: 1 views of 300 images, 0.0 MiB in" in said
    assert "the teacher runs 1 epochs instead of 2; 0 of 1 shards exist" in said
    assert "teacher cache: checksums are right; 150 images computed again: equal to the byte" in said
    runs.run(taught.changed({"cache_views": 9, "seed": 1, "cache_seed": 0}), tmp_path / "b")
    said = capfd.readouterr().err
    assert "2 views of 300 images" in said  # more than the epochs would never be read
    assert "the teacher runs as often as live; it is saved in runs that share the cache; 1 of 2 shards exist" in said
    assert len(caches(tmp_path)) == 1
    runs.run(taught.changed({"augmentation": "none"}), tmp_path / "c")
    assert "without augmentation all views are the same; --cache-views 1 is enough" in capfd.readouterr().err


def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.run(taught, tmp_path / "unbroken")
    saved = Checkpoints.save

    def stop(*args: Any) -> Path:
        saved(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            runs.run(taught, tmp_path / "stopped")
    runs.run(taught, tmp_path / "stopped", resume=True)
    assert tiny.same_bytes(student(tmp_path / "stopped"), student(tmp_path / "unbroken"))
    assert len(caches(tmp_path)) == 1


def test_other_settings_are_other_caches_or_one_line_where_the_folder_is_named(taught: Recipe, tmp_path: Path) -> None:
    for number, changes in enumerate(({}, {"augmentation": "none"}, {"cache_top_k": 3}, {"train_limit": 290})):
        precompute(taught.changed(changes), tmp_path / "run")
        assert len(caches(tmp_path)) == number + 1
    for changes in ({"student": "small/cnn-3"}, {"method": "projector"}, {"feature_loss": "log_sum"}, {"lr": 0.1}):
        precompute(taught.changed(changes), tmp_path / "run")
    precompute(taught.changed({"seed": 4, "batch_size": 60, "cache_seed": 0}), tmp_path / "run")
    assert len(caches(tmp_path)) == 4
    named = taught.changed({"cache_folder": str(tmp_path / "mine")})
    precompute(named, tmp_path / "run")
    with pytest.raises(UserError, match=r"mine holds another cache \(memory_format: contiguous -> channels_last\)"):
        runs.run(named.changed({"memory_format": "channels_last"}), tmp_path / "other")
    assert not (tmp_path / "other").exists()  # the same command can be given again, corrected


def test_another_teacher_is_another_cache(taught: Recipe, finished: Path, tmp_path: Path) -> None:
    precompute(taught, tmp_path / "run")
    shutil.copytree(str(taught.teacher_weights), tmp_path / "teacher")
    weights = load_file(tmp_path / "teacher" / "student.safetensors")
    weights["fc.bias"][0] += 1e-3
    from limbeck.storage.files import save_weights

    save_weights(weights, tmp_path / "teacher" / "student.safetensors")
    precompute(taught.changed({"teacher_weights": str(tmp_path / "teacher")}), tmp_path / "run")
    assert len(caches(tmp_path)) == 2


def test_a_changed_image_and_a_damaged_shard_stop_the_run_in_one_line(tmp_path: Path) -> None:
    for part, count in {"train": 12, "val": 6}.items():
        image_folder(tmp_path / "photos" / part, {"a": count, "b": count}, kind="bmp")
    recipe = Recipe(
        data=str(tmp_path / "photos"),
        teacher="small/cnn-4",
        student="small/cnn-2",
        method="projector",
        feature_loss="log_sum",
        epochs=1,
        batch_size=8,
        size=12,
        cache_views=1,
        precision="float32",
        memory_format="contiguous",
        device="cpu",
        lr=0.01,
    )
    teacher = recipe.changed({"method": "alone", "teacher": None, "student": "small/cnn-4", "cache_views": None})
    runs.run(teacher.changed({"epochs": 2}), tmp_path / "teacher")
    recipe = recipe.changed({"teacher_weights": str(tmp_path / "teacher"), "labels": False})  # any teacher will do
    precompute(recipe, tmp_path / "run")
    (shard,) = caches(tmp_path)[0].glob("*.safetensors")
    good = shard.read_bytes()
    for broken, why in (
        (good[:-5] + bytes([good[-5] ^ 1]) + good[-4:], "its checksum differs"),
        (good[:-5], "incomplete"),
    ):
        shard.write_bytes(broken)
        with pytest.raises(UserError, match=rf"view-0000-00000\.safetensors is damaged \(.*{why}.*\); delete"):
            runs.run(recipe, tmp_path / "run")
    shard.write_bytes(good)
    for name in ("000", "005", "011"):
        picture(99).save(tmp_path / "photos" / "train" / "a" / f"{name}.bmp")
    with pytest.raises(UserError, match=r"training image \d+ has other pixels in view 0 than when the cache") as raised:
        runs.run(recipe, tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_limit_is_kept(taught: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the cache takes .* GiB .*and --cache-limit allows 1e-06 GiB"):
        runs.run(taught.changed({"cache_limit": 1e-6}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_compare_shares_a_cache_between_methods_and_seeds(taught: Recipe, tmp_path: Path) -> None:
    recipe = taught.changed({"cache_seed": 0, "epochs": 1, "train_limit": 100})
    compare(
        recipe,
        tmp_path / "c",
        methods=["alone", "projector", "projector+kd"],
        seeds=[0, 1],
        say=lambda line: None,
    )
    assert len(caches(tmp_path / "c")) == 1
    assert Recipe.from_yaml(tmp_path / "c" / "alone-seed0" / "recipe.yaml").cache_views is None


def test_estimate_writes_nothing_and_is_right(
    taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(taught.to_yaml())
    assert main(["cache", "--recipe", "recipe.yaml", "--out", "runs/x", "--estimate"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("teacher cache: 2 views of 300 images, 0.0 MiB in runs/caches/small-cnn-4-")
    assert not Path("runs").exists()
    assert main(["cache", "--recipe", "recipe.yaml", "--out", "runs/x", "--verify"]) == 2
    assert "lacks 2 of 2 shards; make it without --verify" in capsys.readouterr().err
    assert main(["cache", "--recipe", "recipe.yaml", "--out", "runs/x"]) == 0
    assert "computed again: equal to the byte" in capsys.readouterr().out
    assert main(["cache", "--recipe", "recipe.yaml", "--out", "runs/x", "--verify"]) == 0
    assert capsys.readouterr().out.startswith("teacher cache: checksums are right; ")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["caches"]
    card = json.loads(next(Path("runs").glob("caches/*/cache.json")).read_text())
    assert card["made_by"].keys() == {"torch", "timm", "pillow", "device"}


def test_the_cache_does_not_decide_which_teacher_is_trained(small: Recipe) -> None:
    from limbeck.assembly.build import build_data

    data = build_data(small)
    with_cache = teacher_recipe(small.changed({"cache_views": 3, "cache_limit": 5.0}))
    assert with_cache.cache_views is None
    assert _key(with_cache, data, start="") == _key(teacher_recipe(small), data, start="")
