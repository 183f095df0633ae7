"""RT-DETR: the same losses, boxes and weights as transformers' own model; features by stride; it learns."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from limbeck.detection import Detector
from limbeck.detection.models import build_detector, trunk_only
from limbeck.detection.models.rtdetr import SIZES, build_rtdetr
from limbeck.errors import UserError
from limbeck.features.taps import Taps

transformers = pytest.importorskip("transformers", reason="RT-DETR is that of transformers, an extra")
NAME = "rtdetr-32/transformers/r18vd"
FRAME = (64, 96)


@pytest.fixture(scope="module")
def built() -> Any:
    torch.manual_seed(0)
    return build_detector(NAME, num_classes=3, size=64).module


@pytest.fixture
def detector(built: Any) -> Any:
    return copy.deepcopy(built)


def targets(frame: tuple[int, int] = FRAME) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[5.0, 5.0, 40.0, 50.0], [30.0, 10.0, 90.0, 60.0]])
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def in_shares(frame: tuple[int, int]) -> list[dict[str, Tensor]]:
    """The targets as transformers takes them: center, width and height as shares of the frame."""
    height, width = frame
    return [
        {
            "class_labels": one["labels"],
            "boxes": torch.tensor(
                [
                    [(a + c) / 2 / width, (b + d) / 2 / height, (c - a) / width, (d - b) / height]
                    for a, b, c, d in one["boxes"].tolist()
                ]
            ).reshape(-1, 4),
        }
        for one in targets(frame)
    ]


def test_equals_transformers_own_model(detector: Any):
    assert isinstance(detector, Detector)
    plain = transformers.RTDetrForObjectDetection(detector.plain.config)
    plain.load_state_dict(detector.state_dict(), strict=True)
    images = torch.rand(2, 3, *FRAME)
    detector.train(), plain.train()
    found = detector.losses(detector(images), targets(), FRAME)
    expected = plain(images, labels=in_shares(FRAME))
    assert {key: value.item() for key, value in found.items()} == pytest.approx(
        {key: value.item() for key, value in expected.loss_dict.items()}, rel=1e-4
    )
    assert len(found) == 3 * 4  # of three layers and the encoder's choice
    detector.eval(), plain.eval()
    with torch.no_grad():
        boxes, scores = detector.decode(detector(images), FRAME)
        wanted = plain(images)
    sides = torch.tensor([FRAME[1], FRAME[0]] * 2)
    center, half = wanted.pred_boxes[..., :2], wanted.pred_boxes[..., 2:] / 2
    torch.testing.assert_close(boxes, torch.cat([center - half, center + half], -1) * sides)
    torch.testing.assert_close(scores, wanted.logits.sigmoid())


def test_the_surest_boxes_are_those_of_transformers(detector: Any):
    processor = pytest.importorskip("transformers.models.rt_detr.image_processing_rt_detr").RTDetrImageProcessor()
    images = torch.rand(2, 3, *FRAME)
    detector.eval()
    with torch.no_grad():
        output = detector(images)
        found = detector.detect(output, torch.tensor([FRAME, FRAME]), FRAME)
        wanted = processor.post_process_object_detection(
            detector.plain(images), threshold=0.0, target_sizes=torch.tensor([FRAME, FRAME])
        )
    for one, other in zip(found, wanted, strict=True):
        count = len(other["scores"])  # transformers keeps as many as there are queries
        assert 0 < count < len(one["scores"]) == 100
        one = {key: value[:count] for key, value in one.items()}  # noqa: PLW2901
        torch.testing.assert_close(one["scores"], other["scores"])
        assert torch.equal(one["labels"], other["labels"])
        width, height = FRAME[1], FRAME[0]
        kept = torch.minimum(other["boxes"].clamp_min(0), torch.tensor([width, height, width, height]))
        torch.testing.assert_close(one["boxes"], kept, atol=1e-3, rtol=1e-4)


def test_levels_are_the_maps_of_their_strides_and_all_of_it_trains(detector: Any):
    levels = (*detector.levels, *detector.stages)
    captured = Taps(detector, [level.tap for level in levels])(torch.rand(2, 3, *FRAME))
    for level in levels:
        feature = captured.features[level.tap]
        assert feature.shape[1:] == (level.width, FRAME[0] // level.stride, FRAME[1] // level.stride)
    sum(detector.losses(captured.output, targets(), FRAME).values()).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []


def test_without_its_decoder_it_gives_the_same_features(detector: Any):
    detector.eval()
    alone = trunk_only(detector)
    taps = [level.tap for level in (*detector.levels, *detector.stages)]
    images = torch.rand(1, 3, 64, 64)
    whole, few = (Taps(module, taps)(images).features for module in (detector, alone))
    assert all(torch.equal(whole[tap], few[tap]) for tap in taps)
    assert not [key for key in alone.state_dict() if key.startswith(("model.decoder", "model.enc_"))]
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in alone.state_dict().items())


def test_a_copy_is_a_model_of_its_own(detector: Any):
    other = copy.deepcopy(detector)
    images = torch.rand(1, 3, *FRAME)
    detector.eval()
    assert other.train().plain.training
    assert not detector.plain.training
    before = detector(images)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(detector(images), before)


def test_published_weights_load_though_they_embed_denoising_queries(detector: Any, tmp_path: Path):
    state = {**detector.state_dict(), "model.denoising_class_embed.weight": torch.zeros(4, 32)}
    save_file(state, tmp_path / "published.safetensors")
    model = build_detector(NAME, num_classes=3, size=64, weights=tmp_path / "published.safetensors")
    assert not model.new_head
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in model.module.state_dict().items())
    other = build_detector(
        NAME, num_classes=5, size=64, weights=tmp_path / "published.safetensors", allow_new_head=True
    )
    assert other.new_head


def test_frozen_norms_do_not_move(tmp_path: Path):
    frozen = build_detector(NAME, num_classes=3, size=64, frozen_norms=True).module.train()
    before = {k: v.clone() for k, v in frozen.state_dict().items() if "backbone" in k and "running" in k}
    assert before
    frozen(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, frozen.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("rtdetr/timm/resnet18", 64, "is not there: expected rtdetr/transformers/ and one of r18vd, r34vd"),
        ("rtdetr/transformers/r19vd", 64, r'did you mean "r18vd"'),
        ("rtdetr-40/transformers/r18vd", 64, "rtdetr-40: expected a multiple of 32"),
    ],
)
def test_names_that_are_none_are_told(name: str, size: int, said: str):
    with pytest.raises(UserError, match=said):
        build_detector(name, num_classes=3, size=size)


def test_a_frame_with_too_few_places_is_told(detector: Any):
    assert detector.count == 8 * 8 + 4 * 4 + 2 * 2  # of 64 pixels, below the published 300
    with pytest.raises(UserError, match="a frame of 32 x 32 pixels has 21 places for 84 queries"):
        detector(torch.rand(1, 3, 32, 32))


def test_without_the_package_it_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r'RT-DETR needs the package transformers: pip install "limbeck\[detection,hub\]"'
    ):
        build_rtdetr("transformers/r18vd", width=32, num_classes=3, size=64, frozen_norms=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [("r18vd", 20.2), ("r34vd", 31.4), ("r50vd", 42.9), ("r101vd", 76.6)])
def test_sizes_are_the_published_ones(name: str, millions: float):
    """Parameters of the four models, in millions: 20, 31, 42 and 76 in the paper's table and repository."""
    assert name in SIZES
    module = build_rtdetr(f"transformers/{name}", width=256, num_classes=80, size=640, frozen_norms=True)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.3)
    assert module.count == 300
