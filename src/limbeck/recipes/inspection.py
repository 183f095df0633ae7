"""Look at a recipe before it runs, and at a run after: checks, what would be trained, how the student scores."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.evaluation import evaluate as score
from limbeck.models import InputTransform, Model
from limbeck.recipes.build import build_data, build_optimizer, build_parts, load_student, require_run
from limbeck.recipes.detection import build_detection_task
from limbeck.recipes.loggers import require_loggers
from limbeck.recipes.preflight import Finding, preflight
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.run import device_of
from limbeck.recipes.summary import count_parameters
from limbeck.recipes.teacher import build_teacher, rehearse
from limbeck.tasks import Classification


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
        raise _NeedsTraining(f"none that fit; `limbeck distill` first trains it, for {own.epochs} epochs, in {where}")

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
    steps = len(data.train_loader(batch_size=recipe.batch_size, seed=recipe.seed))
    lines.append(("steps", f"{steps} an epoch, {steps * recipe.epochs} in all"))
    return lines


def evaluate(folder: Path, *, data: str | None = None) -> dict[str, float]:
    """Score a run's student on its validation images, or on those of another source with the same classes."""
    require_run(folder)
    recipe = Recipe.from_yaml(folder / "recipe.yaml")
    opened = build_data(recipe if data is None else recipe.changed({"data": data, "val": None}))
    student = load_student(folder)
    if not opened.classes:
        raise UserError("these images have no labels, so there is no accuracy to measure")
    if student.num_classes != len(opened.classes):
        raise UserError(f"the student has {student.num_classes} classes and {opened.name} has {len(opened.classes)}")
    device = device_of(recipe)
    student.module.to(device)
    if recipe.detects:
        task = build_detection_task(student, None).to(device)
    else:
        task = Classification(student_input=InputTransform(student.input)).to(device)
    return score(student.module, task, opened.val_loader(batch_size=recipe.batch_size), device)


def _model_line(model: Model) -> str:
    size = model.input.size
    with evaluating(model.module), FlopCounterMode(display=False) as counter:
        model.module(torch.zeros(1, 3, size, size))
    return (
        f"{model.name}, {count_parameters(model.module):,} parameters, {counter.get_total_flops() / 2e9:.3f} GMACs at "
        f"{size}x{size}, {model.num_classes} classes"
    )
