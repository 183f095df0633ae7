import contextlib
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from limbeck.assembly.features import tap_pool
from limbeck.assembly.terms import build_pool
from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Taps
from limbeck.models import InputSpec, Model, build
from limbeck.models.cifar import NETS
from limbeck.models.stages import layout_of, shapes_of, stages

SPEC = InputSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 16)

# Models at a size of 64 pixels if nothing else stands there, and the stages that they have.
EXPECTED = {
    "cifar/resnet20@32": ("layer1", "layer2", "layer3"),
    "cifar/resnet50@32": ("layer1", "layer2", "layer3", "layer4"),
    "cifar/wrn_16_2@32": ("block1", "block2", "bn1"),
    "cifar/vgg8@32": ("block1", "block2", "block4"),
    "cifar/vgg13@32": ("block0", "block1", "block2", "block4"),
    "cifar/mobilenetv2@32": ("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    "cifar/shufflenetv1@32": ("layer1", "layer2", "layer3"),
    "cifar/shufflenetv2@32": ("layer1", "layer2", "layer3"),
    "small/cnn-8@8": ("bn1", "bn3"),
    "small/vit-64@32": ("blocks.1", "blocks.2", "blocks.4", "blocks.5"),
    "torchvision/swin_t": ("features.1", "features.3", "features.5", "permute"),
    "torchvision/resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "torchvision/mobilenet_v2": ("features.3", "features.6", "features.13", "features.17"),  # 18 is the head's
    "torchvision/efficientnet_b0": ("features.2", "features.3", "features.5", "features.7"),  # and so is 8
    "torchvision/squeezenet1_1": ("features.4", "features.7", "features.12"),
    "torchvision/alexnet": ("features.1", "features.4", "features.11"),  # avgpool is finer than what it pools
}
DEEP = ("cifar/resnet50@32", "cifar/mobilenetv2@32", "cifar/shufflenetv1@32")  # each takes seconds
# Small variants of timm whose stages a guess by shapes got wrong, or gets right by luck.
KNOWN = {
    "mvitv2_tiny": ("stages.1:input", "stages.2:input", "stages.3:input", "norm:input"),  # its stages return tuples
    "tnt_s_patch16_224": ("norm:input",),  # no submodule gives what its blocks add up
    "volo_d1_224": ("network.0", "network.2", "network.3", "post_network.1"),
    "sequencer2d_s": ("stages.0", "stages.1", "stages.2", "stages.3"),
    "efficientvim_m1": ("stages.0.downsample:input", "stages.1.downsample:input"),
    "hiera_tiny_224": ("blocks.11",),  # the others are in another order
    "efficientnet_b0": ("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    "levit_128s": ("stages.0", "stages.1"),
    "pvt_v2_b0": ("stages.0", "stages.1", "stages.2", "stages.3"),
    "test_resnet": ("layer1", "layer2", "layer3", "layer4"),
    "test_convnext": ("stages.0", "stages.1", "stages.2", "stages.3"),
}
# One small variant of each further family of timm; left out are those of 90 million parameters and more.
FAMILIES = [
    "beit_base_patch16_224",
    "caformer_s18",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "cpubone_nano",
    "crossvit_tiny_240",
    "cs3darknet_s",
    "csatv2",
    "cspnext_tiny",
    "davit_tiny",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla46_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvit_b0",
    "efficientvit_m0",
    "ese_vovnet19b_slim",
    "eva02_tiny_patch14_224",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "gmlp_ti16_224",
    "halonet26t",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnet_035",
    "lcnetv2_small",
    "legacy_seresnet18",
    "legacy_xception",
    "lowformer_b0",
    "mobilevitv2_050",
    "naflexvit_base_patch16_gap",
    "nest_tiny",
    "nextvit_small",
    "pit_ti_distilled_224",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m0_9",
    "res2net50_48w_2s",
    "resnest14d",
    "resnetv2_18",
    "rexnetr_100",
    "sam2_hiera_tiny",
    "samvit_base_patch16_224",
    "selecsls42b",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "test_byobnet",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_vit_relpos",
    "tiny_vit_5m_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "xception41",
    "xcit_nano_12_p16_224",
]


def at_a_size(name: str) -> Model:
    name, _, size = name.partition("@")
    return build(name, num_classes=3, size=int(size or 64))


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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in DEEP else name for name in EXPECTED]
)
def test_the_stages_of_known_models(name: str) -> None:
    model = at_a_size(name)
    taps = stages(model)
    assert taps == EXPECTED[name]
    check(model, taps)


def small(name: str) -> Model:
    """A model of timm at the first of a few sizes that it takes."""
    for size in (64, 56, 96, 128):
        with contextlib.suppress(UserError):
            return build(f"timm/{name}", num_classes=3, size=size)
    return build(f"timm/{name}", num_classes=3)


def rows(model: Model, taps: tuple[str, ...], images: Tensor) -> list[Tensor]:
    """The features of taps in eval mode, laid out by what is known of their shapes: (n, positions, c)."""
    with evaluating(model.module):
        found = Taps(model.module, taps)(images).features
    layouts = [layout_of(shape) for shape in shapes_of(model, taps)]
    assert None not in layouts
    return [
        pooling.grid_positions(*each.size, prefix=each.prefix, channels_last=each.channels_last)(found[tap])
        for tap, each in zip(taps, layouts, strict=True)
        if each is not None
    ]


def agrees_with_timm(model: Model) -> tuple[str, ...]:
    """Each stage has the values of a feature that timm names, in its order; a change in a corner is in that corner."""
    taps = stages(model)
    images = torch.rand(2, 3, model.input.size, model.input.size, generator=torch.Generator().manual_seed(1))
    with evaluating(model.module):
        given = model.module.forward_intermediates(images, intermediates_only=True)
    ours, theirs = rows(model, taps, images), [pooling.spatial_positions(each) for each in given]
    places = [
        next(place for place, feature in reversed([*enumerate(theirs)]) if torch.equal(each, feature)) for each in ours
    ]
    assert places == sorted(set(places))
    assert places[-1] == len(theirs) - 1 or given[-1].shape[-1] == 1
    changed = images.clone()
    changed[:, :, : model.input.size // 8, -model.input.size // 8 :] += 1  # top right
    moved = (rows(model, taps[:1], changed)[0] - ours[0]).square().sum((0, 2))
    side = math.isqrt(len(moved))
    row, column = divmod(int(moved.argmax()), side)
    assert row <= (side - 1) / 2 <= column
    features(model, taps)  # what Taps accepts in training
    return taps


@pytest.mark.parametrize("name", KNOWN)
def test_the_stages_of_timm_are_the_features_that_it_names(name: str) -> None:
    assert agrees_with_timm(small(name)) == KNOWN[name]


class Logits(nn.Module):
    """A classifier of transformers as a user's function wraps it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


FOUR = {"depths": [2, 2, 2, 2], "image_size": 64, "num_labels": 3}
SWIN = {**FOUR, "embed_dim": 16, "num_heads": [1, 2, 2, 2], "window_size": 2}
HIERARCHY = {**FOUR, "hidden_sizes": [8, 16, 16, 32], "num_attention_heads": [1, 2, 2, 2]}
BEFORE_MERGING = (*(f"encoder.layers.{i}.downsample:input" for i in range(3)), "layernorm")


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("Swin", SWIN, BEFORE_MERGING),  # its blocks and stages return tuples
        ("Swinv2", SWIN, BEFORE_MERGING),
        ("Pvt", HIERARCHY, (*(f"encoder.patch_embeddings.{i}:input" for i in (1, 2, 3)), "encoder.layer_norm")),
        ("PvtV2", HIERARCHY, tuple(f"encoder.layers.{i}.layer_norm" for i in range(4))),
    ],
)
def test_the_stages_of_transformers(name: str, settings: dict[str, object], expected: tuple[str, ...]) -> None:
    library = pytest.importorskip("transformers")
    config = getattr(library, f"{name}Config")(**settings)
    module = Logits(getattr(library, f"{name}ForImageClassification")(config))
    model = Model(module, name, InputSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 64), 3, "classifier:input", "random")
    taps = stages(model)
    prefix = {"Swin": "swin", "Swinv2": "swinv2", "Pvt": "pvt", "PvtV2": "pvt_v2"}[name]
    assert taps == tuple(f"model.{prefix}.{tap}" for tap in expected)
    layouts = [layout_of(shape) for shape in shapes_of(model, taps)]
    assert [layout and layout.size[0] for layout in layouts] == [16, 8, 4, 2]
    assert [layout and layout.prefix for layout in layouts] == [0, 0, 0, int(name == "Pvt")]  # a class token at the end
    features(model, taps)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_the_stages_of_every_family_of_timm_are_the_features_that_it_names(name: str) -> None:
    assert agrees_with_timm(small(name))


@pytest.mark.long  # one of each kind is among the known models
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


def test_tokens_before_the_patches_are_not_a_part_of_the_image() -> None:
    """Nine tokens are 2 x 2 patches after a class token and four registers, and not 3 x 3."""
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(32, 16, embed_dim=32, depth=2, num_heads=1, reg_tokens=4, num_classes=3)
    model = Model(module, "registers", replace(SPEC, size=32), 3, "head:input", "random")
    (shape,) = shapes_of(model, ["norm"])
    assert shape == (2, 9, 32)
    assert layout_of(shape) == ((2, 2), 5, False)
    for name in ("token_positions", "token_mean"):
        tokens = torch.randn(2, 9, 32)
        kept = build_pool(name, 5)(tokens)
        torch.testing.assert_close(tap_pool(name, model, "norm")(tokens), kept)
        torch.testing.assert_close(kept if kept.ndim == 2 else kept.mean(1), tokens[:, 5:].mean(1))
    wrapped = Model(nn.Sequential(module), "wrapped", replace(SPEC, size=32), 3, "0.head:input", "random")
    assert layout_of(shapes_of(wrapped, ["0.norm"])[0]) == ((2, 2), 5, False)  # by the grid of the patch embedding


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
