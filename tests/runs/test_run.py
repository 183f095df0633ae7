"""Runs: what is in the folder, what is refused, and that the exported student is the one that was scored."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck import models
from limbeck.assembly.build import build_data, build_parts, load_student
from limbeck.data import open_data
from limbeck.data.spec import DataSpec
from limbeck.errors import UserError
from limbeck.models import InputTransform
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.runs import inspection
from limbeck.runs import run as runs
from limbeck.runs.claim import claim
from limbeck.runs.summary import forget_peak_memory, peak_memory


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_most_memory_is_that_of_a_run_and_not_of_those_before_it() -> None:
    device = torch.device("cpu")
    if not forget_peak_memory(device):
        pytest.skip("the system does not count the memory of a part of a process")
    before = peak_memory(device) or 0
    large = torch.ones(2**28, dtype=torch.uint8)
    del large
    after = peak_memory(device) or 0
    assert after > before + 200
    forget_peak_memory(device)
    assert (peak_memory(device) or 0) < after - 200


def test_a_run_folder_holds_everything(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"recipe.yaml", "log.jsonl", "summary.json", "student.safetensors", "student_best.safetensors"} <= names
    assert {"student.json", "terms.safetensors", "checkpoint"} <= names
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["metric"] == "top1"
    assert 0 <= summary["last"]["top1"] <= summary["best"]["top1"] <= 1
    assert summary["teacher"]["top1"] > 0.2
    assert 100 < summary["peak_memory_mib"] < 100_000
    assert summary["parameters"]["terms"] == 4 * 8  # 2N channels of cnn-2 to 2N of cnn-4, no bias
    kinds = [record["kind"] for record in records(finished)]
    assert kinds.count("epoch") == 2
    assert kinds[-1] == "end"


def test_the_student_file_loads_strictly_and_scores_as_the_summary_says(finished: Path) -> None:
    card = json.loads((finished / "student.json").read_text())
    model = models.build(card["model"], num_classes=card["num_classes"], size=card["input"]["size"]).module
    model.load_state_dict(load_file(finished / "student.safetensors"), strict=True)
    model.eval()
    correct = count = 0
    mean, std = (torch.tensor(card["input"][key]).view(3, 1, 1) for key in ("mean", "std"))
    data = open_data(DataSpec(source="digits"))
    with torch.no_grad():
        for images, target, _ in data.val_loader(batch_size=100):
            correct += int((model((images - mean) / std).argmax(-1) == target).sum())
            count += len(target)
    summary = json.loads((finished / "summary.json").read_text())
    assert correct / count == pytest.approx(summary["last"]["top1"], abs=1e-9)
    assert inspection.evaluate(finished)["top1"] == pytest.approx(summary["last"]["top1"], abs=1e-9)


def test_the_teacher_was_trained_first_kept_and_is_used_again(
    small: Recipe, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teachers = list((finished.parent / "teachers").iterdir())
    assert [path.name.startswith("small-cnn-4-") for path in teachers] == [True]
    again = finished.parent / "again"
    runs.run(small.changed({"seed": 1, "epochs": 2}), again)
    assert list((finished.parent / "teachers").iterdir()) == teachers
    assert "using the one trained before" in capfd.readouterr().err
    shutil.rmtree(again)


def test_notes_on_data_and_machine_are_printed_once_though_a_teacher_is_trained_first(
    small: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each of the two logs has them all; the terminal does not show them again."""
    runs.run(small.changed({"epochs": 1, "train_limit": 100, "probe": "off"}), tmp_path / "run")
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert sum(line.startswith("data digits: images are decoded once") for line in lines) == 1
    assert sum(line.startswith("cpu: float32") for line in lines) == 1
    assert sorted(set(lines)) == sorted(lines)
    (teacher,) = (tmp_path / "teachers").iterdir()
    for folder in (tmp_path / "run", teacher):
        notes = [record["text"] for record in records(folder) if record["kind"] == "note"]
        assert any(note.startswith("data digits: images are decoded once") for note in notes)
        assert any(note.startswith("cpu: float32") for note in notes)


def test_a_finished_run_is_not_trained_again(small: Recipe, finished: Path) -> None:
    before = (finished / "student.safetensors").stat().st_mtime_ns
    assert runs.run(small, finished, resume=True) == json.loads((finished / "summary.json").read_text())
    assert (finished / "student.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("torch_then", [None, "2.14.0"])
def test_a_run_that_goes_on_with_other_versions_says_so(torch_then: str | None, small: Recipe, tmp_path: Path) -> None:
    recipe = small.changed(
        {"method": "alone", "teacher": None, "teacher_epochs": None, "train_limit": 100, "probe": "off"}
    )
    folder = tmp_path / "run"

    def stop(epoch: int, _: object) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(recipe, folder, on_epoch=stop)
    log = folder / "log.jsonl"
    if torch_then is not None:
        now = json.dumps(torch.__version__.partition("+")[0])
        assert f'"torch": {now}' in log.read_text(encoding="utf-8")
        log.write_text(log.read_text(encoding="utf-8").replace(f'"torch": {now}', f'"torch": "{torch_then}"'))
    runs.run(recipe, folder, resume=True)
    notes = [record["text"] for record in records(folder) if record["kind"] == "note"]
    found = [note for note in notes if "resumed with other versions" in note]
    assert len(found) == (torch_then is not None)
    assert all(f"torch {torch_then} -> " in note for note in found)


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 1},
        {"device": "auto"},
        {"probe": "off"},
        {"loggers": ("tensorboard",)},
        {"checkpoint_every": 5},
        {"skip_bad_images": 2},
        {"name": "other", "precision": "auto"},
    ],
    ids=str,
)
def test_what_does_not_decide_the_student_may_change_on_resume(
    changes: dict[str, Any], small: Recipe, finished: Path
) -> None:
    recipe = small.changed(changes)
    claimed = claim(recipe, finished, resume=True)
    assert claimed.difference(recipe, but=fields_of("arithmetic")) == []


def test_a_folder_with_another_run_is_refused(small: Recipe, finished: Path) -> None:
    with pytest.raises(UserError, match="holds a run already"):
        runs.run(small, finished)
    with pytest.raises(UserError, match=r"holds a run of another recipe: epochs: 2 -> 3"):
        runs.run(small.changed({"epochs": 3}), finished, resume=True)


def test_a_folder_with_something_else_is_refused(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no run"):
        runs.run(small, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        runs.run(small, tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    with pytest.raises(UserError, match="no run to resume"):
        runs.run(small, tmp_path / "nowhere", resume=True)


def test_a_run_without_labels_has_no_head_and_no_task_loss(small: Recipe, finished: Path, tmp_path: Path) -> None:
    teacher = next((finished.parent / "teachers").iterdir())
    recipe = small.changed({"labels": False, "method": "projector", "teacher_weights": str(teacher)})
    summary = runs.run(recipe, tmp_path / "free")
    assert summary["metric"] == "loss"
    assert load_student(tmp_path / "free").num_classes == 0
    steps = [record for record in records(tmp_path / "free") if record["kind"] == "epoch"]
    assert set(steps[-1]["train"]) == {"loss", "feature", "images_per_second"}
    with pytest.raises(UserError, match="no labels"):
        inspection.evaluate(tmp_path / "free")


def test_logits_without_labels_keep_the_head(small: Recipe, finished: Path, tmp_path: Path) -> None:
    teacher = next((finished.parent / "teachers").iterdir())
    recipe = small.changed({"labels": False, "method": "kd", "teacher_weights": str(teacher)})
    runs.run(recipe, tmp_path / "free")
    assert load_student(tmp_path / "free").num_classes == 10


def test_describe_needs_no_weights(small: Recipe) -> None:
    lines = dict(inspection.describe(small))
    assert "GMACs" in lines["student"]
    assert "32 parameters" in lines["feature"]
    assert lines["steps"] == "6 an epoch, 12 in all"


def test_same_seed_same_student(small: Recipe) -> None:
    data = build_data(small)
    recipe = small.changed({"method": "alone", "teacher": None})
    one, two = (build_parts(recipe, data, None).student.module.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_input_transform_is_not_in_the_student(finished: Path) -> None:
    student = load_student(finished)
    assert isinstance(InputTransform(student.input), torch.nn.Module)
    assert not [name for name in load_file(finished / "student.safetensors") if name == "mean" or "transform" in name]


def test_a_student_that_starts_from_weights_says_so(
    small: Recipe, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = small.changed({"method": "alone", "teacher": None, "student_weights": str(finished), "epochs": 1})
    runs.run(alone, tmp_path / "more")
    assert "student small/cnn-2: weights run:finished\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "alone", "teacher": None},
        {"method": "kd", "cache_views": 1, "teacher_settings": ("batch_size=64", "epochs=1")},
    ],
)
def test_fewer_images_than_a_batch_are_one_batch(small: Recipe, tmp_path: Path, changes: dict[str, Any]) -> None:
    """The line says so, the recipe keeps what was asked for, and a resumed run ends as one with the smaller batch."""
    few = small.changed({"train_limit": 30, "probe": "off", **changes})
    runs.run(few.changed({"batch_size": 30}), tmp_path / "plain" / "run")

    def stop(epoch: int, figures: object) -> None:
        if epoch == 1:
            raise RuntimeError("stopped")

    folder = tmp_path / "large" / "run"
    with pytest.raises(RuntimeError, match="stopped"):
        runs.run(few.changed({"batch_size": 128}), folder, on_epoch=stop)
    runs.run(few.changed({"batch_size": 128}), folder, resume=True)
    notes = [record["text"] for record in records(folder) if record["kind"] == "note"]
    assert "batch size 128: there are 30 training images; each batch has 30" in notes
    assert Recipe.from_yaml(folder / "recipe.yaml").batch_size == 128
    same = [load_file(place / "student.safetensors") for place in (folder, tmp_path / "plain" / "run")]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[1])
