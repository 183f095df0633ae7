"""Faster R-CNN of torchvision as a module from images to its feature pyramid."""

import contextlib
from collections import OrderedDict
from collections.abc import Generator
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from limbeck.detection import Level
from limbeck.detection.models.trunk import as_list, shapes

Targets = list[dict[str, Tensor]]


@final
class TwoStage(nn.Module):
    """Faster R-CNN: images in, the positions of all levels of the pyramid out.

    The region proposal network and the heads of regions read that output, in :meth:`losses` and :meth:`detect`: what
    they compute in training depends on the boxes of the batch, and a teacher of features does not need them at all.
    The parts are those of torchvision's model, under their names, so that its state dict is that of the plain model.

    Args:
        plain: Torchvision's model.
        levels: The levels of its pyramid that submodules give.
        stages: The maps that the pyramid is made of.
        divisor: Height and width of a frame have to be multiples of it.

    Deviates from: torchvision's model in where images are prepared, and in proposals that are cut off at the frame and
        not at the image in training. In float16 and bfloat16 the two stages are computed in float32.

    References:
        S. Ren, K. He, R. Girshick, J. Sun, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal
        Networks", NIPS 2015; T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    two_stage = True
    classes = 0

    def __init__(
        self, plain: FasterRCNN, *, levels: tuple[Level, ...], stages: tuple[Level, ...], divisor: int
    ) -> None:
        super().__init__()
        self.backbone: Any = plain.backbone
        self.rpn: Any = plain.rpn
        self.roi_heads: Any = plain.roi_heads
        self._grids: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.levels = levels
        self.stages = stages
        self.divisor = divisor

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n places width"]:
        """The positions of all levels, finest first, in reading order."""
        return torch.cat([level.flatten(2).transpose(1, 2) for level in as_list(self.backbone(images))], 1)

    def losses(
        self, output: Float[Tensor, "n places width"], targets: Targets, frame: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The losses of both stages; see :class:`limbeck.detection.Detector`."""
        if not targets:
            return {}
        images = self._images(output, [frame] * len(output), frame)
        # Zero is the background.
        shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
        with torch.autocast(output.device.type, enabled=False), _mode((self.rpn, self.roi_heads), training=True):
            maps = self.maps(output, frame)
            proposals, first = self.rpn(images, maps, shifted)
            _, second = self.roi_heads(maps, proposals, images.image_sizes, shifted)
        return {**first, **second}

    def detect(
        self, output: Float[Tensor, "n places width"], sizes: Int64[Tensor, "n 2"], frame: tuple[int, int]
    ) -> Targets:
        """Boxes, scores and labels behind non-maximum suppression; see :class:`limbeck.detection.Detector`."""
        images = self._images(output, [(int(height), int(width)) for height, width in sizes.tolist()], frame)
        with torch.autocast(output.device.type, enabled=False), _mode((self.rpn, self.roi_heads), training=False):
            maps = self.maps(output, frame)
            proposals, _ = self.rpn(images, maps)
            found, _ = self.roi_heads(maps, proposals, images.image_sizes)
        return [{**one, "labels": one["labels"] - 1} for one in found]

    def propose(self, output: Float[Tensor, "n places width"], frame: tuple[int, int], count: int) -> list[Tensor]:
        """The best proposals of the first stage for each image, at most so many, without gradient."""
        images = self._images(output, [frame] * len(output), frame)
        with (
            torch.no_grad(),
            torch.autocast(output.device.type, enabled=False),
            _mode((self.rpn,), training=False),
        ):
            proposals, _ = self.rpn(images, self.maps(output, frame))
        return [boxes[:count] for boxes in proposals]

    def classify(
        self, output: Float[Tensor, "n places width"], proposals: list[Tensor], frame: tuple[int, int]
    ) -> tuple[Float[Tensor, "k classes"], Float[Tensor, "k boxes"]]:
        """Class logits, the background first, and box regression of the second stage for given proposals."""
        with torch.autocast(output.device.type, enabled=False):
            pooled = self.roi_heads.box_roi_pool(self.maps(output, frame), proposals, [frame] * len(output))
            return self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))

    def maps(self, output: Float[Tensor, "n places width"], frame: tuple[int, int]) -> "OrderedDict[str, Tensor]":
        """The levels of an output as maps again, in at least float32."""
        wide = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        grids = self.grids(frame)
        parts = wide.split([height * width for height, width in grids], 1)
        names = [*(str(place) for place in range(len(grids) - 1)), "pool"]
        return OrderedDict(
            (name, part.transpose(1, 2).unflatten(2, grid))
            for name, part, grid in zip(names, parts, grids, strict=True)
        )

    def grids(self, frame: tuple[int, int]) -> list[tuple[int, int]]:
        """Height and width of each level for a frame."""
        if frame not in self._grids:
            self._grids[frame] = [(shape[2], shape[3]) for shape in shapes(self.backbone, frame)]
        return self._grids[frame]

    def _images(self, output: Tensor, sizes: list[tuple[int, int]], frame: tuple[int, int]) -> ImageList:
        """What torchvision's parts ask of images: their shape and sizes."""
        return ImageList(output.new_empty(1, 1, 1, 1).expand(len(output), 3, *frame), sizes)


@contextlib.contextmanager
def _mode(modules: tuple[nn.Module, ...], *, training: bool) -> Generator[None, None, None]:
    """Modules in a mode for a while, but not the modules in them: torchvision's parts choose by it what they give."""
    before = [module.training for module in modules]
    for module in modules:
        module.training = training
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode
