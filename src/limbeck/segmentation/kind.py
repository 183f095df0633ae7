"""What segmentation answers as a kind of task; see `limbeck.assembly.tasks.Kind`."""

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck import models
from limbeck.assembly.features import tap_shape
from limbeck.assembly.tasks import AnyData, Kind, Program
from limbeck.errors import UserError
from limbeck.models import Model
from limbeck.recipes.recipe import Recipe
from limbeck.segmentation.assembly import (
    build_segmentation_data,
    build_segmentation_distiller,
    build_segmentation_task,
    full_weight,
)
from limbeck.segmentation.batch import SegmentationBatch
from limbeck.segmentation.data import SegmentationData
from limbeck.segmentation.models import DIVISOR, build_segmenter
from limbeck.segmentation.samples import MASKS, drawn_masks
from limbeck.terms import Term

TOO_HEAVY = 10.0
"""Logits that pulled 11 times as hard as the task ended at 20% mIoU on CamVid, the student alone at 31% (8 epochs)."""

PATCH = 32  # pixels of a side of what a random mask is made of


def _open_for_scoring(
    recipe: Recipe, source: str, label_file: str | None, size: int, bits: int, classes: tuple[str, ...]
) -> SegmentationData:
    if label_file is not None:
        raise UserError(f"--labels {label_file}: for image classes; masks come with --data, a folder")
    changes = {"data": source, "val": None, "size": size, "classes": ()}
    return build_segmentation_data(recipe.changed(changes), scored=classes, bits=bits)


def _judge(scores: Mapping[str, float], data: AnyData) -> tuple[str, str]:
    """Below half of what one right class of all is worth, a teacher knows nothing; chosen."""
    text = (
        f"mIoU {100 * scores['miou']:.2f}%, pixel accuracy {100 * scores['pixel_accuracy']:.2f}% "
        f"on {data.val_count} validation images"
    )
    return text, "no better than one class everywhere" if scores["miou"] < 0.5 / len(data.classes) else ""


def _describe_taps(term: Term, student: Model, teacher: Model) -> str:
    pairs = zip(term.student_taps, term.teacher_taps, strict=True)
    return "; ".join(f"{_shape(student, s)} to {_shape(teacher, t)}" for s, t in pairs)


def _shape(model: Model, tap: str) -> str:
    return f'"{tap}" {"x".join(["n", *(str(side) for side in tap_shape(model, tap)[1:])])}'


class Enlarged(nn.Module):
    """Logits at the size of the images, from a model that gives them at any stride."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(n, k, h, w)`` of images ``(n, 3, h, w)``."""
        logits = self.model(images)
        if logits.shape[2:] == images.shape[2:]:
            return logits
        return nn.functional.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def _random_batch(recipe: Recipe, student: Model, count: int, side: int, classes: int) -> SegmentationBatch:
    side = max(side // DIVISOR, 1) * DIVISOR
    coarse = torch.randint(classes, (count, math.ceil(side / PATCH), math.ceil(side / PATCH)), dtype=torch.uint8)
    masks = coarse.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, :side, :side].contiguous()
    return SegmentationBatch(torch.rand(count, 3, side, side), masks, (side, side), torch.arange(count))


KIND = Kind(
    open_data=build_segmentation_data,
    open_for_scoring=_open_for_scoring,
    build_model=build_segmenter,
    unused_parameters=models.unused_parameters,
    teaches_headless=False,  # a trunk that was trained on other images segments nothing: its decoder is random
    build_distiller=lambda recipe, student, teacher, data: build_segmentation_distiller(recipe, student, teacher),
    rival_weight=full_weight,
    build_scorer=lambda model, device: build_segmentation_task(model, None).to(device),
    judge_teacher=_judge,
    describe_taps=_describe_taps,
    too_heavy=TOO_HEAVY,
    too_heavy_when_tuned=TOO_HEAVY,
    record_checks=lambda recipe, parts, log, device: None,
    build_probe=lambda recipe, parts, optimizer, log, step, steps: None,
    samples_file=MASKS,
    find_samples=lambda recipe, parts, device: functools.partial(drawn_masks, parts, device=device),
    program=lambda student, format: Program(Enlarged(student.module), ("logits",)),
    random_batch=_random_batch,
    few=1,
)
