"""From a name to a detector."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.ops import MultiScaleRoIAlign

from limbeck.detection import Level
from limbeck.detection.models.one_stage import CountingHead, OneStage, fcos, retinanet, ssd
from limbeck.detection.models.pyramid import BuiltPyramid, build_pyramid
from limbeck.detection.models.queries import Encoded, Queries
from limbeck.detection.models.rtdetr import HEADS as _QUERY_HEADS
from limbeck.detection.models.rtdetr import UNUSED, build_rtdetr, input_spec
from limbeck.detection.models.trunk import StageTrunk, Trunk, as_list
from limbeck.detection.models.two_stage import TwoStage
from limbeck.distiller import evaluating
from limbeck.errors import UserError, did_you_mean
from limbeck.models.quiet_timm import timm
from limbeck.models.spec import InputSpec, Model
from limbeck.models.weights import WeightsUnavailable, fit_weights, read_weights

ARCHITECTURES = ("fasterrcnn", "retinanet", "fcos", "ssdlite", "rtdetr")
WIDTH = 256  # of the pyramid, in every paper of these detectors
LARGEST = 800  # shorter side of the COCO literature; where nothing else is asked for
SSDLITE = "ssdlite/torchvision/mobilenet_v3_large"
_LOW_SCORE = 0.05  # below it detections are left out, as in all of torchvision's but FCOS, whose 0.2 costs precision
_GROUP = 8  # channels of a group in the norms of FCOS's heads
_STEP = 32  # torchvision builds those heads for widths of a multiple of it


class _Name(NamedTuple):
    architecture: str
    width: int
    trunk: str


class _Made(NamedTuple):
    module: OneStage | TwoStage | Queries
    name: str
    input: InputSpec
    trunk: Trunk | None
    heads: tuple[str, ...]


def build_detector(
    name: str,
    *,
    num_classes: int,
    size: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    allow_new_head: bool = False,
    frozen_norms: bool = False,
) -> Model:
    """Build a detector by its name.

    | name | detector |
    |---|---|
    | `fasterrcnn/FAMILY/NAME` | Faster R-CNN on a pyramid over any classification model of `limbeck.models.build` |
    | `retinanet/FAMILY/NAME`, `fcos/FAMILY/NAME` | RetinaNet, FCOS, likewise |
    | `fcos-64/FAMILY/NAME` | with a pyramid of 64 channels in the place of 256, for small images; likewise the others |
    | `ssdlite/torchvision/mobilenet_v3_large` | SSDlite as torchvision has it |
    | `rtdetr/transformers/r50vd` | RT-DETR of transformers; also r18vd, r34vd, r101vd, `rtdetr-64/...` |

    On one of torchvision's ResNets the state dict is that of torchvision's own detector (`fasterrcnn_resnet50_fpn`).

    Args:
        name: See the table.
        num_classes: Classes of objects, without a background.
        size: Side of its images, for the record; it runs at any.
        weights: A file (safetensors, or a state dict of torch) or a run folder of this detector, or of the
            classification model that is its trunk: then the rest stays random.
        pretrained: Load the weights of the trunk that its library publishes.
        allow_new_head: Accept weights whose classifiers are for other classes.
        frozen_norms: Fix the statistics and the parameters of the trunk's batch norms, as is usual for a trunk that has
            been trained before and small batches.

    Returns:
        The detector, in training mode; `Model.module` is a :class:`limbeck.detection.Detector`.

    Raises:
        WeightsUnavailable: If no pretrained weights are available.
        UserError: If the name or the weights cannot be used.

    Example:
        >>> model = build_detector("fcos-32/cifar/resnet8", num_classes=3)
        >>> [level.stride for level in model.module.levels]
        [4, 8, 16]
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: a detector has 1 or more")
    if weights is not None and pretrained:
        raise UserError(f"{name}: give weights or pretrained, not both")
    loaded = read_weights(Path(weights)) if weights is not None else None
    wanted = parse(name)
    if wanted.architecture == "rtdetr":
        made = _rtdetr(wanted, num_classes, size or LARGEST, pretrained, frozen_norms)
    else:
        made = _make(wanted, num_classes, pretrained)
    origin, new_head = ("hub" if pretrained else "random"), pretrained
    if loaded is not None:
        origin = loaded.origin
        loaded = replace(loaded, state={key: own for key, own in loaded.state.items() if UNUSED not in key})
        whole = any(key.rpartition("backbone.")[2].startswith(("body.", "fpn.", "features.")) for key in loaded.state)
        if whole or made.trunk is None:
            new_head = fit_weights(made.module, loaded, heads=made.heads, name=made.name, allow_new_head=allow_new_head)
        else:
            body = made.trunk.module
            inner = body.model if isinstance(body, StageTrunk) else body
            fit_weights(inner, loaded, heads=made.trunk.heads, name=made.trunk.name, allow_new_head=True)
            new_head = True
    if frozen_norms and not isinstance(made.module, Queries):
        _freeze(made)
    return Model(
        module=made.module,
        name=made.name,
        input=replace(made.input, size=size or LARGEST),
        num_classes=num_classes,
        penultimate=made.module.levels[-1].tap,
        weights=origin,
        new_head=new_head,
    )


def parse(name: str) -> _Name:
    """Architecture, width of the pyramid, and trunk.

    Raises:
        UserError: It is no name of a detector.

    Example:
        >>> parse("fcos-64/cifar/resnet20")
        _Name(architecture='fcos', width=64, trunk='cifar/resnet20')
    """
    head, _, trunk = name.partition("/")
    found = re.fullmatch(r"([a-z_]+?)(?:-(\d{1,4}))?", head.lower())
    if found is None or found[1] not in ARCHITECTURES:
        near = did_you_mean(head.lower(), ARCHITECTURES)
        kinds = ", ".join(ARCHITECTURES)
        raise UserError(f'"{name}" is no detector{near}: expected ARCHITECTURE/FAMILY/MODEL, one of {kinds}')
    if not trunk:
        raise UserError(
            f'"{name}" names no trunk: expected {found[1]}/FAMILY/MODEL, for example {found[1]}/timm/resnet18'
        )
    return _Name(found[1], WIDTH if found[2] is None else int(found[2]), trunk)


def is_detector(name: str) -> bool:
    """Whether a name is spelt as one of a detector."""
    return name.partition("/")[0].lower().partition("-")[0] in ARCHITECTURES


def _make(name: _Name, num_classes: int, pretrained: bool) -> _Made:
    if name.architecture == "ssdlite":
        return _ssdlite(name, num_classes, pretrained)
    if name.width < 8 or (name.architecture == "fcos" and name.width % _STEP):
        wanted = f"a multiple of {_STEP}" if name.architecture == "fcos" else "at least 8"
        raise UserError(f"{name.architecture}-{name.width}: expected {wanted}")
    dense = name.architecture != "fasterrcnn"
    built = build_pyramid(name.trunk, width=name.width, dense=dense, pretrained=pretrained)
    full = f"{_prefix(name)}/{built.trunk.name}"
    match name.architecture:
        case "retinanet":
            return _Made(_retinanet(built, num_classes), full, built.trunk.input, built.trunk, _DENSE_HEADS)
        case "fcos":
            return _Made(_fcos(built, num_classes), full, built.trunk.input, built.trunk, _DENSE_HEADS)
        case _:
            return _Made(_faster_rcnn(built, num_classes, name.width), full, built.trunk.input, built.trunk, _BOX_HEADS)


def _prefix(name: _Name) -> str:
    """The architecture, with the width of the pyramid where it is not the usual one."""
    return name.architecture if name.width == WIDTH else f"{name.architecture}-{name.width}"


_DENSE_HEADS = ("head.classification_head.cls_logits",)
_BOX_HEADS = ("roi_heads.box_predictor",)
_SSD_HEADS = ("head.classification_head",)


def _retinanet(built: BuiltPyramid, num_classes: int) -> OneStage:
    """Three sizes and three shapes of anchors a place, of four strides and more: from 32 pixels at stride 8."""
    sizes = tuple(tuple(int(4 * stride * 2 ** (step / 3)) for step in range(3)) for stride in built.strides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    plain = detection.RetinaNet(built.module, num_classes, anchor_generator=anchors, score_thresh=_LOW_SCORE)
    return OneStage(
        plain, retinanet(num_classes), levels=built.levels, stages=built.stages, divisor=built.trunk.strides[-1]
    )


def _fcos(built: BuiltPyramid, num_classes: int) -> OneStage:
    """One point a place; a level is for boxes of four to eight strides. Groups of 8 channels in the norms of the heads.

    Torchvision has 32 groups at any width, which in a pyramid of 32 channels would leave nothing of a level of 1x1.
    """
    anchors = AnchorGenerator(tuple((stride,) for stride in built.strides), ((1.0,),) * len(built.strides))
    width = built.module.out_channels
    norm = partial(nn.GroupNorm, width // _GROUP)
    head = CountingHead(width, 1, num_classes)
    head.classification_head = FCOSClassificationHead(width, 1, num_classes, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(width, 1, norm_layer=norm)
    plain = detection.FCOS(built.module, num_classes, anchor_generator=anchors, head=head, score_thresh=_LOW_SCORE)
    return OneStage(plain, fcos(num_classes), levels=built.levels, stages=built.stages, divisor=built.trunk.strides[-1])


def _faster_rcnn(built: BuiltPyramid, num_classes: int, width: int) -> TwoStage:
    """Anchors of eight strides: 32 to 512 pixels from stride 4; a head of 1024, or of four times a narrow pyramid."""
    sizes = tuple((8 * stride,) for stride in built.strides)
    pool = MultiScaleRoIAlign(
        [str(place) for place in range(len(built.trunk.strides))], output_size=7, sampling_ratio=2
    )
    hidden = min(1024, 4 * width)
    plain = detection.FasterRCNN(
        built.module,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_roi_pool=pool,
        box_head=TwoMLPHead(width * 7 * 7, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes + 1),
        box_score_thresh=_LOW_SCORE,
    )
    return TwoStage(plain, levels=built.levels, stages=built.stages, divisor=built.trunk.strides[-1])


def _ssdlite(name: _Name, num_classes: int, pretrained: bool) -> _Made:
    trunk = name.trunk.lower().replace("-", "_")
    if f"ssdlite/{trunk}" != SSDLITE or name.width != WIDTH:
        raise UserError(f'"ssdlite/{name.trunk}" is not there: torchvision has {SSDLITE}')
    if pretrained:
        raise WeightsUnavailable(f"{SSDLITE}: give the weights as a file")
    plain = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes + 1)
    taps = ("features.0", "features.1", "extra.0", "extra.1", "extra.2", "extra.3")
    widths = (672, 480, 512, 256, 256, 128)
    levels = tuple(
        Level(f"backbone.{tap}", 16 * 2**place, width)
        for place, (tap, width) in enumerate(zip(taps, widths, strict=True))
    )
    module = OneStage(plain, ssd(num_classes), levels=levels, stages=levels[:2], divisor=32)
    return _Made(module, SSDLITE, InputSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 320, "bilinear"), None, _SSD_HEADS)


def _rtdetr(name: _Name, num_classes: int, size: int, pretrained: bool, frozen_norms: bool) -> _Made:
    full = f"{_prefix(name)}/{name.trunk.lower()}"
    if pretrained:
        raise WeightsUnavailable(f"{full}: give the weights as a file")
    module = build_rtdetr(name.trunk, width=name.width, num_classes=num_classes, size=size, frozen_norms=frozen_norms)
    return _Made(module, full, input_spec(), None, _QUERY_HEADS)


def _freeze(made: _Made) -> None:
    """Put batch norms whose statistics and parameters are fixed in the place of the trunk's."""
    body: Any = made.trunk.module if made.trunk is not None else made.module.backbone
    timm.layers.norm_act.freeze_batch_norm_2d(body)
    if isinstance(body, StageTrunk):
        body.tap()


def trunk_only(module: nn.Module) -> nn.Module:
    """A detector that is asked for features alone: its heads are not run, and not held.

    Its taps have the same names; what it gives is the coarsest level of the pyramid.

    Raises:
        UserError: The module is no detector of this package.
    """
    if isinstance(module, Queries):
        return Encoded(module)
    if not isinstance(module, OneStage | TwoStage):
        raise UserError(f"a {type(module).__name__} has no trunk that is known")
    backbone: Any = module.backbone
    return Headless(backbone)


def heads_shape(module: nn.Module, frame: tuple[int, int]) -> tuple[int, ...]:
    """Places and columns of what a detector gives for one image of a frame, a small one."""
    with evaluating(module):
        return tuple(as_list(module(torch.zeros(1, 3, *frame)))[0].shape[1:])


class Headless(nn.Module):
    """The backbone of a detector under its own name; see :func:`trunk_only`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The coarsest level."""
        return as_list(self.backbone(images))[-1]
