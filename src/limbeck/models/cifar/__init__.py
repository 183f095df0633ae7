"""The nets of the CIFAR distillation literature, written anew.

Architectures, parameter counts and parameter names are those of the CRD code (HobbitLong/RepDistiller), whose numbers
the field's tables continue, so its published checkpoints load here. Three differences that change neither: pooling is a
global mean instead of a fixed 8x8 or 4x4 window, so other input sizes work; activations are not in place, so a tapped
feature is not overwritten; and features are read with taps instead of being returned.
"""

from functools import partial
from typing import Protocol

from torch import nn

from limbeck.models.cifar.common import Staged
from limbeck.models.cifar.mobilenetv2 import MobileNetV2
from limbeck.models.cifar.resnet import BottleneckResNet, ResNet
from limbeck.models.cifar.shufflenet import ShuffleNetV1, ShuffleNetV2
from limbeck.models.cifar.vgg import VGG
from limbeck.models.cifar.wide_resnet import WideResNet

__all__ = [
    "NETS",
    "VGG",
    "BottleneckResNet",
    "MobileNetV2",
    "Net",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "Staged",
    "WideResNet",
]


class Net(Protocol):
    """Makes a net for a number of classes; 0 makes it headless."""

    def __call__(self, *, num_classes: int) -> nn.Module:
        """Build the net with fresh weights."""
        ...


_NARROW = (16, 16, 32, 64)
_X4 = (32, 64, 128, 256)

NETS: dict[str, Net] = {
    "resnet8": partial(ResNet, 8, _NARROW),
    "resnet14": partial(ResNet, 14, _NARROW),
    "resnet20": partial(ResNet, 20, _NARROW),
    "resnet32": partial(ResNet, 32, _NARROW),
    "resnet44": partial(ResNet, 44, _NARROW),
    "resnet56": partial(ResNet, 56, _NARROW),
    "resnet110": partial(ResNet, 110, _NARROW),
    "resnet8x4": partial(ResNet, 8, _X4),
    "resnet32x4": partial(ResNet, 32, _X4),
    "resnet50": BottleneckResNet,
    "wrn_16_1": partial(WideResNet, 16, 1),
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_1": partial(WideResNet, 40, 1),
    "wrn_40_2": partial(WideResNet, 40, 2),
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "mobilenetv2": partial(MobileNetV2, 0.5),
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}
