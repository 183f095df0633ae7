"""From a recipe's words to objects: data, student, what it is trained with; its task's kind builds the rest.

Words choose code here, in `limbeck.assembly.terms` and in each task's kind, and nowhere below.
"""

from dataclasses import replace
from pathlib import Path

import torch

from limbeck import models
from limbeck.assembly.tasks import AnyData, Parts, kind_of
from limbeck.distiller import Distiller
from limbeck.distributed import collectives, sharding
from limbeck.errors import UserError
from limbeck.models import Model
from limbeck.recipes.recipe import Recipe
from limbeck.storage.files import load_weights
from limbeck.storage.untrusted import read_object
from limbeck.training.guard import Skip
from limbeck.training.optim import Rate, adamw, cosine_decay, named, sgd, step_decay

_MOST_CLASSES, _MOST_SIDE = 1_000_000, 4096  # limits of an untrusted card
SKIPPED = 10  # steps, see limbeck.training.guard.Skip
LOWERED = 0.5  # of the learning rate; what a GradScaler does to its scale
CARD = "student.json"  # in a run folder: how to build the student and feed it


def build_data(recipe: Recipe) -> AnyData:
    """Open the images of the recipe's task."""
    return kind_of(recipe.task).open_data(recipe)


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
    student = kind_of(recipe.task).build_model(
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
    kind = kind_of(recipe.task)
    student = build_student(recipe, data, teacher)
    distiller = kind.build_distiller(recipe, student, teacher, data)
    unused = kind.unused_parameters(student, [tap for term in distiller.terms.values() for tap in term.student_taps])
    for name in unused:
        student.module.get_parameter(name).requires_grad_(False)
    if unused:
        note = f"frozen, for its forward pass does not use them: {named(unused)}"
        student = replace(student, notes=(*student.notes, note))
    return Parts(recipe, data, student, teacher, distiller)


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
            return cosine_decay(recipe.epochs, warmup=recipe.warmup_epochs)
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


def load_student(folder: Path, *, headless: bool = False) -> Model:
    """The student of a folder, built from its card and its weights alone.

    Args:
        folder: A run folder, or one with the two files.
        headless: Cut its classifier off, so that it returns the penultimate feature.

    Raises:
        UserError: The files are missing or do not fit each other.
    """
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
    build = kind_of(str(card.get("task"))).build_model
    if headless:
        weights = str(folder / "student.safetensors")
        return build(str(card["model"]), num_classes=0, size=size, weights=weights)
    student = build(str(card["model"]), num_classes=classes, size=size)
    try:
        sharding.load(student.module, load_weights(folder / "student.safetensors"))
    except RuntimeError as error:  # one line for each name that does not fit
        first = str(error).splitlines()[0]
        raise UserError(f"{folder} holds weights of another model than {card['model']}: {first}") from None
    return student
