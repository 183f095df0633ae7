import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models import InputSpec, Model, build
from limbeck.models.cifar import NETS
from limbeck.models.stages import layout_of, stages
from limbeck.taps import Taps

SPEC = InputSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 16)

EXPECTED = {
    "cifar/resnet20": ("layer1", "layer2", "layer3"),
    "cifar/resnet50": ("layer1", "layer2", "layer3", "layer4"),
    "cifar/wrn_16_2": ("block1", "block2", "bn1"),
    "cifar/vgg8": ("block1", "block2", "block4"),
    "cifar/vgg13": ("block0", "block1", "block2", "block4"),
    "cifar/mobilenetv2": ("blocks.1", "blocks.2", "blocks.4", "conv2"),
    "cifar/shufflenetv1": ("layer1", "layer2", "layer3"),
    "cifar/shufflenetv2": ("layer1", "layer2", "bn2"),
    "small/cnn-8": ("bn1", "bn3"),
    "small/vit-64": ("blocks.1", "blocks.2", "blocks.4", "blocks.5"),
    "timm/resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "timm/deit_tiny_patch16_224": ("blocks.2", "blocks.5", "blocks.8", "blocks.11"),
    "timm/convnext_atto": ("stages.0", "stages.1", "stages.2", "stages.3"),
    "timm/regnety_016": ("s1", "s2", "s3", "s4"),
    "timm/swin_tiny_patch4_window7_224": ("layers.0", "layers.1", "layers.2", "norm"),
    "timm/levit_128s": ("stages.0", "stages.1", "stages.2"),  # tokens that become fewer
    "timm/pit_ti_224": ("transformers.0.blocks", "transformers.1.blocks", "transformers.2.blocks"),
    "timm/cait_xxs24_224": ("blocks.5", "blocks.11", "blocks.17", "blocks.23"),  # and two blocks of a token alone
    "timm/crossvit_tiny_240": ("blocks.0.blocks.1", "blocks.1.blocks.0", "blocks.2.blocks.0", "blocks.2.blocks.1"),
    "timm/efficientformer_l1": ("stages.0", "stages.1", "stages.2", "norm"),  # maps, and tokens at the end
    "timm/tnt_s_legacy_patch16_224": tuple(f"blocks.{i}.attn_out" for i in (2, 5, 8, 11)),  # parts of patches are not
    "torchvision/swin_t": ("features.1", "features.3", "features.5", "permute"),
    "torchvision/resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "torchvision/mobilenet_v2": ("features.3", "features.6", "features.13", "features.18"),
}


def features(model: Model, taps: tuple[str, ...]) -> list[Tensor]:
    images = torch.rand(2, 3, model.input.size, model.input.size)
    captured = Taps(model.module.train(), taps)(images)
    return [captured.features[tap] for tap in taps]


def check(model: Model, taps: tuple[str, ...]) -> None:
    """What Taps accepts, in a training pass; ordered, and no vector among them."""
    found = features(model, taps)
    if found[0].ndim == 4:
        layouts = [layout for x in found if (layout := layout_of(tuple(x.shape))) is not None]
        sizes = [layout.size[0] for layout in layouts]
        assert len(sizes) == len(found)
        assert sizes == sorted(set(sizes), reverse=True)
        assert sizes[-1] > 1
    else:
        assert {x.ndim for x in found} == {3}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_stages_of_known_models(name: str) -> None:
    model = build(name, num_classes=10)
    taps = stages(model)
    assert taps == EXPECTED[name]
    check(model, taps)


@pytest.mark.parametrize("name", NETS)
def test_every_cifar_net_has_stages(name: str) -> None:
    model = build(f"cifar/{name}", num_classes=10)
    taps = stages(model)
    assert 3 <= len(taps) <= 4
    check(model, taps)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 512, 7, 7), ((7, 7), 0, False)),
        ((2, 7, 7, 768), ((7, 7), 0, True)),
        ((2, 8, 8, 8), ((8, 8), 0, False)),  # cannot be told apart: channels first, as nearly all models have them
        ((2, 196, 384), ((14, 14), 0, False)),
        ((2, 1374, 384), ((37, 37), 5, False)),  # DINOv2 with a class token and four registers
        ((2, 512), None),
    ],
)
def test_the_layout_is_guessed_from_the_shape(shape: tuple[int, ...], expected: tuple[object, ...] | None) -> None:
    layout = layout_of(shape)
    assert (tuple(layout) if layout is not None else None) == expected


def test_it_leaves_no_trace() -> None:
    model = build("cifar/resnet20", num_classes=10)
    model.module.layer1.eval()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    modes = [part.training for part in model.module.modules()]
    state = torch.get_rng_state()
    stages(model)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert [part.training for part in model.module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part._forward_hooks for part in model.module.modules())


def test_a_headless_model_and_fewer_stages() -> None:
    headless = build("cifar/resnet20", num_classes=0)
    assert stages(headless) == ("layer1", "layer2", "layer3")
    assert stages(headless, count=2) == ("layer2", "layer3")
    assert stages(build("small/vit-64", num_classes=10), count=3) == ("blocks.1", "blocks.3", "blocks.5")
    assert stages(build("small/vit-64", num_classes=10), count=9) == tuple(f"blocks.{i}" for i in range(6))


def test_an_image_of_one_patch() -> None:
    """A class token and a patch: less than a grid, but all that such a small image has."""
    model = build("deit/conv_stem_test", num_classes=10, size=16)
    taps = stages(model)
    assert taps == ("blocks.1", "blocks.2", "blocks.4", "blocks.5")
    assert {x.shape[1] for x in features(model, taps)} == {2}


class Awkward(nn.Module):
    """At each of its resolutions the last submodule is one that Taps refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.overwritten = nn.BatchNorm2d(4)
        self.third = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.pooled = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.overwritten(self.second(self.first(x)))
        x = self.third(nn.functional.relu_(x))
        return self.fc(self.pooled(self.twice(self.twice(x))).flatten(1))


def test_what_taps_refuses_is_never_among_them() -> None:
    model = Model(Awkward(), "awkward", SPEC, 2, "fc:input", "random")
    assert stages(model) == ("second", "third")
    check(model, ("second", "third"))
    for refused in ("overwritten", "twice"):
        with pytest.raises(UserError, match=r"in place|more than once"):
            features(model, (refused,))


def test_errors_name_the_fault() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    with pytest.raises(UserError, match="flat has no submodule that gives maps or tokens"):
        stages(Model(flat, "flat", SPEC, 2, "1:input", "random"))
    with pytest.raises(UserError, match="count is 0"):
        stages(Model(flat, "flat", SPEC, 2, "1:input", "random"), count=0)
