"""What a detector finds on the validation images: curves of precision, classes, and some images with their boxes."""

import base64
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from limbeck.assembly.tasks import Parts
from limbeck.detection import DetectionBatch, Detections, Truth, best_cut, match, measure_precision
from limbeck.detection.assembly import build_detection_task
from limbeck.detection.data import DetectionData
from limbeck.distiller import evaluating
from limbeck.distributed import collectives
from limbeck.models import Model
from limbeck.training.evaluation import shared_batches

BOXES = "boxes.json"
LARGEST = 416  # pixels of a side
QUALITY = 85  # of the JPEG files
MOST_BOXES = 60  # of a kind on one image
KINDS = (("missed", 4), ("gained", 2), ("neither", 3), ("both", 3))
"""What an image can show, and how many such images: objects that the teacher finds and the student does not; the other
way round; objects that neither finds; and all of them found by both, with nothing besides."""


class Judged(NamedTuple):
    """What a model finds on all validation images."""

    found: Detections
    taken: Tensor
    cut: float
    precision: dict[str, Any]

    def shown(self, rows: Tensor) -> Tensor:
        """Those of some rows whose score is high enough."""
        return rows[self.found.scores[rows] >= self.cut][:MOST_BOXES]


def drawn_boxes(parts: Parts, student: nn.Module, device: torch.device) -> dict[str, Any] | None:
    """What ``boxes.json`` holds, of a run whose student is trained. All processes have to call it.

    For student and teacher: the curves of precision over recall, the average precision of each class, the score from
    which on its boxes are drawn (where its F1 at an IoU of 0.5 is greatest), and up to twelve images with what is
    there, what the student finds and what the teacher finds, in pixels of the drawn image.

    Args:
        parts: What the run is made of.
        student: The trained student, or its moving average.
        device: Where the models are.

    Returns:
        None where the recipe turns the probe off or shares its models out, nothing is
        validated, or this is not the first process.
    """
    data = parts.data
    assert isinstance(data, DetectionData)
    if not parts.recipe.probes or not data.val_count:
        return None
    models = {"student": (parts.student, student)}
    if (teacher := parts.teacher) is not None and _same_classes(parts, teacher):
        models["teacher"] = (teacher, teacher.module)
    truth: Truth | None = None
    who: dict[str, Judged] = {}
    for name, (model, module) in models.items():
        task = build_detection_task(model, None).to(device)
        with evaluating(module):
            loader = data.val_loader(batch_size=parts.recipe.batch_size)
            collected = task.collect(module.to(device), shared_batches(loader, device))
        if collected is None:
            return None
        if collectives.rank() == 0:
            truth = Truth(*(column.cpu() for column in collected[0]))
            found = Detections(*(column.cpu() for column in collected[1]))
            who[name] = judge(truth, found, len(data.classes))
    if truth is None:
        return None
    chosen = choose(truth, who)
    numbers = [image for _, image in chosen]
    batch = data.images("val", numbers) if numbers else None
    read = {} if batch is None else {numbers[place]: row for row, place in enumerate(batch.index.tolist())}
    return {
        "classes": list(data.classes),
        "models": {name: {"cut": found.cut, **found.precision} for name, found in who.items()},
        "images": [
            _image(batch, read[image], kind, image, truth, who)
            for kind, image in chosen
            if batch is not None and image in read
        ],
    }


def _same_classes(parts: Parts, teacher: Model) -> bool:
    return teacher.num_classes == len(parts.data.classes) and not teacher.new_head


def judge(truth: Truth, found: Detections, classes: int) -> Judged:
    """Which boxes are right, which are worth drawing, and how precise they are."""
    taken = match(truth, found)
    precision = measure_precision(truth, found, classes=classes)._asdict()
    return Judged(found, taken, best_cut(truth, found, taken), precision)


def choose(truth: Truth, who: dict[str, Judged]) -> list[tuple[str, int]]:
    """Kind and number of the images that are drawn, each once, those with most of their kind first."""
    objects = ~truth.crowd
    hit = {name: _hit(found, len(objects)) & objects for name, found in who.items()}
    ours = hit["student"]
    theirs = hit.get("teacher", ours)
    wrong = torch.cat([_wrong(found) for found in who.values()]).tolist()
    found_by_both = ours & theirs
    rows: dict[str, Callable[[], Tensor]] = {
        "missed": lambda: theirs & ~ours,
        "gained": lambda: ours & ~theirs,
        "neither": lambda: objects & ~ours & ~theirs,
        "both": lambda: objects & ~_on(truth, objects & ~found_by_both) & ~torch.isin(truth.image, torch.tensor(wrong)),
    }
    chosen: dict[int, str] = {}
    for kind, most in KINDS:
        images, counts = truth.image[rows[kind]()].unique(return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        left = [image for image in images[order].tolist() if image not in chosen]
        chosen |= dict.fromkeys(left[:most], kind)
    return [(kind, image) for image, kind in chosen.items()]


def _hit(found: Judged, objects: int) -> Tensor:
    """Which objects are found by a box that is drawn."""
    right = found.taken[(found.found.scores >= found.cut) & (found.taken >= 0)]
    return torch.zeros(objects, dtype=torch.bool).index_fill(0, right, value=True)


def _wrong(found: Judged) -> Tensor:
    """The images with a box that is drawn and is of no object."""
    return found.found.image[(found.found.scores >= found.cut) & (found.taken < 0)].unique()


def _on(truth: Truth, rows: Tensor) -> Tensor:
    """All objects of the images that some rows are on."""
    return torch.isin(truth.image, truth.image[rows])


def _image(
    batch: DetectionBatch, row: int, kind: str, image: int, truth: Truth, who: dict[str, Judged]
) -> dict[str, Any]:
    """One image with its boxes, as the page draws it."""
    height, width = batch.sizes[row].tolist()
    pixels = (batch.images[row, :, :height, :width].clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    across, down = batch.scales[row].tolist()
    scale = torch.tensor([across * picture.width / width, down * picture.height / height]).repeat(2)
    there = (truth.image == image).nonzero()[:, 0]
    drawn: dict[str, Any] = {
        name: [
            {
                "box": _rounded(found.found.boxes[i] * scale),
                "label": int(found.found.labels[i]),
                "score": round(float(found.found.scores[i]), 4),
                "right": bool(found.taken[i] >= 0),
            }
            for i in found.shown((found.found.image == image).nonzero()[:, 0]).tolist()
        ]
        for name, found in who.items()
    }
    return {
        "index": image,
        "kind": kind,
        "jpeg": base64.b64encode(file.getvalue()).decode("ascii"),
        "width": picture.width,
        "height": picture.height,
        "truth": [
            {
                "box": _rounded(truth.boxes[i] * scale),
                "label": int(truth.labels[i]),
                "crowd": bool(truth.crowd[i]),
            }
            for i in there[:MOST_BOXES].tolist()
        ],
        **drawn,
    }


def _rounded(box: Tensor) -> list[float]:
    return [round(value, 1) for value in box.tolist()]
