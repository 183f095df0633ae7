"""What classification, with labels or without, answers as a kind of task."""

from collections.abc import Mapping
from typing import Any

import torch

from limbeck import models
from limbeck.assembly.features import build_feature_terms, tap_shape
from limbeck.assembly.probing import build_probe, record_checks
from limbeck.assembly.rivals import build_rival_terms, full_weight, rival_weight
from limbeck.assembly.samples import SAMPLES, Disagreements
from limbeck.assembly.tasks import AnyData, Kind, Program
from limbeck.assembly.terms import build_logit_term
from limbeck.data import Data, DataSpec, open_data, open_for_scoring
from limbeck.distiller import Distiller, Weight
from limbeck.errors import UserError
from limbeck.models import InputTransform, Model
from limbeck.recipes.recipe import Recipe
from limbeck.report.term_rules import AT_FIRST
from limbeck.tasks import Classification, LabelFree
from limbeck.terms import Term


def _open(recipe: Recipe) -> Data:
    """Open the recipe's images, large enough for the larger of the two input sizes."""
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


def _open_for_scoring(
    recipe: Recipe, source: str, label_file: str | None, size: int, bits: int, classes: tuple[str, ...]
) -> Data:
    spec = DataSpec(
        source=source,
        size=size,
        augmentation="none",
        label_file=label_file,
        skip_bad_images=recipe.skip_bad_images,
        workers=recipe.workers,
    )
    return open_for_scoring(spec, classes, bits=bits)


def _build_model(name: str, *, frozen_norms: bool = False, **settings: Any) -> Model:
    del frozen_norms  # which the distiller keeps
    return models.build(name, **settings)


def build_distiller(recipe: Recipe, student: Model, teacher: Model | None, data: AnyData | None) -> Distiller:
    """The terms between two models that are there already.

    Args:
        recipe: What teaches the student, and how.
        student: The student.
        teacher: The teacher, or None.
        data: Only rivals look at the images, for how many they are and their labels.
    """
    terms: dict[str, Term] = {}
    weights: dict[str, Weight] = {"task": recipe.task_weight}
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
    task = build_task(recipe, student, teacher)
    return Distiller(student.module, frozen, task, terms=terms, weights=weights, frozen_norms=recipe.frozen_norms)


def build_task(recipe: Recipe, student: Model, teacher: Model | None) -> Classification | LabelFree:
    """Classification, or its label-free form, with each model's own input statistics."""
    student_input = InputTransform(student.input)
    teacher_input = InputTransform(teacher.input) if teacher is not None else None
    if not recipe.labels:
        return LabelFree(student_input=student_input, teacher_input=teacher_input)
    return Classification(
        student_input=student_input, teacher_input=teacher_input, label_smoothing=recipe.label_smoothing
    )


def _judge(scores: Mapping[str, float], data: AnyData) -> tuple[str, str]:
    top1, chance = scores["top1"], 1 / len(data.classes)
    text = f"top-1 {100 * top1:.2f}% on {data.val_count} validation images (chance {100 * chance:.2f}%)"
    return text, "no better than guessing" if top1 < 1.5 * chance else ""


def _describe_taps(term: Term, student: Model, teacher: Model) -> str:
    s, t = term.student_taps[0], term.teacher_taps[0]
    return f'"{s}" {_shape(tap_shape(student, s))} to "{t}" {_shape(tap_shape(teacher, t))}'


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(["n", *(str(d) for d in shape[1:])])


def _random_batch(recipe: Recipe, student: Model, count: int, side: int, classes: int) -> Any:
    return torch.rand(count, 3, side, side), torch.randint(classes, (count,))


KIND = Kind(
    open_data=_open,
    open_for_scoring=_open_for_scoring,
    build_model=_build_model,
    unused_parameters=models.unused_parameters,
    teaches_headless=True,
    build_distiller=build_distiller,
    rival_weight=full_weight,
    build_scorer=lambda model, device: Classification(student_input=InputTransform(model.input)).to(device),
    judge_teacher=_judge,
    describe_taps=_describe_taps,
    too_heavy=AT_FIRST,  # the best of their tables began at up to 164: docs/log.md
    too_heavy_when_tuned=10.0,  # logits that pulled 18 times as hard ended at 7%, the student alone at 19%
    record_checks=record_checks,
    build_probe=build_probe,
    samples_file=SAMPLES,
    find_samples=lambda recipe, parts, device: Disagreements(recipe, parts, device).of,
    program=lambda student, _: Program(student.module),
    random_batch=_random_batch,
    few=8,
)
