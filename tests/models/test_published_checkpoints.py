"""Checkpoints of RepDistiller and mdistiller load: their names and shapes, written down from the architectures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.models import build

Shapes = dict[str, tuple[int, ...]]
NARROW, X4 = (16, 16, 32, 64), (32, 64, 128, 256)


def norm(name: str, width: int) -> Shapes:
    found: Shapes = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return found | {f"{name}.num_batches_tracked": ()}


def conv(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel)}


def linear(name: str, inputs: int, classes: int = 100) -> Shapes:
    return {f"{name}.weight": (classes, inputs), f"{name}.bias": (classes,)}


def resnet(depth: int, widths: tuple[int, ...]) -> Shapes:
    """models/resnet.py: stages layer1 to layer3 of basic blocks, downsample.0 and .1 where the shape changes."""
    found = conv("conv1", 3, widths[0], 3) | norm("bn1", widths[0])
    inputs = widths[0]
    for stage, width in enumerate(widths[1:], start=1):
        for block in range((depth - 2) // 6):
            at = f"layer{stage}.{block}"
            found |= conv(f"{at}.conv1", inputs, width, 3) | norm(f"{at}.bn1", width)
            found |= conv(f"{at}.conv2", width, width, 3) | norm(f"{at}.bn2", width)
            if block == 0 and (stage > 1 or inputs != width):
                found |= conv(f"{at}.downsample.0", inputs, width, 1) | norm(f"{at}.downsample.1", width)
            inputs = width
    return found | linear("fc", inputs)


def wide(depth: int, factor: int) -> Shapes:
    """models/wrn.py: block1 to block3 with layer.N, norms in front, convShortcut where the width changes."""
    found = conv("conv1", 3, 16, 3)
    inputs = 16
    for stage in (1, 2, 3):
        width = 16 * factor * 2 ** (stage - 1)
        for block in range((depth - 4) // 6):
            at = f"block{stage}.layer.{block}"
            found |= norm(f"{at}.bn1", inputs) | conv(f"{at}.conv1", inputs, width, 3)
            found |= norm(f"{at}.bn2", width) | conv(f"{at}.conv2", width, width, 3)
            if inputs != width:
                found |= conv(f"{at}.convShortcut", inputs, width, 1)
            inputs = width
    return found | norm("bn1", inputs) | linear("fc", inputs)


def vgg(depths: tuple[int, ...]) -> Shapes:
    """models/vgg.py: block0 to block4, convolutions with a bias at 0, 3, ... and norms behind each; classifier."""
    found: Shapes = {}
    inputs = 3
    for block, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512, 512), strict=True)):
        for layer in range(depth):
            at = f"block{block}.{3 * layer}"
            found |= (
                conv(at, inputs, width, 3) | {f"{at}.bias": (width,)} | norm(f"block{block}.{3 * layer + 1}", width)
            )
            inputs = width
    return found | linear("classifier", inputs)


def bottleneck() -> Shapes:
    """models/resnetv2.py, ResNet50: layer1 to layer4, shortcut.0 and .1, linear."""
    found = conv("conv1", 3, 64, 3) | norm("bn1", 64)
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            found |= conv(f"{at}.conv1", inputs, width, 1) | norm(f"{at}.bn1", width)
            found |= conv(f"{at}.conv2", width, width, 3) | norm(f"{at}.bn2", width)
            found |= conv(f"{at}.conv3", width, 4 * width, 1) | norm(f"{at}.bn3", 4 * width)
            if block == 0:
                found |= conv(f"{at}.shortcut.0", inputs, 4 * width, 1) | norm(f"{at}.shortcut.1", 4 * width)
            inputs = 4 * width
    return found | linear("linear", inputs)


TEACHERS: dict[str, Shapes] = {
    "resnet56": resnet(56, NARROW),
    "resnet110": resnet(110, NARROW),
    "resnet32x4": resnet(32, X4),
    "resnet50": bottleneck(),
    "wrn_40_2": wide(40, 2),
    "vgg13": vgg((2, 2, 2, 2, 2)),
}
"""The teachers that both publish (save/models/NAME_vanilla/ckpt_epoch_240.pth)."""


def planted(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.rand(shape) if shape else torch.tensor(93_600) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", TEACHERS)
def test_names_and_shapes_are_those_of_the_teachers(name: str) -> None:
    with torch.device("meta"):
        state = build(f"cifar/{name}", num_classes=100).module.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == TEACHERS[name]


def test_a_teacher_of_repdistiller_loads(tmp_path: Path) -> None:
    """Its file holds the epoch and the accuracy, a tensor of the device, beside the weights."""
    state = planted(wide(40, 2))
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": state, "accuracy": torch.tensor([75.61])}, path)
    model = build("cifar/wrn-40-2", num_classes=100, weights=path)
    assert model.weights == "file:ckpt_epoch_240.pth"
    assert not model.new_head
    assert all(torch.equal(value, state[key]) for key, value in model.module.state_dict().items())


@pytest.mark.parametrize("file", ["student_best", "student_240", "latest"])
def test_a_student_of_mdistiller_loads(file: str, tmp_path: Path) -> None:
    """Its files have no ending; of those of the whole distiller, the student's part is taken and not the teacher's."""
    state, other = planted(resnet(8, X4)), planted(resnet(32, X4))
    whole = {"epoch": 240, "optimizer": {"state": {}, "param_groups": []}, "best_acc": torch.tensor(76.3)}
    if file == "latest":
        prefixed = {f"module.student.{name}": value for name, value in state.items()}
        whole |= {"model": prefixed | {f"module.teacher.{name}": value for name, value in other.items()}}
    else:
        whole |= {"model": state}
    torch.save(whole, tmp_path / file)
    model = build("cifar/resnet8x4", num_classes=100, weights=tmp_path / file)
    assert all(torch.equal(value, state[key]) for key, value in model.module.state_dict().items())


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_deits_own_files_load(name: str, tmp_path: Path) -> None:
    """The official files have timm's names in "model"; the distilled ones a token and a head more."""
    with torch.device("meta"):
        shapes = {
            k: tuple(v.shape) for k, v in build(f"timm/{name}", num_classes=3, size=32).module.state_dict().items()
        }
    assert ("dist_token" in shapes, "head_dist.weight" in shapes) == ("distilled" in name,) * 2
    assert shapes["blocks.11.attn.qkv.weight"] == (576, 192)
    state = planted(shapes)
    torch.save({"model": state}, tmp_path / "deit.pth")
    model = build(f"timm/{name}", num_classes=3, size=32, weights=tmp_path / "deit.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.module.state_dict().items())
