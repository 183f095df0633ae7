"""Every published recipe runs: two steps, a kill between them and a resume to the same bytes, and an export.

Loss, projector, norms, taps, optimizer, schedule and augmentation are the recipe's. Images, batch and epochs are few,
the side is 32, and the largest models give way to a smaller one of their family, with features of the same kind. Those
of detection have their own trunks, with narrow pyramids and 64 pixels.
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
from detection import boxes
from limbeck import models
from limbeck.assembly.tasks import kind_of
from limbeck.detection import kind
from limbeck.recipes import NAMED, Recipe, named
from limbeck.recipes.published.detection import DETECTION
from limbeck.runs.export import export
from limbeck.runs.run import run

NAMES = [name for name in NAMED if name not in DETECTION]

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
QUICK = ("digits", "imagenet-deit-ti")
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


def run_twice(recipe: Recipe, folder: Path) -> None:
    """As a whole and with a kill in its second step; the bytes are the same, and the weights can be handed on."""
    run(recipe, folder / "whole")
    with killed_in_step(2):
        run(recipe, folder / "killed")
    run(recipe, folder / "killed", resume=True)
    for file in ("student.safetensors", "terms.safetensors"):
        if (folder / "whole" / file).is_file():
            assert tiny.same_bytes(load_file(folder / "whole" / file), load_file(folder / "killed" / file))
    assert export(folder / "killed", format="safetensors").parity == 0.0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in NAMES]
)
def test_two_steps_a_resume_and_an_export(name: str, images: Path, tmp_path: Path) -> None:
    recipe = in_small(named(name), images, tmp_path)
    run_twice(recipe, tmp_path)
    torch.manual_seed(recipe.seed)
    assert recipe.student is not None
    first = models.build(recipe.student, num_classes=2 if recipe.labels else 0, size=32).module.state_dict()
    last = load_file(tmp_path / "whole" / "student.safetensors")
    assert all(torch.isfinite(value).all() for value in last.values())
    assert any(not torch.equal(first[key], value) for key, value in last.items())


def narrow(model: str, width: int) -> str:
    """A detector with another width of its pyramid."""
    kind, _, trunk = model.partition("/")
    return f"{kind.partition('-')[0]}-{width}/{trunk}"


@pytest.mark.long  # tests/detection/test_runs.py trains, resumes and exports detectors
@pytest.mark.parametrize("name", DETECTION)
def test_two_steps_a_resume_and_an_export_of_a_detector(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "LEAST_PRECISION", 0.0)  # of an untrained teacher
    (tmp_path / "images").mkdir()
    boxes.write_coco(tmp_path / "images", train=8, val=4)
    recipe = named(name)
    assert recipe.teacher is not None
    assert recipe.student is not None
    small = recipe.changed(
        {
            "data": str(tmp_path / "images"),
            "teacher": narrow(recipe.teacher, 64),
            "student": narrow(recipe.student, 32),
            "teacher_weights": str(tmp_path / "teacher.safetensors"),
            "pretrained": False,
            "size": 64,
            "longest": None if recipe.longest is None else 64,
            "workers": 0,
            "batch_size": 4,
            "lr": recipe.lr / 100,
            "epochs": 1,
            "milestones": tuple(milestone / recipe.epochs for milestone in recipe.milestones),
            "warmup_epochs": recipe.warmup_epochs / recipe.epochs,
            "probe": "off",
            "device": "cpu",
            "precision": "float32",
            "memory_format": "contiguous",
            "compile": "off",
            "checkpoint_every": 1,
        }
    )
    torch.manual_seed(1)
    teacher = kind_of(small.task).build_model(str(small.teacher), num_classes=2, size=small.size)
    weights = {key: value.contiguous() for key, value in teacher.module.state_dict().items()}
    save_file(weights, tmp_path / "teacher.safetensors")
    run_twice(small, tmp_path)
    last = load_file(tmp_path / "whole" / "student.safetensors")
    assert all(torch.isfinite(value).all() for value in last.values())
    terms = load_file(tmp_path / "whole" / "terms.safetensors")
    assert {value.shape for key, value in terms.items() if key.endswith("projector.weight")} == {(64, 32)}
