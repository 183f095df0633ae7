"""A recipe's word for bad numbers: what it builds, and a run with it from the data to the summary and the report."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limbeck import report
from limbeck.assembly.build import build_skip
from limbeck.data.loader import Batch, Loader
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs.run import run
from limbeck.storage.files import load_weights
from limbeck.training.bad_batch import BAD_BATCH
from limbeck.training.guard import Skip


@pytest.mark.parametrize(
    ("changes", "built"),
    [
        ({}, None),
        ({"on_bad_numbers": "skip"}, Skip(10)),
        ({"on_bad_numbers": "lower"}, Skip(10, factor=0.5)),
        ({"on_bad_numbers": "lower", "bad_number_limit": 3}, Skip(3, factor=0.5)),
    ],
)
def test_the_word_becomes_numbers(small: Recipe, changes: dict[str, Any], built: Skip | None) -> None:
    assert build_skip(small.changed(changes)) == built
    assert Skip() == Skip(10)  # the two defaults are one


def poison(monkeypatch: pytest.MonkeyPatch, image: int) -> None:
    """One training image is infinite from now on, wherever it comes."""
    iterate = Loader.iterate

    def poisoned(self: Loader, start: int = 0) -> Any:
        for batch in iterate(self, start):
            images = batch.images.clone()
            images[batch.index == image] = torch.inf
            yield Batch(images, batch.target, batch.index)

    monkeypatch.setattr(Loader, "iterate", poisoned)


@pytest.mark.parametrize(("word", "rate"), [("skip", 1.0), ("lower", 0.25)])
def test_a_run_leaves_its_bad_image_out_once_an_epoch_and_says_so(
    small: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, rate: float
) -> None:
    weights = next((finished.parent / "teachers").iterdir())
    recipe = small.changed({"teacher_weights": str(weights), "on_bad_numbers": word, "schedule": "constant"})
    folder = tmp_path / "run"
    poison(monkeypatch, 7)
    summary = run(recipe, folder)
    assert summary["skipped_steps"] == 2
    bad = [record for record in tiny.records(folder) if record["kind"] == "bad"]
    assert [record["epoch"] for record in bad] == [1, 2]
    assert all(7 in record["images"] for record in bad)
    assert bad[-1]["factor"] == rate
    kept = load_weights((folder / BAD_BATCH).with_suffix(".safetensors"))
    assert kept["numbers"][~kept["images"].flatten(1).isfinite().all(1)].tolist() == [7]
    report.write_report(folder)
    assert "2, whose numbers were not finite" in (folder / "report.html").read_text(encoding="utf-8")


def test_by_default_it_stops_and_what_was_kept_is_good(
    small: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = next((finished.parent / "teachers").iterdir())
    folder = tmp_path / "run"
    poison(monkeypatch, 7)
    with pytest.raises(
        UserError, match=r"the input is not finite before it \(training images 7\), the batch is in"
    ) as raised:
        run(small.changed({"teacher_weights": str(weights)}), folder)
    assert "\n" not in str(raised.value)
    assert not list((folder / "checkpoint").glob("step-*"))  # it was in the first epoch
    assert tiny.records(folder)[-1]["kind"] == "stop"


def test_a_run_that_stopped_goes_on_with_another_word(
    small: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = next((finished.parent / "teachers").iterdir())
    recipe = small.changed({"teacher_weights": str(weights)})
    folder = tmp_path / "run"
    poison(monkeypatch, 7)
    with pytest.raises(UserError, match="the input is not finite before it"):
        run(recipe, folder)
    summary = run(recipe.changed({"on_bad_numbers": "skip", "bad_number_limit": 2}), folder, resume=True)
    assert summary["skipped_steps"] == 2
    assert Recipe.from_yaml(folder / "recipe.yaml").bad_number_limit == 2
