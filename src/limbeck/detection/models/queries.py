"""RT-DETR of transformers as a module from images to one tensor."""

from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from limbeck.detection import Level
from limbeck.distributed import collectives
from limbeck.errors import UserError

Targets = list[dict[str, Tensor]]

MOST_FOUND = 100
"""Boxes of an image that are kept: as many as COCO counts."""


@final
class Queries(nn.Module):
    """RT-DETR: images in, class logits and box of every query out, of the encoder's choice and of every decoder layer.

    A query is one object or none, by bipartite matching with the boxes of an image, so that no non-maximum suppression
    is needed. Which place a query looks at depends on the image and the model: outputs of two models cannot be compared
    query by query, but their features can.

    The parts are those of transformers' model, under their names, so that its state dict is that of the plain model;
    the loss is transformers' own. Padding is part of the frame, as for every detector here.

    Args:
        plain: Transformers' ``RTDetrForObjectDetection``, made without denoising queries.
        levels: The maps that its hybrid encoder gives.
        stages: The backbone's maps.
        divisor: Height and width of a frame have to be multiples of it.

    Deviates from: the paper, whose training adds denoising queries made of the boxes, which are inputs of the forward
        pass; here it has none. In float16 and bfloat16 the losses are computed in float32. On several processes they
        are divided by the objects of all of them.

    References:
        Y. Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024; N. Carion et al., "End-to-End
        Object Detection with Transformers", ECCV 2020.
    """

    two_stage = False
    classes = 0

    def __init__(self, plain: Any, *, levels: tuple[Level, ...], stages: tuple[Level, ...], divisor: int) -> None:
        super().__init__()
        for name, part in plain.named_children():
            self.add_module(name, part)
        self._plain = (plain,)  # in a tuple, so that its parts are not registered twice
        self.levels = levels
        self.stages = stages
        self.divisor = divisor

    @property
    def plain(self) -> Any:
        """Transformers' model, whose parts these are."""
        return self._plain[0]

    @property
    def count(self) -> int:
        """Queries of an image."""
        return self.plain.config.num_queries

    def train(self, mode: bool = True) -> "Queries":
        """Put the plain model into the same mode: it asks itself for it."""
        self.plain.train(mode)
        return super().train(mode)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n places columns"]:
        """Class logits and box (center, width and height as shares of the frame) of every query.

        The encoder's choice comes first, then each layer of the decoder, the last one last.

        Raises:
            UserError: The frame has fewer places than there are queries.
        """
        places = sum(images.shape[-2] // level.stride * (images.shape[-1] // level.stride) for level in self.levels)
        if places < self.count:
            frame = f"{images.shape[-2]} x {images.shape[-1]}"
            raise UserError(f"a frame of {frame} pixels has {places} places for {self.count} queries")
        found = self.plain.model(images)
        logits = torch.cat([found.enc_topk_logits[:, None], found.intermediate_logits], 1)
        boxes = torch.cat([found.enc_topk_bboxes[:, None], found.intermediate_reference_points], 1)
        return torch.cat([logits, boxes.to(logits.dtype)], -1).flatten(1, 2)

    def losses(
        self, output: Float[Tensor, "n places columns"], targets: Targets, frame: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The weighted losses of every layer by bipartite matching; see :class:`limbeck.detection.Detector`."""
        from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

        objects = torch.tensor(sum(len(one["labels"]) for one in targets), device=output.device)
        if not targets:
            return collectives.share_by_objects({}, objects, 0)
        size = output.new_tensor([frame[1], frame[0]], dtype=torch.float32).repeat(2)
        labels = [{"class_labels": one["labels"], "boxes": _centered(one["boxes"].float()) / size} for one in targets]
        with torch.autocast(output.device.type, enabled=False):
            logits, boxes = self.split(output)
            _, parts, _ = RTDetrForObjectDetectionLoss(
                logits[:, -1],
                labels,
                output.device,
                boxes[:, -1],
                self.plain.config,
                logits[:, 1:],
                boxes[:, 1:],
                enc_topk_logits=logits[:, 0],
                enc_topk_bboxes=boxes[:, 0],
            )
        return collectives.share_by_objects(parts, objects, len(targets))

    def detect(
        self, output: Float[Tensor, "n places columns"], sizes: Int64[Tensor, "n 2"], frame: tuple[int, int]
    ) -> Targets:
        """The surest pairs of a query and a class; see :class:`limbeck.detection.Detector`."""
        boxes, scores = self.decode(output, frame)
        found: Targets = []
        for corners, sure, (height, width) in zip(boxes, scores, sizes.tolist(), strict=True):
            best, place = sure.flatten().topk(min(MOST_FOUND, sure.numel()))
            limit = corners.new_tensor([width, height, width, height])
            kept = torch.minimum(corners[place // sure.shape[1]].clamp_min(0), limit)
            found.append({"boxes": kept, "scores": best, "labels": place % sure.shape[1]})
        return found

    def decode(
        self, output: Float[Tensor, "n places columns"], frame: tuple[int, int]
    ) -> tuple[Float[Tensor, "n queries 4"], Float[Tensor, "n queries k"]]:
        """The box of every query of the last layer in pixels of the frame, and its score for every class."""
        logits, boxes = self.split(output)
        center, half = boxes[:, -1, :, :2], boxes[:, -1, :, 2:] / 2
        size = boxes.new_tensor([frame[1], frame[0]]).repeat(2)
        return torch.cat([center - half, center + half], -1) * size, logits[:, -1].sigmoid()

    def split(
        self, output: Float[Tensor, "n places columns"]
    ) -> tuple[Float[Tensor, "n layers queries k"], Float[Tensor, "n layers queries 4"]]:
        """Class logits and boxes by layers, in at least float32."""
        wide = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        layers = wide.unflatten(1, (-1, self.count))
        return layers[..., :-4], layers[..., -4:]


@final
class Encoded(nn.Module):
    """RT-DETR without its decoder, under its names, for a teacher of features; it gives the encoder's coarsest map."""

    def __init__(self, detector: Queries) -> None:
        super().__init__()
        whole: Any = detector.plain.model
        self.model = nn.Module()
        for name in ("backbone", "encoder_input_proj", "encoder"):
            self.model.add_module(name, getattr(whole, name))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c a b"]:
        """The coarsest level."""
        own: Any = self.model
        mask = images.new_ones((images.shape[0], *images.shape[2:]))
        maps = [
            project(one) for project, (one, _) in zip(own.encoder_input_proj, own.backbone(images, mask), strict=True)
        ]
        return own.encoder(maps).last_hidden_state[-1]


def _centered(boxes: Float[Tensor, "m 4"]) -> Float[Tensor, "m 4"]:
    """Center, width and height of corners."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
