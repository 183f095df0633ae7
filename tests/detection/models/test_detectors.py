"""Detectors: the same losses, boxes and weights as torchvision's own models, on any trunk."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import detection

from limbeck.detection import Detector
from limbeck.detection.models import OneStage, TwoStage, build_detector, is_detector, trunk_only
from limbeck.detection.models.build import parse
from limbeck.detection.models.trunk import build_trunk
from limbeck.errors import UserError
from limbeck.features.taps import Taps
from limbeck.models import build

FRAME = (64, 96)


def targets(*, first: int = 0) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[5.0, 5.0, 40.0, 50.0], [30.0, 10.0, 90.0, 60.0]])
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 0]) + first},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def plain_fcos() -> nn.Module:
    return detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)


def plain_retinanet() -> nn.Module:
    return detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)


def plain_faster_rcnn() -> nn.Module:
    return detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)


def plain_ssdlite() -> nn.Module:
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)


PLAIN: dict[str, Callable[[], Any]] = {
    "fcos/torchvision/resnet50": plain_fcos,
    "retinanet/torchvision/resnet50": plain_retinanet,
    "fasterrcnn/torchvision/resnet50": plain_faster_rcnn,
    "ssdlite/torchvision/mobilenet_v3_large": plain_ssdlite,
}


def as_given(plain: Any, frame: tuple[int, int]) -> None:
    """Make torchvision's own transform the identity on images of the frame."""
    plain.transform.image_mean, plain.transform.image_std = [0.0] * 3, [1.0] * 3
    plain.transform.min_size, plain.transform.max_size = (min(frame),), max(frame)
    plain.transform.fixed_size = None
    plain.transform.size_divisible = 1


@pytest.mark.parametrize("name", PLAIN)
def test_equals_torchvisions_own_model(name: str):
    """Weights go over with strict=True in both directions; losses and boxes are the same."""
    frame = (320, 320) if name.startswith("ssd") else FRAME
    plain = PLAIN[name]()
    ours = build_detector(name, num_classes=3).module
    assert isinstance(ours, Detector)
    ours.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(ours.state_dict(), strict=True)
    as_given(plain, frame)
    plain.score_thresh = 0.05
    images = torch.randn(2, 3, *frame)
    first = 1 if name.startswith(("ssd", "faster")) else 0
    plain.train()
    ours.train()
    torch.manual_seed(1)
    expected = plain(list(images), targets(first=first))
    torch.manual_seed(1)
    for _ in images:
        torch.empty(1).uniform_()  # torchvision's transform draws one for each image
    found = ours.losses(ours(images), targets(), frame)
    assert {key: value.item() for key, value in found.items()} == pytest.approx(
        {key: value.item() for key, value in expected.items()}, rel=1e-4
    )
    plain.eval()
    ours.eval()
    with torch.no_grad():
        wanted = plain(list(images))
        boxes = ours.detect(ours(images), torch.tensor([frame, frame]), frame)
    assert sum(len(one["boxes"]) for one in wanted) > 0 or name.startswith("retinanet")
    for one, other in zip(boxes, wanted, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)
        assert torch.equal(one["labels"] + first, other["labels"])


TRUNKS = (
    "cifar/resnet8",
    "cifar/wrn-16-2",
    "timm/resnet18",
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "timm/mobilenetv3_small_100",
)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("architecture", ["fcos-32", "fasterrcnn-32"])
def test_every_trunk_trains_as_a_whole_and_its_levels_can_be_tapped(architecture: str, trunk: str):
    model = build_detector(f"{architecture}/{trunk}", num_classes=3)
    detector: Any = model.module
    images = torch.randn(2, 3, *FRAME)
    names = [level.tap for level in (*detector.levels, *detector.stages)]
    captured = Taps(detector, names)(images)
    for level in (*detector.levels, *detector.stages):
        feature = captured.features[level.tap]
        assert feature.shape[1] == level.width
        assert feature.shape[2:] == tuple(-(-side // level.stride) for side in FRAME)
    sum(detector.losses(captured.output, targets(), FRAME).values()).backward()
    assert [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []


def test_strides_are_those_of_the_papers():
    dense, two = (
        build_detector(f"{name}/torchvision/resnet18", num_classes=3).module for name in ("fcos", "fasterrcnn")
    )
    assert isinstance(dense, OneStage)
    assert isinstance(two, TwoStage)
    assert [level.stride for level in dense.levels] == [8, 16, 32, 64, 128]
    assert [level.stride for level in two.levels] == [4, 8, 16, 32]
    assert [level.tap for level in dense.stages] == [f"backbone.body.layer{number}" for number in (2, 3, 4)]


def test_a_copy_is_a_model_of_its_own():
    one = build_detector("fcos-32/cifar/resnet8", num_classes=3).module
    other = copy.deepcopy(one)
    images = torch.randn(1, 3, *FRAME)
    one.eval(), other.eval()
    before = one(images)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(one(images), before)
    assert not torch.equal(other(images), before)
    assert other.plain.backbone is other.backbone


def test_a_trunk_alone_gives_the_same_features_and_holds_no_heads():
    for name in ("fcos-32/timm/resnet18", "fasterrcnn-32/timm/resnet18"):
        detector: Any = build_detector(name, num_classes=3).module.eval()
        alone = trunk_only(detector)
        taps = [level.tap for level in (*detector.levels, *detector.stages)]
        images = torch.randn(1, 3, 64, 64)
        whole, few = (Taps(module, taps)(images).features for module in (detector, alone))
        assert all(torch.equal(whole[tap], few[tap]) for tap in taps)
        heads = ("head.", "rpn.", "roi_heads.")
        assert not [key for key in alone.state_dict() if key.startswith(heads)]
        assert [key for key in detector.state_dict() if key.startswith(heads)]


def test_decoded_places_hold_the_detections():
    detector: Any = build_detector("fcos-32/cifar/resnet8", num_classes=3).module.eval()
    with torch.no_grad():
        output = detector(torch.randn(2, 3, 64, 64))
        boxes, scores = detector.decode(output, (64, 64))
        found = detector.detect(output, torch.tensor([[64, 64]] * 2), (64, 64))
    for one, all_boxes, all_scores in zip(found, boxes, scores, strict=True):
        best = int(all_scores.amax(1).argmax())
        torch.testing.assert_close(one["scores"][0], all_scores.max())
        torch.testing.assert_close(one["boxes"][0], all_boxes[best].clamp(0, 64))


def test_weights_of_a_classifier_go_into_the_trunk(tmp_path: Path):
    classifier = build("cifar/resnet8", num_classes=10)
    save_file(classifier.module.state_dict(), tmp_path / "classifier.safetensors")
    model = build_detector("fcos-32/cifar/resnet8", num_classes=3, weights=tmp_path / "classifier.safetensors")
    assert model.new_head
    assert torch.equal(
        model.module.state_dict()["backbone.body.model.conv1.weight"], classifier.module.state_dict()["conv1.weight"]
    )
    with pytest.raises(UserError, match="do not fit cifar/resnet20"):
        build_detector("fcos-32/cifar/resnet20", num_classes=3, weights=tmp_path / "classifier.safetensors")


def test_weights_of_other_classes_keep_all_but_the_classifier(tmp_path: Path):
    other = build_detector("fcos-32/cifar/resnet8", num_classes=5)
    save_file(other.module.state_dict(), tmp_path / "detector.safetensors")
    with pytest.raises(UserError, match="have another classifier than fcos-32/cifar/resnet8"):
        build_detector("fcos-32/cifar/resnet8", num_classes=3, weights=tmp_path / "detector.safetensors")
    model = build_detector(
        "fcos-32/cifar/resnet8", num_classes=3, weights=tmp_path / "detector.safetensors", allow_new_head=True
    )
    assert model.new_head
    key = "head.regression_head.bbox_reg.weight"
    assert torch.equal(model.module.state_dict()[key], other.module.state_dict()[key])
    same = build_detector("fcos-32/cifar/resnet8", num_classes=5, weights=tmp_path / "detector.safetensors")
    assert not same.new_head


def test_frozen_norms_do_not_move_and_load_into_ordinary_ones():
    frozen = build_detector("fcos-32/cifar/resnet8", num_classes=3, frozen_norms=True).module
    before = {key: value.clone() for key, value in frozen.state_dict().items() if "running" in key}
    assert before
    output = frozen.train()(torch.randn(4, 3, 64, 64))
    frozen.losses(output, targets() * 2, (64, 64))
    assert all(torch.equal(value, frozen.state_dict()[key]) for key, value in before.items())
    assert not [name for name, _ in frozen.named_parameters() if ".bn" in name]
    build_detector("fcos-32/cifar/resnet8", num_classes=3).module.load_state_dict(frozen.state_dict(), strict=True)


def test_the_second_stage_judges_given_boxes():
    detector: Any = build_detector("fasterrcnn-32/timm/resnet18", num_classes=3).module
    output = detector(torch.randn(2, 3, *FRAME))
    proposals = detector.propose(output, FRAME, 10)
    assert [len(boxes) <= 10 for boxes in proposals] == [True, True]
    logits, boxes = detector.classify(output, proposals, FRAME)
    count = sum(map(len, proposals))
    assert (logits.shape, boxes.shape) == ((count, 4), (count, 16))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fcoss/timm/resnet18", r'"fcoss/timm/resnet18" is no detector \(did you mean "fcos"\?\)'),
        ("resnet18", "is no detector"),
        ("fcos", "names no trunk"),
        ("fcos-20/timm/resnet18", "fcos-20: expected a multiple of 32"),
        ("retinanet-4/timm/resnet18", "retinanet-4: expected at least 8"),
        ("fcos/timm/resnet17", r'unknown model "timm/resnet17" \(did you mean'),
        ("fcos/timm/vit_tiny_patch16_224", "timm/vit_tiny_patch16_224"),
        ("fcos/small/cnn-8", "has stages of .* pixels; a detector wants one of at least 4"),
        ("ssdlite/timm/resnet18", "is not there: torchvision has ssdlite/torchvision/mobilenet_v3_large"),
    ],
)
def test_names_that_are_none_are_told(name: str, said: str):
    with pytest.raises(UserError, match=said):
        build_detector(name, num_classes=3)


def test_names_of_detectors_are_known_by_their_architecture():
    assert is_detector("fcos-64/cifar/resnet20")
    assert is_detector("FasterRCNN/timm/resnet18")
    assert not is_detector("timm/resnet18")
    assert not is_detector("cifar/resnet20")
    assert parse("FCOS-64/cifar/resnet20") == ("fcos", 64, "cifar/resnet20")


def test_a_trunk_says_where_its_maps_are():
    trunk = build_trunk("timm/resnet18", pretrained=False)
    assert (trunk.strides, trunk.widths) == ((2, 4, 8, 16, 32), (64, 64, 128, 256, 512))
    assert trunk.taps == ("act1", "layer1", "layer2", "layer3", "layer4")
