"""What a trained student's masks look like: figures by class, and validation images with the masks of both models."""

import base64
import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from limbeck.assembly.tasks import Parts
from limbeck.distiller import evaluating
from limbeck.distributed import collectives
from limbeck.models import Model
from limbeck.segmentation.assembly import build_segmentation_task
from limbeck.segmentation.batch import VOID, SegmentationBatch
from limbeck.segmentation.data import SegmentationData
from limbeck.segmentation.scores import scores_of
from limbeck.segmentation.task import predicted_classes
from limbeck.training.evaluation import shared_batches, to_device

MASKS = "masks.json"
SEARCHED = 48  # validation images among which those that are shown are looked for
SHOWN = 6
LARGEST = 320  # pixels of a side
QUALITY = 85  # of the JPEG files
OPACITY = 0.6  # of the classes' colors over the image


def drawn_masks(parts: Parts, student: nn.Module, device: torch.device) -> dict[str, Any] | None:
    """What ``masks.json`` holds, of a run whose student is trained. All processes have to call it.

    For student and teacher: intersection over union of each class and the confusion matrix; and up to six images with
    the masks of the truth, the student and the teacher: those on which the teacher is furthest ahead, or, without a
    teacher, the student is worst.

    Args:
        parts: What the run is made of.
        student: The trained student, or its moving average.
        device: Where the models are.

    Returns:
        None where the recipe turns the probe off, nothing is validated, or this is not the first process.
    """
    data = parts.data
    assert isinstance(data, SegmentationData)
    if not parts.recipe.probes or not data.val_count:
        return None
    models: dict[str, tuple[Model, nn.Module]] = {"student": (parts.student, student)}
    if (teacher := parts.teacher) is not None and teacher.num_classes == len(data.classes) and not teacher.new_head:
        models["teacher"] = (teacher, teacher.module)
    figures: dict[str, Any] = {}
    found: dict[str, list[tuple[Tensor, float]]] = {}
    batches = data.images("val", range(min(SEARCHED, data.val_count))) if collectives.rank() == 0 else []
    for name, (model, module) in models.items():
        task = build_segmentation_task(model, None).to(device)
        with evaluating(module.to(device)):
            loader = data.val_loader(batch_size=parts.recipe.batch_size)
            matrix = task.collect(module, shared_batches(loader, device))
            found[name] = [_judged(task.student_input(moved), module, moved) for moved in _moved(batches, device)]
        if matrix is not None:
            iou = [None if math.isnan(value) else value for value in scores_of(matrix).iou]
            figures[name] = {"iou": iou, "confusion": matrix.tolist()}
    if collectives.rank() != 0:
        return None
    ahead = [
        (found["teacher"][row][1] if "teacher" in found else 1.0) - found["student"][row][1]
        for row in range(len(batches))
    ]
    order = sorted(range(len(batches)), key=lambda row: -ahead[row])[:SHOWN]
    return {
        "classes": list(data.classes),
        "colors": colors(len(data.classes)),
        "models": figures,
        "images": [_image(batches[row], {name: each[row] for name, each in found.items()}) for row in order],
    }


def colors(count: int) -> list[list[int]]:
    """A color for each class: those of Pascal VOC from its second one on, whose bits are spread over the channels.

    Example:
        >>> colors(3)
        [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    found: list[list[int]] = []
    for label in range(1, count + 1):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= ((label >> (3 * place + channel)) & 1) << (7 - place)
        found.append(channels)
    return found


def _moved(batches: list[SegmentationBatch], device: torch.device) -> list[SegmentationBatch]:
    return [to_device(batch, device) for batch in batches]


def _judged(images: Tensor, module: nn.Module, batch: SegmentationBatch) -> tuple[Tensor, float]:
    """The class of each pixel of one image, and which share of them is right."""
    classes = predicted_classes(module(images), batch)[0]
    truth = batch.masks[0]
    right = ((classes == truth) & (truth != VOID)).sum() / (truth != VOID).sum().clamp_min(1)
    return classes.to(torch.uint8).cpu(), float(right)


def _image(batch: SegmentationBatch, found: dict[str, tuple[Tensor, float]]) -> dict[str, Any]:
    """One image with its masks, as the page shows it."""
    height, width = batch.size
    picture = (batch.images[0, :, :height, :width].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    shown = Image.fromarray(picture.cpu().numpy())
    shown.thumbnail((LARGEST, LARGEST))
    masks = {"truth": batch.masks[0], **{name: classes for name, (classes, _) in found.items()}}
    return {
        "index": int(batch.index[0]),
        "width": shown.width,
        "height": shown.height,
        "panels": {name: _painted(shown, mask.cpu().numpy()) for name, mask in masks.items()},
        "right": {name: round(share, 4) for name, (_, share) in found.items()},
    }


def _painted(shown: Image.Image, mask: np.ndarray) -> str:
    """A JPEG file of an image under the colors of its classes, in base64; void is left as it is."""
    table = np.zeros((256, 3), np.uint8)
    table[:VOID] = colors(VOID)
    small = np.asarray(Image.fromarray(mask).resize(shown.size, Image.Resampling.NEAREST))
    pixels = np.asarray(shown).astype(np.float32)
    blended = np.where((small == VOID)[:, :, None], pixels, (1 - OPACITY) * pixels + OPACITY * table[small])
    file = io.BytesIO()
    Image.fromarray(blended.round().astype(np.uint8)).save(file, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
