"""Images that are there twice: planted ones are found, in memory, and no others; and fixed samples of the images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import folder, picture
from limbeck.data import Data, open_data
from limbeck.data.duplicates import Duplicates
from limbeck.data.spec import DataSpec


def planted(root: Path, *, side: int = 12) -> Path:
    """Two classes; two images that leak, one that has two labels, and one that is there three times."""
    folder(root / "train", {"cat": 8, "dog": 8}, width=side, height=side)
    folder(root / "val", {"cat": 4, "dog": 4}, width=side, height=side)
    for name in ("cat", "dog"):  # other pictures than those of train
        for i in range(4):
            picture(5000 + 100 * len(name) + i + (name == "dog") * 50, side, side).save(
                root / "val" / name / f"{i:03d}.png"
            )
    shutil.copy(root / "train/cat/000.png", root / "val/cat/leaked.png")
    shutil.copy(root / "train/dog/001.png", root / "val/dog/also.png")
    shutil.copy(root / "train/cat/002.png", root / "train/dog/conflict.png")
    for name in ("again", "once more"):
        shutil.copy(root / "train/dog/003.png", root / f"train/dog/{name}.png")
    return root


def opened(root: Path, **more: object) -> Data:
    return open_data(DataSpec(source=str(root), **more), memory=1 << 30)


@pytest.mark.parametrize("side", [12, 80])
def test_planted_duplicates_are_found(tmp_path: Path, side: int) -> None:
    """Above 64 pixels the stored squares of the parts differ, and files are compared in their place."""
    data = opened(planted(tmp_path, side=side), size=side)
    assert data.duplicates() == Duplicates(
        train=data.train_count,
        val=data.val_count,
        leaked=2,
        leaked_examples=(("cat/leaked.png", "cat/000.png"), ("dog/also.png", "dog/001.png")),
        conflicting=2,
        train_duplicates=3,
    )


def test_pixels_are_compared_not_files(tmp_path: Path) -> None:
    planted(tmp_path)
    image = Image.open(tmp_path / "train/cat/005.png")
    image.save(tmp_path / "val/cat/other.bmp")
    found = opened(tmp_path, size=12).duplicates()
    assert found is not None
    assert found.leaked == 3


def test_one_pixel_makes_another_image(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"cat": 4, "dog": 4})
    (tmp_path / "val/cat").mkdir(parents=True)
    (tmp_path / "val/dog").mkdir(parents=True)
    pixels = np.array(Image.open(tmp_path / "train/cat/000.png"))
    pixels[3, 3, 1] ^= 1
    Image.fromarray(pixels).save(tmp_path / "val/cat/000.png")
    picture(77).save(tmp_path / "val/dog/000.png")
    assert opened(tmp_path, size=12).duplicates() == Duplicates(8, 2, 0, (), 0, 0)


def test_where_pixels_are_not_in_memory_nothing_is_said(tmp_path: Path) -> None:
    planted(tmp_path)
    assert open_data(DataSpec(source=str(tmp_path), size=12), memory=0).duplicates() is None


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["memory", "disk"])
def test_a_sample_is_fixed_not_augmented_and_labelled(tmp_path: Path, memory: int) -> None:
    planted(tmp_path)
    data = open_data(DataSpec(source=str(tmp_path), size=12, augmentation="standard"), memory=memory)
    one, two = data.sample("val", 6), data.sample("val", 6)
    assert torch.equal(one.images, two.images)
    assert one.index.tolist() == sorted(set(one.index.tolist()))
    whole = next(iter(data.val_loader(batch_size=20)))
    assert torch.equal(one.images, whole.images[one.index])
    assert one.target is not None
    assert whole.target is not None
    assert torch.equal(one.target, whole.target[one.index])
    assert len(data.sample("val", 1000).images) == data.val_count
    train = data.sample("train", 5)
    name = data._parts["train"].names[int(train.index[0])]
    stored = np.array(Image.open(tmp_path / "train" / name)).transpose(2, 0, 1)
    assert torch.allclose(train.images[0], torch.from_numpy(stored / 255).float(), atol=1e-6)


def test_without_labels_a_sample_has_none(tmp_path: Path) -> None:
    planted(tmp_path)
    assert opened(tmp_path, size=12, labels=False).sample("val", 4).target is None
