"""Every published recipe runs: two steps, a kill between them and a resume to the same bytes, and an export.

Loss, projector, norms, taps, optimizer, schedule and augmentation are the recipe's. Images, batch and epochs are few,
the side is 32, and the largest models give way to a smaller one of their family, with features of the same kind.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook

import tiny
from data.images import folder as make_images
from limbeck import models
from limbeck.export import export
from limbeck.recipes import NAMED, Recipe, named
from limbeck.recipes.published.detection import DETECTION
from limbeck.recipes.run import run

NAMES = [name for name in NAMED if name not in DETECTION]  # those are in test_detection

RELATIVES = {
    "timm/regnety_160.deit_in1k": "timm/regnety_002",
    "timm/convnext_tiny.fb_in1k": "timm/convnext_atto",
    "timm/vit_small_patch16_224.augreg_in1k": "timm/vit_tiny_patch16_224",
    "timm/vit_small_patch14_dinov2.lvd142m": "timm/vit_small_patch14_dinov2",
    "timm/vit_small_patch16_dinov3.lvd1689m": "timm/vit_small_patch16_dinov3",
    "timm/resnet50.tv_in1k": "timm/resnet26",
    "torchvision/resnet34": "torchvision/resnet18",
    "timm/resnet34": "timm/resnet18",
    "cifar/resnet110": "cifar/resnet56",
    "deit/conv_stem_tiny_distilled": "deit/conv_stem_test_distilled",
    "deit/conv_stem_small_distilled": "deit/conv_stem_test_distilled",
    "deit/conv_stem_tiny": "deit/conv_stem_test",
    "deit/conv_stem_small": "deit/conv_stem_test",
    "timm/deit_small_patch16_224": "timm/deit_tiny_patch16_224",
}
QUICK = ("digits", "cifar100-resnet32x4-resnet8x4", "imagenet-deit-ti", "imagenet-vkd-deit-ti")
"""In every run of the tests; the others take a few seconds each."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two batches of four; three of four validation images are of the first class, which the teachers below say."""
    root = tmp_path_factory.mktemp("images")
    make_images(root / "train", {"a": 4, "b": 4}, width=32, height=32)
    make_images(root / "val", {"a": 3, "b": 1}, width=32, height=32)
    return root


def in_small(recipe: Recipe, images: Path, folder: Path) -> Recipe:
    """The recipe for those images, with a teacher that is there."""
    size = 28 if "patch14" in (recipe.teacher or "") else 32
    changes: dict[str, object] = {
        "data": str(images),
        "student": RELATIVES.get(recipe.student or "", recipe.student),
        "size": 32,
        "subset": 1.0,
        "train_limit": None,
        "workers": 0,
        "batch_size": 4,
        "lr": recipe.lr / 100,  # of four images at a time
        "epochs": 1,
        "teacher_epochs": None,
        "milestones": tuple(milestone / recipe.epochs for milestone in recipe.milestones),
        "warmup_epochs": recipe.warmup_epochs / recipe.epochs,
        "probe": "off",
        "device": "cpu",
        "precision": "float32",
        "memory_format": "contiguous",
        "compile": "off",
        "checkpoint_every": 1,
    }
    if recipe.teacher is not None:
        name = RELATIVES.get(recipe.teacher, recipe.teacher)
        changes |= {"teacher": name, "teacher_size": size, "teacher_weights": str(folder / "teacher.safetensors")}
        torch.manual_seed(1)
        teacher = models.build(name, num_classes=2 if recipe.labels else 0, size=size)
        if recipe.labels:
            head = teacher.module.get_submodule(teacher.penultimate.removesuffix(":input"))
            with torch.no_grad():
                head.get_parameter("weight").zero_()  # at its size, whatever the untrained features are
                head.get_parameter("bias")[0] = 2.0
        save_file({k: v.contiguous() for k, v in teacher.module.state_dict().items()}, folder / "teacher.safetensors")
    return recipe.changed(changes)


@contextmanager
def killed_in_step(number: int) -> Iterator[None]:
    """An end without a word in that step, when its update was made and its checkpoint not."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == number:
            raise ConnectionAbortedError("killed")

    handle = register_optimizer_step_post_hook(count)
    try:
        with pytest.raises(ConnectionAbortedError):
            yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in NAMES]
)
def test_two_steps_a_resume_and_an_export(name: str, images: Path, tmp_path: Path) -> None:
    recipe = in_small(named(name), images, tmp_path)
    run(recipe, tmp_path / "whole")
    with killed_in_step(2):
        run(recipe, tmp_path / "killed")
    run(recipe, tmp_path / "killed", resume=True)
    for file in ("student.safetensors", "terms.safetensors"):
        if (tmp_path / "whole" / file).is_file():
            assert tiny.same_bytes(load_file(tmp_path / "whole" / file), load_file(tmp_path / "killed" / file))
    assert export(tmp_path / "killed", format="safetensors").parity == 0.0
    torch.manual_seed(recipe.seed)
    assert recipe.student is not None
    first = models.build(recipe.student, num_classes=2 if recipe.labels else 0, size=32).module.state_dict()
    last = load_file(tmp_path / "whole" / "student.safetensors")
    assert all(torch.isfinite(value).all() for value in last.values())
    assert any(not torch.equal(first[key], value) for key, value in last.items())
