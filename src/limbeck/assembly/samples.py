"""Images on which student and teacher disagree, small enough to be shown on a page."""

import base64
import io
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor, nn

from limbeck.assembly.probing import plain, shares_classes
from limbeck.assembly.tasks import Parts
from limbeck.data.loader import Batch
from limbeck.distiller import evaluating
from limbeck.distributed import collectives
from limbeck.models import InputTransform
from limbeck.recipes.recipe import Recipe

SAMPLES = "samples.json"
SEARCHED = 512  # validation images among which they are looked for
DISAGREEING, BOTH_WRONG = 18, 6
LARGEST = 96  # pixels of a side
TOP = 3


@final
class Disagreements:
    """Looks for validation images that student and teacher see differently.

    The teacher is asked when this is made, since it may be released before the end. Nothing is asked or found without
    labels, without a teacher of the same classes, where the recipe turns the probe off, or on another process than the
    first.

    Args:
        recipe: The recipe of the run.
        parts: What it is made of.
        device: Where the models are.
    """

    def __init__(self, recipe: Recipe, parts: Parts, device: torch.device) -> None:
        self._parts = parts
        self._device = device
        self._teacher: Tensor | None = None
        self._data = data = plain(parts)
        wanted = recipe.probes and recipe.labels and data.val_count > 0 and collectives.rank() == 0
        if not wanted or parts.teacher is None:
            return
        if shares_classes(recipe, parts.student, parts.teacher):
            transform = InputTransform(parts.teacher.input).to(device)
            images = data.sample("val", SEARCHED).images
            self._teacher = self._probabilities(parts.teacher.module, transform, images)

    def of(self, student: nn.Module) -> dict[str, Any] | None:
        """What ``samples.json`` holds: images in the order of the student's confidence in another class.

        Args:
            student: The trained student, or its moving average.

        Returns:
            Classes, and up to 24 samples: those on which the two disagree and, last, some that both get wrong. None
            where there is nothing to compare.
        """
        if self._teacher is None:
            return None
        batch = self._data.sample("val", SEARCHED)
        assert batch.target is not None
        transform = InputTransform(self._parts.student.input).to(self._device)
        found = self._probabilities(student, transform, batch.images)
        ours, theirs = found.argmax(1), self._teacher.argmax(1)
        surest = found.amax(1).argsort(descending=True, stable=True)
        differ = [int(i) for i in surest if ours[i] != theirs[i]][:DISAGREEING]
        wrong = [int(i) for i in surest if ours[i] == theirs[i] != batch.target[i]][:BOTH_WRONG]
        return {
            "classes": list(self._data.classes),
            "samples": [self._sample(batch, i, found[i], self._teacher[i]) for i in (*differ, *wrong)],
        }

    def _sample(self, batch: Batch, i: int, student: Tensor, teacher: Tensor) -> dict[str, Any]:
        assert batch.target is not None
        return {
            "index": int(batch.index[i]),
            "label": int(batch.target[i]),
            "png": self._png(batch.images[i]),
            "student": _best(student),
            "teacher": _best(teacher),
        }

    def _png(self, image: Tensor) -> str:
        """The image as the student sees it, before it is normalized; smaller where it is large."""
        spec = self._parts.student.input
        transform = InputTransform(spec)
        seen = transform(image[None])[0] * transform.std + transform.mean
        pixels = (seen.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = Image.fromarray(pixels)
        picture.thumbnail((LARGEST, LARGEST))
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        return base64.b64encode(file.getvalue()).decode("ascii")

    def _probabilities(self, model: nn.Module, transform: InputTransform, images: Tensor) -> Tensor:
        with evaluating(model):
            parts = images.split(self._parts.recipe.batch_size)
            logits = [model(transform(part.to(self._device))).float().cpu() for part in parts]
        return torch.cat(logits).softmax(1)


def _best(probabilities: Tensor) -> list[list[float]]:
    """The most probable classes, each with its probability."""
    values, classes = probabilities.topk(min(TOP, len(probabilities)))
    return [[int(c), round(float(p), 4)] for c, p in zip(classes, values, strict=True)]
