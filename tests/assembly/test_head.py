"""A new head on a trunk that has weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file

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
