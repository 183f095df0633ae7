"""What detection answers as a kind of task; see `limbeck.assembly.tasks.Kind`."""

import functools
from collections.abc import Mapping

import torch
from torch import nn

from limbeck.assembly.tasks import AnyData, Kind, Program
from limbeck.detection.assembly import (
    build_detection_data,
    build_detection_distiller,
    build_detection_task,
    detector_of,
    full_weight,
)
from limbeck.detection.batch import DetectionBatch
from limbeck.detection.boxes import BOXES, drawn_boxes
from limbeck.detection.data import DetectionData
from limbeck.detection.models import Decoded, Queries, TwoStage, build_detector
from limbeck.errors import UserError
from limbeck.models import Model
from limbeck.recipes.recipe import Recipe
from limbeck.terms import Term

TOO_HEAVY = 30.0  # detectors lose from a few times on: docs/log.md, the table of COCO
LEAST_PRECISION = 0.005
"""Average precision at IoU 0.50 below which a teacher of boxes has nothing to teach. Chosen."""

OBJECTS = 7  # of an image of COCO on average


def _open_for_scoring(
    recipe: Recipe, source: str, label_file: str | None, size: int, bits: int, classes: tuple[str, ...]
) -> DetectionData:
    if label_file is not None:
        raise UserError(
            f"--labels {label_file}: for image classes; boxes come with --data, for example coco:FILE or yolo:FOLDER"
        )
    changes = {"data": source, "val": None, "size": size, "classes": ()}
    return build_detection_data(recipe.changed(changes), scored=classes, bits=bits)


def _judge(scores: Mapping[str, float], data: AnyData) -> tuple[str, str]:
    text = f"AP {100 * scores['ap']:.2f}%, AP50 {100 * scores['ap50']:.2f}% on {data.val_count} validation images"
    return text, "it finds nothing" if scores["ap50"] < LEAST_PRECISION else ""


def _describe_taps(term: Term, student: Model, teacher: Model) -> str:
    """The levels of a term, with stride and width; frames are too large to be run for this alone."""
    known = [{level.tap: level for level in (*m.levels, *m.stages)} for m in map(detector_of, (student, teacher))]
    pairs = zip(term.student_taps, term.teacher_taps, strict=True)
    return "; ".join(
        f'"{s}" of stride {known[0][s].stride}, {known[0][s].width} channels, to "{t}", {known[1][t].width} channels'
        for s, t in pairs
    )


def _program(student: Model, format: str) -> Program:
    """The decoded form of a one-stage detector."""
    module: nn.Module = detector_of(student)
    if isinstance(module, TwoStage):
        raise UserError(f"{student.name} has two stages, which {format} does not hold; use --format safetensors")
    if isinstance(module, Queries):
        raise UserError(f"{student.name}: transformers' code has one fixed batch as {format}; use --format safetensors")
    decoded = Decoded(detector_of(student), (student.input.size, student.input.size))
    note = "; outputs boxes (pixels of the input) and scores of every place, without non-maximum suppression"
    return Program(decoded, ("boxes", "scores"), note)


def _random_batch(recipe: Recipe, student: Model, count: int, side: int, classes: int) -> DetectionBatch:
    """In frames of photographs 3 to 4, as most of COCO's are; or in square ones."""
    longest = side if recipe.longest is None else min(recipe.longest, side * 4 // 3)
    divisor = detector_of(student).divisor
    height, width = (max(pixels // divisor, 1) * divisor for pixels in (side, longest))
    return random_boxes(count, (height, width), classes)


def random_boxes(count: int, frame: tuple[int, int], classes: int) -> DetectionBatch:
    """Images of noise with boxes of the sizes that occur in photographs."""
    height, width = frame
    side = torch.tensor([float(width), float(height)])
    corner = 0.6 * side * torch.rand(count, OBJECTS, 2)
    extent = side * (0.05 + 0.35 * torch.rand(count, OBJECTS, 2))
    return DetectionBatch(
        images=torch.rand(count, 3, height, width),
        boxes=torch.cat([corner, corner + extent], -1),
        labels=torch.randint(classes, (count, OBJECTS)),
        crowd=torch.zeros(count, OBJECTS, dtype=torch.bool),
        areas=extent.prod(-1),
        sizes=torch.tensor([frame] * count),
        scales=torch.ones(count, 2),
        index=torch.arange(count),
    )


KIND = Kind(
    open_data=build_detection_data,
    open_for_scoring=_open_for_scoring,
    build_model=build_detector,
    unused_parameters=lambda student, taps: [],  # what a detector's losses do not reach is a fault
    teaches_headless=False,  # a trunk that was trained on other images is no detector: its pyramid is random
    build_distiller=lambda recipe, student, teacher, data: build_detection_distiller(recipe, student, teacher),
    rival_weight=full_weight,
    build_scorer=lambda model, device: build_detection_task(model, None).to(device),
    judge_teacher=_judge,
    describe_taps=_describe_taps,
    too_heavy=TOO_HEAVY,
    too_heavy_when_tuned=TOO_HEAVY,
    record_checks=lambda recipe, parts, log, device: None,
    build_probe=lambda recipe, parts, optimizer, log, step, steps: None,
    samples_file=BOXES,
    find_samples=lambda recipe, parts, device: functools.partial(drawn_boxes, parts, device=device),
    program=_program,
    random_batch=_random_batch,
    few=1,
)
