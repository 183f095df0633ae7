"""The CIFAR nets against the literature's parameter counts."""

import pytest
import torch
from torch import nn

from limbeck.features.taps import Taps
from limbeck.models import build
from limbeck.models.cifar import NETS, Staged
from limbeck.models.small import SmallCNN

# Parameters for (10, 100) classes. No table gives all of them to the last digit, so each row says what it was held to:
# [pcv] exact, asserted by the model files of pytorchcv (osmr/imgclsmob; its chainer, gluon and torch ports agree);
# [wrn] exact on 100 classes in a published re-run of AugMix's WRN-40-2; Zagoruyko & Komodakis 2016 round it to 2.2 M,
#   and WRN-40-1 to 0.6 M;
# [he] He et al. 2016, table 6, 10 classes, plus 2,752 for the 1x1 shortcuts, which that table's nets lack: 0.27 M (20),
#   0.46 M (32), 0.66 M (44), 0.85 M (56), 1.7 M (110);
# [da2] the table of da2so/DA2Lite, model_zoo/README.md, with batch norm: VGG-16 14.73 M, VGG-19 20.04 M and (100
#   classes) 20.09 M, ResNet-50 23.52 M;
# [crd] counted by hand, layer by layer, from the CRD code (HobbitLong/RepDistiller, models/), which defines the net.
COUNTS = {
    "resnet8": (78_042, 83_892),  # crd
    "resnet14": (175_258, 181_108),  # crd
    "resnet20": (272_474, 278_324),  # pcv, he
    "resnet32": (466_906, 472_756),  # he, crd
    "resnet44": (661_338, 667_188),  # he, crd
    "resnet56": (855_770, 861_620),  # pcv, he
    "resnet110": (1_730_714, 1_736_564),  # pcv, he
    "resnet8x4": (1_210_410, 1_233_540),  # crd
    "resnet32x4": (7_410_730, 7_433_860),  # crd
    "resnet50": (23_520_842, 23_705_252),  # da2, crd
    "wrn_16_1": (175_066, 180_916),  # crd
    "wrn_16_2": (691_674, 703_284),  # crd
    "wrn_40_1": (563_930, 569_780),  # wrn, crd
    "wrn_40_2": (2_243_546, 2_255_156),  # wrn
    "vgg8": (3_918_858, 3_965_028),  # crd
    "vgg11": (9_231_114, 9_277_284),  # crd
    "vgg13": (9_416_010, 9_462_180),  # crd
    "vgg16": (14_728_266, 14_774_436),  # da2, crd
    "vgg19": (20_040_522, 20_086_692),  # da2, crd
    "mobilenetv2": (697_546, 812_836),  # crd
    "shufflenetv1": (862_768, 949_258),  # crd
    "shufflenetv2": (1_263_278, 1_355_528),  # crd
}
WIDTHS = {
    "resnet20": 64,
    "resnet8x4": 256,
    "resnet50": 2048,
    "wrn_40_1": 64,
    "wrn_40_2": 128,
    "vgg8": 512,
    "mobilenetv2": 1280,
    "shufflenetv1": 960,
    "shufflenetv2": 1024,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_net_has_a_count():
    assert COUNTS.keys() == NETS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_literatures(name: str):
    with torch.device("meta"):
        assert tuple(count(NETS[name](num_classes=classes)) for classes in (10, 100)) == COUNTS[name]


@pytest.mark.parametrize("name", NETS)
def test_every_net_runs_and_its_headless_twin_gives_the_classifiers_input(name: str):
    with torch.device("meta"):
        net, headless = NETS[name](num_classes=100), NETS[name](num_classes=0)
        images = torch.empty(2, 3, 32, 32)
    seen: list[torch.Size] = []
    classifier = next(layer for layer in net.modules() if isinstance(layer, nn.Linear))
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert net(images).shape == (2, 100)
    assert headless(images).shape == seen[0]
    assert seen[0][1] == WIDTHS.get(name, seen[0][1])


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_every_parameter_learns(name: str):
    net = NETS[name](num_classes=3)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


# Names of the published checkpoints, which therefore load.
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("resnet20", "layer2.0.downsample.0.weight"),
        ("wrn_40_2", "block2.layer.0.convShortcut.weight"),
        ("vgg8", "block1.1.running_mean"),
        ("mobilenetv2", "blocks.6.0.conv.7.weight"),
        ("shufflenetv1", "layer3.0.conv3.weight"),
        ("shufflenetv2", "layer1.0.bn5.weight"),
        ("resnet50", "layer1.0.shortcut.1.bias"),
    ],
)
def test_parameter_names_are_the_published_ones(name: str, key: str):
    with torch.device("meta"):
        assert key in NETS[name](num_classes=2).state_dict()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_other_sizes_run(size: int):
    with torch.device("meta"):
        for name in ("resnet8", "vgg8", "mobilenetv2", "shufflenetv2"):
            assert NETS[name](num_classes=5)(torch.empty(2, 3, size, size)).shape == (2, 5)


def test_small_cnn_is_three_convolutions_of_the_width():
    model = build("small/cnn-2", num_classes=10)
    assert model.name == "small/cnn-2"
    assert model.input.size == 8
    assert isinstance(model.module, SmallCNN)
    # 3x3: 3*2 + 2*4 + 4*4 kernels of 9; batch norms 2 * (2 + 4 + 4); classifier 4 * 10 + 10
    assert count(model.module) == 9 * (6 + 8 + 16) + 20 + 50


# (channels, side) of feat[1:-1] in the CRD code, at 32 pixels.
_NARROW, _X4 = ((16, 32), (32, 16), (64, 8)), ((64, 32), (128, 16), (256, 8))
_WIDE, _VGG = ((32, 32), (64, 16), (128, 8)), ((128, 16), (256, 8), (512, 4), (512, 4))
STAGES = {
    "resnet8": _NARROW,
    "resnet20": _NARROW,
    "resnet8x4": _X4,
    "resnet32x4": _X4,
    "resnet50": ((256, 32), (512, 16), (1024, 8), (2048, 4)),
    "wrn_16_2": _WIDE,
    "wrn_40_1": _NARROW,
    "wrn_40_2": _WIDE,
    "vgg8": _VGG,
    "vgg13": _VGG,
    "mobilenetv2": ((12, 16), (16, 8), (48, 4), (160, 2)),
    "shufflenetv1": ((240, 16), (480, 8), (960, 4)),
    "shufflenetv2": ((116, 16), (232, 8), (464, 4)),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_stage_taps_are_those_of_the_crd_protocol(name: str):
    with torch.device("meta"):
        net, images = NETS[name](num_classes=100), torch.empty(2, 3, 32, 32)
    assert isinstance(net, Staged)
    for taps in (net.stage_taps, net.preactivation_taps):
        features = Taps(net, taps)(images).features
        assert tuple((features[tap].shape[1], features[tap].shape[2]) for tap in taps) == STAGES[name]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "resnet50"])
def test_what_comes_before_the_last_relu(name: str):
    """As the CRD code has it: WRN's through the batch norm of the next stage, MobileNetV2 without a ReLU."""
    torch.manual_seed(0)
    net = NETS[name](num_classes=10).eval()
    assert isinstance(net, Staged)
    with torch.no_grad():
        features = Taps(net, [*net.stage_taps, *net.preactivation_taps])(torch.randn(2, 3, 32, 32)).features
    for after, before in zip(net.stage_taps, net.preactivation_taps, strict=True):
        post, pre = features[after], features[before]
        assert (pre < 0).any()
        if name.startswith("wrn"):
            assert torch.equal(net.get_submodule(before)(post), pre)
        else:
            assert torch.equal(post, pre if name == "mobilenetv2" else pre.relu())
