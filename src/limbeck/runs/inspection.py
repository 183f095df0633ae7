"""Look at a recipe before it runs, and at a run after: checks, what would be trained, how the student scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.assembly.build import CARD, batch_size_of, build_data, build_optimizer, build_parts, load_student
from limbeck.assembly.tasks import AnyData, kind_of
from limbeck.assembly.teacher import build_teacher, rehearse
from limbeck.data.folders import difference
from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.logs.loggers import require_loggers
from limbeck.models import Model
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.values import TASKS
from limbeck.runs.images import RECORD, changes_of, record_of
from limbeck.runs.preflight import Finding, preflight
from limbeck.runs.run import device_of
from limbeck.runs.summary import count_parameters
from limbeck.storage.untrusted import read_object
from limbeck.training.evaluation import evaluate as score


class _NeedsTraining(Exception):
    """The teacher would have to be trained first, which a check does not do."""


def check(recipe: Recipe, folder: Path) -> list[Finding]:
    """The preflight alone; nothing is trained and nothing written.

    Where the teacher would first have to be trained, one with random weights stands in for it, and what can only be
    known of a trained one is left out and said to be.

    Args:
        recipe: What would be run.
        folder: Where it would be run; a teacher that was trained beside it before is found.
    """
    require_loggers(recipe.loggers)
    device = device_of(recipe)
    data = build_data(recipe)
    rehearsed = rehearse(recipe, data)

    def refuse(own: Recipe, where: Path) -> None:
        tunes = own.pretrained or own.student_weights is not None
        what = "all but its head fit; `limbeck distill` first fine-tunes it" if tunes else ""
        what = what or "none that fit; `limbeck distill` first trains it"
        raise _NeedsTraining(f"{what}, for {own.epochs} epochs, in {where}")

    try:
        teacher = build_teacher(recipe, data, folder, refuse, lambda line: None)  # the findings say it
        parts, left_out = build_parts(recipe, data, teacher), list[Finding]()
    except _NeedsTraining as reason:
        advice = "its accuracy and label map are checked when it is there"
        parts, left_out = rehearsed, [Finding("note", "teacher weights", str(reason), advice)]
    parts.distiller.to(device)
    checked = preflight(parts, build_optimizer(recipe, parts.distiller), device, teacher_is_ready=not left_out)
    return left_out + checked.findings


def describe(recipe: Recipe) -> list[tuple[str, str]]:
    """Shapes, parameter counts and FLOPs of what a recipe would train, with random weights and no training."""
    data = build_data(recipe)
    lines = [("data", f"{data.name}: {data.train_count} train, {data.val_count} val, {len(data.classes)} classes")]
    parts = rehearse(recipe, data)
    teacher = parts.teacher
    lines.append(("student", _model_line(parts.student)))
    if teacher is not None:
        lines.append(("teacher", _model_line(teacher)))
    for name, term in parts.distiller.terms.items():
        if isinstance(term, nn.Module):
            lines.append((name, f"{count_parameters(term):,} parameters, {' '.join(str(term).split())}"))
        else:
            lines.append((name, f"no parameters, {type(term).__name__}"))
    steps = len(data.train_loader(batch_size=batch_size_of(recipe, data), seed=recipe.seed))
    lines.append(("steps", f"{steps} an epoch, {steps * recipe.epochs} in all"))
    return lines


def evaluate(
    folder: Path,
    *,
    data: str | None = None,
    label_file: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, float]:
    """Score a run's student on its validation images, or on all images of another source with classes that it knows.

    Args:
        folder: The run.
        data: The other source; of one with a validation part that part is scored. Classes are matched by name.
        label_file: A CSV file with the classes of its images.
        say: Told how many images are scored, and what of them was left out.

    Raises:
        UserError: There is no such run, or the images cannot be used.
    """
    student = load_student(folder)
    card = read_object(folder / CARD, "model")
    recipe = recipe_of(folder, card, data, label_file)
    classes = tuple(str(name) for name in card.get("classes") or ())
    opened = _own_images(recipe, folder, say) if data is None else _others(recipe, folder, data, label_file, classes)
    if not opened.classes:
        raise UserError(
            "these images have no labels, so there is no accuracy; --probe knn --data LABELLED judges features"
        )
    if classes and opened.classes != classes:
        raise UserError(difference(f'of "{opened.name}"', classes, opened.classes))
    if student.num_classes != len(opened.classes):
        raise UserError(f"the student has {student.num_classes} classes and {opened.name} has {len(opened.classes)}")
    device = device_of(recipe)
    student.module.to(device)
    task = kind_of(recipe.task).build_scorer(student, device)
    say(f"images: {opened.val_count} of {opened.name}")
    if data is not None:
        for note in opened.notes:
            say(f"note: {note}")
    return score(student.module, task, opened.val_loader(batch_size=recipe.batch_size), device)


def recipe_of(folder: Path, card: dict[str, Any], data: str | None, label_file: str | None) -> Recipe:
    """The run's recipe; for a student with its card and weights alone, one that scores it on other images.

    Args:
        folder: The run.
        card: Its card.
        data: Other images to score on, if any.
        label_file: Their classes.

    Raises:
        UserError: There are classes without images, or nothing names the images.
    """
    if label_file is not None and data is None:
        raise UserError(f"--labels {label_file}: needs --data, the folder of the images in it")
    written = folder / "recipe.yaml"
    if written.is_file():
        return Recipe.from_yaml(written)
    if data is None:
        raise UserError(f"{folder} has no recipe.yaml, which names the images of its student; give --data")
    task = str(card.get("task"))
    kind = {"task": task} if task in TASKS else {}
    return Recipe.model_validate({"data": data, "student": str(card["model"]), "method": "alone", **kind})


def _own_images(recipe: Recipe, folder: Path, say: Callable[[str], object]) -> AnyData:
    """The images of the run; if they have changed since it was started, that is said."""
    opened, record = build_data(recipe), folder / RECORD
    if record.is_file() and (changed := changes_of(read_object(record, "fingerprint"), record_of(opened))):
        say(f"note: the images have changed since {folder} was started: {changed}")
    return opened


def _others(recipe: Recipe, folder: Path, data: str, label_file: str | None, classes: tuple[str, ...]) -> AnyData:
    """All images of another source, in the size of the run's own."""
    place = folder / RECORD if (folder / RECORD).is_file() else folder / CARD
    about = read_object(place, "size" if place.name == RECORD else "input")
    size = int(about["size"] if place.name == RECORD else about["input"]["size"])
    bits = int(about.get("bits") or 16)
    return kind_of(recipe.task).open_for_scoring(recipe, data, label_file, size, bits, classes)


def _model_line(model: Model) -> str:
    size = model.input.size
    with evaluating(model.module), FlopCounterMode(display=False) as counter:
        model.module(torch.zeros(1, 3, size, size))
    return (
        f"{model.name}, {count_parameters(model.module):,} parameters, {counter.get_total_flops() / 2e9:.3f} GMACs at "
        f"{size}x{size}, {model.num_classes} classes"
    )
