"""From a recipe's words to objects: data, models, terms, optimizer.

Words choose code here and in `limbeck.assembly.choices`, and nowhere below.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from limbeck import models
from limbeck.assembly.choices import build_logit_term
from limbeck.assembly.features import build_feature_terms
from limbeck.assembly.rivals import build_rival_terms, rival_weight
from limbeck.data import Data, open_data
from limbeck.data.spec import DataSpec
from limbeck.detection.assembly import build_detection_data, build_detection_distiller
from limbeck.detection.data import DetectionData
from limbeck.detection.models import build_detector
from limbeck.distiller import Distiller
from limbeck.distributed import collectives, sharding
from limbeck.errors import UserError
from limbeck.models import InputTransform, Model
from limbeck.recipes.recipe import Recipe
from limbeck.storage.checkpoint import load_weights
from limbeck.storage.untrusted import read_object
from limbeck.tasks import Classification, LabelFree
from limbeck.terms import Term
from limbeck.training.guard import Skip
from limbeck.training.optim import Rate, adamw, cosine, named, sgd, step_decay

_MOST_CLASSES, _MOST_SIDE = 1_000_000, 4096  # of a card that comes with weights of others
SKIPPED = 10  # steps, see limbeck.training.guard.Skip
LOWERED = 0.5  # of the learning rate; what a GradScaler does to its scale
CARD = "student.json"  # in a run folder: how to build the student and feed it


AnyData = Data | DetectionData
"""Images with classes, or with boxes."""


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of.

    Attributes:
        recipe: The recipe that it was made from.
        data: The images.
        student: The student with its input statistics.
        teacher: The teacher, or None for a model that learns alone.
        distiller: Both with the terms between them.
    """

    recipe: Recipe
    data: AnyData
    student: Model
    teacher: Model | None
    distiller: Distiller


def build_data(recipe: Recipe) -> AnyData:
    """Open the recipe's images, large enough for the larger of the two input sizes."""
    if recipe.detects:
        return build_detection_data(recipe)
    size = recipe.size
    if recipe.teacher_size is not None and recipe.method != "alone":
        size = max(size, recipe.teacher_size) if size is not None else None
    return open_data(
        DataSpec(
            source=recipe.data,
            val=recipe.val,
            val_share=recipe.val_share,
            size=size,
            augmentation=recipe.augmentation,
            flip=recipe.flip,
            subset=recipe.subset,
            train_limit=recipe.train_limit,
            labels=recipe.labels,
            label_file=recipe.label_file,
            on_missing_classes=recipe.on_missing_classes,
            skip_bad_images=recipe.skip_bad_images,
            workers=recipe.workers,
        )
    )


def build_model(
    recipe: Recipe,
    name: str,
    *,
    num_classes: int,
    size: int | None,
    weights: str | None = None,
    pretrained: bool = False,
    allow_new_head: bool = False,
    frozen_norms: bool = False,
) -> Model:
    """A model of the recipe's task by its name; see `limbeck.models.build` and `limbeck.detection.models`."""
    if not recipe.detects:
        return models.build(
            name,
            num_classes=num_classes,
            size=size,
            weights=weights,
            pretrained=pretrained,
            allow_new_head=allow_new_head,
        )
    return build_detector(
        name,
        num_classes=num_classes,
        size=size,
        weights=weights,
        pretrained=pretrained,
        allow_new_head=allow_new_head,
        frozen_norms=frozen_norms,
    )


def batch_size_of(recipe: Recipe, data: AnyData) -> int:
    """Images of a batch: the recipe's, or as many as there are, evenly over the processes, if these are fewer."""
    world = collectives.world_size()
    return min(recipe.batch_size, max(data.train_count // world * world, world))


def student_size(recipe: Recipe, data: AnyData) -> int:
    """The student's input size: the recipe's, else that of the images."""
    return recipe.size if recipe.size is not None else data.size


def student_classes(recipe: Recipe, data: AnyData, teacher: Model | None) -> int:
    """How many logits the student has: the data's classes; without labels the teacher's, or none if unused."""
    if recipe.labels:
        return len(data.classes)
    return teacher.num_classes if teacher is not None and recipe.uses_logits else 0


def build_student(recipe: Recipe, data: AnyData, teacher: Model | None) -> Model:
    """The student, seeded, with random weights, the hub's, or those of ``student_weights``."""
    assert recipe.student is not None
    torch.manual_seed(recipe.seed)
    student = build_model(
        recipe,
        recipe.student,
        num_classes=student_classes(recipe, data, teacher),
        size=student_size(recipe, data),
        weights=recipe.student_weights,
        pretrained=recipe.pretrained,
        allow_new_head=True,
        frozen_norms=recipe.frozen_norms,
    )
    if recipe.sync_batch_norm and collectives.world_size() > 1:  # one process has the global batch
        student = replace(student, module=models.synchronized(student.module))
    return student


def build_parts(recipe: Recipe, data: AnyData, teacher: Model | None) -> Parts:
    """Student, terms and distiller for data and a teacher that are there already."""
    student = build_student(recipe, data, teacher)
    distiller = build_distiller(recipe, student, teacher, data)
    if not recipe.detects:
        student = _freeze_unused(student, [tap for term in distiller.terms.values() for tap in term.student_taps])
    return Parts(recipe, data, student, teacher, distiller)


def _freeze_unused(student: Model, taps: list[str]) -> Model:
    """The student, those parameters frozen that neither its output nor a tap depends on, with a note that says so."""
    unused = models.unused_parameters(student, taps)
    for name in unused:
        student.module.get_parameter(name).requires_grad_(False)
    if not unused:
        return student
    return replace(student, notes=(*student.notes, f"frozen, for its forward pass does not use them: {named(unused)}"))


def build_distiller(recipe: Recipe, student: Model, teacher: Model | None, data: AnyData | None) -> Distiller:
    """The terms between two models that are there already.

    Args:
        recipe: What teaches the student, and how.
        student: The student.
        teacher: The teacher, or None.
        data: Only rivals look at the images, for how many they are and their labels.
    """
    if recipe.detects:
        return build_detection_distiller(recipe, student, teacher)
    task = build_task(recipe, student, teacher)
    terms: dict[str, Term] = {}
    weights: dict[str, Any] = {"task": recipe.task_weight}
    if teacher is not None and recipe.uses_features:
        terms |= build_feature_terms(recipe, student, teacher)
        weights |= dict.fromkeys(terms, recipe.full_feature_weight / len(terms))
    if teacher is not None and recipe.has_logit_term:
        terms["logit"] = build_logit_term(recipe)
        weights["logit"] = recipe.full_logit_weight
    if teacher is not None and recipe.rival is not None:
        if not isinstance(data, Data):
            raise UserError(
                f"method {recipe.rival} needs images; expected one of alone, kd, projector, stages, stages+kd"
            )
        rivals = build_rival_terms(recipe, student, teacher, data)
        terms |= rivals
        weights |= dict.fromkeys(rivals, rival_weight(recipe))
    frozen = teacher.module if teacher is not None and terms else None
    return Distiller(student.module, frozen, task, terms=terms, weights=weights)


def build_task(recipe: Recipe, student: Model, teacher: Model | None) -> Classification | LabelFree:
    """Classification, or its label-free form, with each model's own input statistics."""
    student_input = InputTransform(student.input)
    teacher_input = InputTransform(teacher.input) if teacher is not None else None
    if not recipe.labels:
        return LabelFree(student_input=student_input, teacher_input=teacher_input)
    return Classification(
        student_input=student_input, teacher_input=teacher_input, label_smoothing=recipe.label_smoothing
    )


def build_optimizer(recipe: Recipe, distiller: Distiller) -> torch.optim.Optimizer:
    """SGD or AdamW over everything trainable."""
    if recipe.optimizer == "adamw":
        return adamw(distiller, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return sgd(
        distiller,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        scaled=recipe.precision == "fp16",
    )


def build_rate(recipe: Recipe) -> Rate:
    """The learning rate's course over the epochs."""
    match recipe.schedule:
        case "cosine":
            return cosine(recipe.epochs, warmup=recipe.warmup_epochs)
        case "step":
            return step_decay(recipe.milestones, gamma=recipe.gamma, warmup=recipe.warmup_epochs)
        case "constant":
            return step_decay((), warmup=recipe.warmup_epochs)


def build_skip(recipe: Recipe) -> Skip | None:
    """What happens at a step whose numbers are not finite."""
    if recipe.on_bad_numbers == "stop":
        return None
    limit = recipe.bad_number_limit if recipe.bad_number_limit is not None else SKIPPED
    return Skip(limit, factor=LOWERED if recipe.on_bad_numbers == "lower" else 1.0)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a finished run: its summary and its student."""
    return (folder / "summary.json").is_file() and (folder / "student.safetensors").is_file()


def load_student(folder: Path) -> Model:
    """The student of a folder, built from its card and its weights alone; UserError when they are not there."""
    missing = [name for name in (CARD, "student.safetensors") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} holds no finished run: {' and '.join(missing)} expected in it")
    card = read_object(folder / CARD, "model", "num_classes", "input")
    try:
        size, classes = int(card["input"]["size"]), int(card["num_classes"])
    except (ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{folder / CARD} has no numbers of classes and pixels") from None
    if not (0 <= classes <= _MOST_CLASSES and 1 <= size <= _MOST_SIDE):
        raise UserError(f"{folder / CARD} names {classes} classes and {size} pixels a side, which no run has")
    if card.get("task") == "detection":
        student = build_detector(str(card["model"]), num_classes=classes, size=size)
    else:
        student = models.build(str(card["model"]), num_classes=classes, size=size)
    try:
        sharding.load(student.module, load_weights(folder / "student.safetensors"))
    except RuntimeError as error:  # one line for each name that does not fit
        first = str(error).splitlines()[0]
        raise UserError(f"{folder} holds weights of another model than {card['model']}: {first}") from None
    return student
