"""Augmentation by a function of the user's."""

from pathlib import Path

import pytest
import torch

from limbeck.data import DataSpec, open_data
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs.images import changes_of, record_of

MODULE = """
import torch
from torchvision.transforms import v2

augment = v2.Compose([v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.RandomErasing()])
wrong = v2.CenterCrop(4)
broken = v2.Normalize([0.5], [0.5, 0.5])
normalized = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.1] * 3)])
"""


def test_a_function_of_ones_own_is_repeated_by_image_and_refused_if_it_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ones_augment.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    data = open_data(DataSpec(source="digits", augmentation="ones_augment:augment", train_limit=40))
    plain = open_data(DataSpec(source="digits", augmentation="none", train_limit=40))

    def images(batch_size: int, *, epoch: int = 0, seed: int = 0) -> torch.Tensor:
        loader = data.train_loader(batch_size=batch_size, seed=0, view_seed=seed)
        loader.set_epoch(epoch)
        batches = list(loader)
        order = torch.cat([batch.index for batch in batches]).argsort()
        return torch.cat([batch.images for batch in batches])[order]

    before = torch.random.get_rng_state()
    assert torch.equal(images(40), images(10))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(images(40), images(40, epoch=1))
    assert torch.equal(
        next(iter(data.val_loader(batch_size=9))).images, next(iter(plain.val_loader(batch_size=9))).images
    )
    (then := record_of(data))["augmentation"] = "other"
    assert changes_of(then, record_of(data)).startswith("source of the augmentation: other -> ")
    for name, line in (
        ("wrong", "returned 3 x 4 x 4; expected a tensor of 3 x 8 x 8"),
        ("broken", "failed: .*; it gets a uint8 tensor of 3 x 8 x 8"),
        ("normalized", "returned float32 from -5 to 4.96; expected uint8, or floats from 0 to 1"),
        ("missing", 'no function "missing" in module "ones_augment"'),
    ):
        with pytest.raises(UserError, match=line):
            open_data(DataSpec(source="digits", augmentation=f"ones_augment:{name}"))
    with pytest.raises(UserError, match="for detection expected none or standard, got ones_augment:augment"):
        Recipe(
            task="detection",
            method="alone",
            data="x",
            student="fcos/timm/resnet18",
            augmentation="ones_augment:augment",
        )
    with pytest.raises(UserError, match=r"augmentation: expected one of .* or a text of the form MODULE:FUNCTION, got"):
        Recipe(method="alone", data="digits", student="small/cnn-2", augmentation="strng")
