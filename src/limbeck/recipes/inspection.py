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
from limbeck.recipes.preflight import Finding, preflight
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.run import count_parameters, device_of, train_teacher
from limbeck.recipes.teacher import build_teacher, rehearse
from limbeck.runlog import RunLog
from limbeck.tasks import Classification


def check(recipe: Recipe, folder: Path) -> list[Finding]:
    """The preflight alone: nothing is trained but a teacher that has to be, and no run is begun in ``folder``."""
    device = device_of(recipe)
    data = build_data(recipe)
    rehearse(recipe, data)
    with RunLog() as log:
        teacher = build_teacher(recipe, data, folder, train_teacher, log.note)
    parts = build_parts(recipe, data, teacher)
    parts.distiller.to(device)
    return preflight(parts, build_optimizer(recipe, parts.distiller), device).findings


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
