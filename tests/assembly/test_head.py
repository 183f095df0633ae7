"""A new head on a trunk that has weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from limbeck.assembly import head
from limbeck.assembly.build import build_data, build_parts
from limbeck.assembly.head import fit_head
from limbeck.models import build
from limbeck.recipes.recipe import Recipe

CPU = torch.device("cpu")


def test_a_new_head_learns_from_the_features_before_the_trunk_does(small: Recipe, tmp_path: Path) -> None:
    """Weights of another number of classes: their trunk is kept, and its features are enough to start from."""
    weights = tmp_path / "weights.safetensors"
    model = build("small/cnn-32", num_classes=3)
    save_file(model.module.state_dict(), weights)
    base = {"method": "alone", "teacher": None, "student": "small/cnn-32", "train_limit": None, "probe": "off"}
    recipe = small.changed({**base, "student_weights": str(weights)})
    data = build_data(recipe)
    parts = build_parts(recipe, data, None)
    before = {name: value.clone() for name, value in parts.student.module.state_dict().items()}
    torch.manual_seed(7)
    scores = fit_head(parts, CPU)
    assert scores["top1"] > 0.6  # random features of digits do as much; chance is 0.1
    after = parts.student.module.state_dict()
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == {"fc.weight", "fc.bias"}
    assert parts.student.module.training
    assert fit_head(build_parts(recipe, data, None), CPU) == scores
    scratch = recipe.changed({"student_weights": None})
    assert fit_head(build_parts(scratch, data, None), CPU) == {}


def test_views_of_an_image_are_not_images(small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that knows a hundred images by heart, having seen them twenty times, leaves its trunk no gradient."""
    weights = tmp_path / "weights.safetensors"
    save_file(build("small/cnn-2", num_classes=3).module.state_dict(), weights)
    recipe = small.changed({"student_weights": str(weights), "train_limit": 100, "method": "alone", "teacher": None})
    counted: list[tuple[int, int]] = []
    regression = head.logistic_regression

    def spy(features: torch.Tensor, targets: torch.Tensor, classes: int, *, images: int) -> tuple[torch.Tensor, ...]:
        counted.append((len(targets), images))
        return regression(features, targets, classes, images=images)

    monkeypatch.setattr(head, "logistic_regression", spy)
    assert fit_head(build_parts(recipe, build_data(recipe), None), CPU)
    assert counted == [(head.LEAST, 100)]
