"""One-stage detectors of torchvision as modules from images to one tensor."""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from limbeck.detection import Level
from limbeck.detection.models.trunk import as_list, shapes
from limbeck.distributed import collectives

Targets = list[dict[str, Tensor]]
Outputs = dict[str, Tensor]


class Kind(NamedTuple):
    """What differs between the one-stage detectors.

    Attributes:
        columns: Names and widths of what the heads say, in the order of the output's columns.
        first: Number of the first class in their labels: 1 where 0 is the background.
        classes: Columns that are sigmoid logits of classes; 0 where the classes share a softmax.
        loss: ``(plain, targets, outputs, anchors, places a level) -> losses, by how many matched places they are
            divided``; None for the latter where each image counts alike.
        post: ``(plain, outputs, anchors, places a level, sizes) -> detections``.
        decode: ``(plain, outputs, anchors) -> boxes, scores`` of every place.
    """

    columns: tuple[tuple[str, int], ...]
    first: int
    classes: int
    loss: Callable[[Any, Targets, Outputs, Tensor, list[int]], tuple[Outputs, Tensor | None]]
    post: Callable[[Any, Outputs, Tensor, list[int], list[tuple[int, int]]], Targets]
    decode: Callable[[Any, Outputs, Tensor], tuple[Tensor, Tensor]]


@final
class OneStage(nn.Module):
    """RetinaNet, FCOS or SSD: images in, what the heads say of every anchor out.

    The parts are those of torchvision's model, under their names, so that its state dict is that of the plain model.
    Resizing, padding and normalizing are left to the loader and the task, and so are done once for student and teacher;
    losses, anchors and non-maximum suppression are torchvision's own.

    Args:
        plain: Torchvision's model.
        kind: What its outputs are.
        levels: The levels of its pyramid.
        stages: The maps that the pyramid is made of.
        divisor: Height and width of a frame have to be multiples of it.

    Deviates from: torchvision's model in where images are prepared. In float16 and bfloat16 the losses are computed in
        float32. On several processes the losses of FCOS and SSD are divided by the matched places of all of them.

    References:
        T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017 (RetinaNet); Z. Tian et al., "FCOS: Fully
        Convolutional One-Stage Object Detection", ICCV 2019; W. Liu et al., "SSD: Single Shot MultiBox Detector", ECCV
        2016; M. Sandler et al., "MobileNetV2", CVPR 2018 (SSDlite).
    """

    two_stage = False

    def __init__(
        self,
        plain: RetinaNet | FCOS | SSD,
        kind: Kind,
        *,
        levels: tuple[Level, ...],
        stages: tuple[Level, ...],
        divisor: int,
    ) -> None:
        super().__init__()
        for name, part in plain.named_children():
            self.add_module(name, part)
        self._plain = (plain,)  # in a tuple, so that its parts are not registered twice
        self._kind = kind
        self._anchors: dict[tuple[int, int], Tensor] = {}
        self._places: dict[tuple[int, int], list[int]] = {}
        self.levels = levels
        self.stages = stages
        self.divisor = divisor
        self.classes = kind.classes

    @property
    def plain(self) -> Any:
        """Torchvision's model, whose parts these are."""
        return self._plain[0]

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n places columns"]:
        """What the heads say of every anchor: class logits, box regression and, of FCOS, centerness."""
        outputs = self.plain.head(as_list(self.plain.backbone(images)))
        return torch.cat([outputs[name] for name, _ in self._kind.columns], -1)

    def losses(
        self, output: Float[Tensor, "n places columns"], targets: Targets, frame: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Classification and box losses of the model's paper; see :class:`limbeck.detection.Detector`."""
        anchors, places = self.anchors(frame, output.device)
        shifted = [{**target, "labels": target["labels"] + self._kind.first} for target in targets]
        with torch.autocast(output.device.type, enabled=False):
            losses, matched = self._kind.loss(self.plain, shifted, self.split(output), anchors, places)
        return losses if matched is None else collectives.share_by_objects(losses, matched, len(targets))

    def detect(
        self, output: Float[Tensor, "n places columns"], sizes: Int64[Tensor, "n 2"], frame: tuple[int, int]
    ) -> Targets:
        """Boxes, scores and labels behind non-maximum suppression; see :class:`limbeck.detection.Detector`."""
        anchors, places = self.anchors(frame, output.device)
        limits = [(int(height), int(width)) for height, width in sizes.tolist()]
        found = self._kind.post(self.plain, self.split(output), anchors, places, limits)
        return [{**one, "labels": one["labels"] - self._kind.first} for one in found]

    def decode(
        self, output: Float[Tensor, "n places columns"], frame: tuple[int, int]
    ) -> tuple[Float[Tensor, "n places 4"], Float[Tensor, "n places k"]]:
        """The box of every place, and its score for every class, in front of non-maximum suppression."""
        anchors, _ = self.anchors(frame, output.device)
        return self._kind.decode(self.plain, self.split(output), anchors)

    def split(self, output: Float[Tensor, "n places columns"]) -> Outputs:
        """The columns of an output by their names, in at least float32."""
        wide = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        parts = wide.split([width for _, width in self._kind.columns], -1)
        return {name: part for (name, _), part in zip(self._kind.columns, parts, strict=True)}

    def anchors(self, frame: tuple[int, int], device: torch.device) -> tuple[Float[Tensor, "places 4"], list[int]]:
        """The anchors of a frame, and how many of them each level has."""
        if frame not in self._anchors:
            maps = [torch.empty(shape[-2:]) for shape in shapes(self.plain.backbone, frame)]
            generator = self.plain.anchor_generator
            images = ImageList(torch.empty(1, 1, *frame), [frame])
            self._anchors[frame] = generator(images, [feature[None, None] for feature in maps])[0]
            each = generator.num_anchors_per_location()
            self._places[frame] = [feature.numel() * count for feature, count in zip(maps, each, strict=True)]
        return self._anchors[frame].to(device), self._places[frame]


def retinanet(classes: int) -> Kind:
    """RetinaNet's outputs."""
    return Kind(
        (("cls_logits", classes), ("bbox_regression", 4)), 0, classes, _retinanet_loss, _by_level, _decode_anchors
    )


def fcos(classes: int) -> Kind:
    """FCOS's outputs."""
    columns = (("cls_logits", classes), ("bbox_regression", 4), ("bbox_ctrness", 1))
    return Kind(columns, 0, classes, _fcos_loss, _by_level, _decode_points)


def ssd(classes: int) -> Kind:
    """SSD's outputs: the first of its classes is the background."""
    return Kind((("cls_logits", classes + 1), ("bbox_regression", 4)), 1, 0, _ssd_loss, _whole, _decode_softmax)


class CountingHead(FCOSHead):
    """FCOS's head, which also keeps how many places its last losses were divided by.

    Attributes:
        matched: That number, a scalar.
    """

    matched: Tensor

    def compute_loss(
        self, targets: Targets, head_outputs: Outputs, anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> Outputs:
        """Torchvision's losses."""
        self.matched = (torch.stack(matched_idxs) >= 0).sum()
        return super().compute_loss(targets, head_outputs, anchors, matched_idxs)


def _retinanet_loss(
    plain: Any, targets: Targets, outputs: Outputs, anchors: Tensor, places: list[int]
) -> tuple[Outputs, None]:
    del places
    return (plain.compute_loss(targets, outputs, [anchors] * len(targets)) if targets else {}), None


def _fcos_loss(
    plain: Any, targets: Targets, outputs: Outputs, anchors: Tensor, places: list[int]
) -> tuple[Outputs, Tensor]:
    if not targets:
        return {}, anchors.new_zeros(())
    return plain.compute_loss(targets, outputs, [anchors] * len(targets), places), plain.head.matched


def _ssd_loss(
    plain: Any, targets: Targets, outputs: Outputs, anchors: Tensor, places: list[int]
) -> tuple[Outputs, Tensor]:
    del places
    if not targets:
        return {}, anchors.new_zeros(())
    matched = [
        plain.proposal_matcher(box_iou(target["boxes"], anchors))
        if len(target["boxes"])
        else torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        for target in targets
    ]
    losses = plain.compute_loss(targets, outputs, [anchors] * len(targets), matched)
    return losses, (torch.stack(matched) >= 0).sum()


def _by_level(
    plain: Any, outputs: Outputs, anchors: Tensor, places: list[int], sizes: list[tuple[int, int]]
) -> Targets:
    levels = {name: list(values.split(places, 1)) for name, values in outputs.items()}
    return plain.postprocess_detections(levels, [list(anchors.split(places))] * len(sizes), sizes)


def _whole(plain: Any, outputs: Outputs, anchors: Tensor, places: list[int], sizes: list[tuple[int, int]]) -> Targets:
    del places
    return plain.postprocess_detections(outputs, [anchors] * len(sizes), sizes)


def _decode_anchors(plain: Any, outputs: Outputs, anchors: Tensor) -> tuple[Tensor, Tensor]:
    regression = outputs["bbox_regression"]
    flat = plain.box_coder.decode_single(regression.reshape(-1, 4), anchors.repeat(regression.shape[0], 1))
    return flat.reshape(regression.shape), outputs["cls_logits"].sigmoid()


def _decode_points(plain: Any, outputs: Outputs, anchors: Tensor) -> tuple[Tensor, Tensor]:
    regression = outputs["bbox_regression"]
    flat = plain.box_coder.decode(regression.reshape(-1, 4), anchors.repeat(regression.shape[0], 1))
    scores = (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()
    return flat.reshape(regression.shape), scores


def _decode_softmax(plain: Any, outputs: Outputs, anchors: Tensor) -> tuple[Tensor, Tensor]:
    boxes, _ = _decode_anchors(plain, outputs, anchors)
    return boxes, outputs["cls_logits"].softmax(-1)[..., 1:]
