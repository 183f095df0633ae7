"""From a recipe's words to a detection run: data with boxes, terms between two pyramids, the distiller."""

import functools
from typing import Any

from torch import nn

from limbeck import losses
from limbeck.assembly.terms import build_feature_term
from limbeck.detection import DenseHeadTerm, Detection, Detector, FGDTerm, ForegroundTerm, Level, RegionTerm
from limbeck.detection.data import DetectionData, DetectionSpec, open_detection, open_for_scoring
from limbeck.detection.fgd import Weights
from limbeck.detection.heads import is_sigmoid
from limbeck.detection.models import heads_shape, trunk_only
from limbeck.detection.precision import require_evaluator
from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.models import Model, Normalization
from limbeck.recipes.recipe import Recipe
from limbeck.rivals import ReviewTerm
from limbeck.terms import FeatureTerm, Term

FGD = {
    "fasterrcnn": (Weights(), 0.5),
    "retinanet": (Weights(1e-3, 5e-4, 5e-4, 5e-6), 0.5),
    "fcos": (Weights(1.6e-3, 8e-4, 8e-4, 8e-6), 0.8),
    "ssdlite": (Weights(1e-3, 5e-4, 5e-4, 5e-6), 0.5),
    "rtdetr": (Weights(1e-3, 5e-4, 5e-4, 5e-6), 0.5),
}
"""Weights and temperature of FGD's code for each kind of detector (ResNet101 to ResNet50); SSDlite and RT-DETR, which
it has not, as RetinaNet."""


WEIGHTS: dict[str, float] = {"fitnet": 0.01, "review": 2.0, "fgd": 1.0, "pkd": 3.0}
"""Of detectors. ReviewKD: its configuration of MobileNetV2 (1.2 for ResNet18, 1.0 for ResNet50). PKD: mmrazor's 6 of
half a mean squared error. FitNet: 0.01, our runs (docs/results/detection.md): at 1 it pulls a hundred times as hard as
the task. FGD: its own, inside of the term."""


def build_detection_data(
    recipe: Recipe, *, scored: tuple[str, ...] | None = None, bits: int | None = None
) -> DetectionData:
    """Open the recipe's images and boxes.

    Args:
        recipe: Which ones.
        scored: Open all of them, to score a detector of these classes. None: a part to train on and one to validate on.
        bits: How many bits 16-bit images use, if they are opened to be scored.

    Raises:
        UserError: The evaluator is not installed, or the annotations cannot be used.
    """
    require_evaluator()
    low_high = (recipe.scales[0], recipe.scales[1]) if recipe.scales else None
    spec = DetectionSpec(
        source=recipe.data,
        val=recipe.val,
        val_share=recipe.val_share,
        size=recipe.size,
        longest=recipe.longest,
        scales=low_high,
        augmentation="none" if recipe.augmentation == "none" else "standard",
        flip=recipe.flip is not False,
        classes=recipe.classes,
        subset=recipe.subset,
        train_limit=recipe.train_limit,
        on_bad=recipe.on_bad_annotations,
        skip_bad_images=recipe.skip_bad_images,
        workers=recipe.workers,
    )
    return open_detection(spec) if scored is None else open_for_scoring(spec, scored, bits=bits)


def detector_of(model: Model) -> Any:
    """A model's module, as what it is; UserError where it is no detector."""
    if not isinstance(model.module, Detector):
        raise UserError(f"{model.name} is no detector")
    return model.module


def build_detection_distiller(recipe: Recipe, student: Model, teacher: Model | None) -> Distiller:
    """The terms between two detectors that are there already.

    A teacher whose logits are not distilled is asked for its pyramid alone.
    """
    task = build_detection_task(student, teacher)
    weights: dict[str, Any] = {"task": recipe.task_weight}
    if teacher is None or recipe.method == "alone":
        return Distiller(student.module, None, task, weights=weights)
    terms: dict[str, Term] = {}
    pairs = paired_levels(recipe, detector_of(student), detector_of(teacher))
    if recipe.uses_features:
        terms |= {f"feature{of_stride(a)}": build_level_term(recipe, a, b) for a, b in pairs}
        weights |= dict.fromkeys(terms, recipe.full_feature_weight / len(pairs))
    if recipe.uses_logits:
        terms["logit"] = build_head_term(recipe, student, teacher)
        weights["logit"] = recipe.full_logit_weight
    if recipe.rival is not None:
        rivals = build_rivals(recipe, pairs, str(student.name))
        terms |= rivals
        weights |= dict.fromkeys(rivals, full_weight(recipe))
    frozen: nn.Module = teacher.module if recipe.uses_logits else trunk_only(teacher.module)
    return Distiller(student.module, frozen, task, terms=terms, weights=weights)


def build_detection_task(student: Model, teacher: Model | None) -> Detection:
    """The task, with each model's own input statistics."""
    teacher_input = Normalization(teacher.input) if teacher is not None else None
    return Detection(detector_of(student), student_input=Normalization(student.input), teacher_input=teacher_input)


def paired_levels(recipe: Recipe, student: Detector, teacher: Detector) -> list[tuple[Level, Level]]:
    """The levels of both models that have the same stride, finest first; or the two taps that the recipe names.

    Raises:
        UserError: No stride is common to both, or a tap that is named is no level.
    """
    side = "stages" if recipe.levels == "trunk" else "levels"
    ours, theirs = (model.stages if side == "stages" else model.levels for model in (student, teacher))
    if recipe.student_tap is not None and recipe.teacher_tap is not None:
        pair = _named(student, recipe.student_tap, "student_tap"), _named(teacher, recipe.teacher_tap, "teacher_tap")
        if pair[0].stride != pair[1].stride:
            raise UserError(
                f'"{pair[0].tap}" of the student has stride {pair[0].stride}, "{pair[1].tap}" of the teacher '
                f"{pair[1].stride}; expected equal strides"
            )
        return [pair]
    by_stride = {level.stride: level for level in theirs}
    pairs = [(level, by_stride[level.stride]) for level in ours if level.stride in by_stride]
    if not pairs:
        strides = [" ".join(str(level.stride) for level in levels) for levels in (ours, theirs)]
        raise UserError(f"the student's {side} have strides {strides[0]}, the teacher's {strides[1]}: none in common")
    return pairs


def _named(model: Detector, tap: str, setting: str) -> Level:
    known = {level.tap: level for level in (*model.levels, *model.stages)}
    if tap not in known:
        raise UserError(f'{setting} "{tap}" is no level of the detector: expected one of {", ".join(known)}')
    return known[tap]


def of_stride(level: Level) -> str:
    """How the terms of a level are called: by its stride, which does not depend on how many there are."""
    return f"-s{level.stride}"


def build_head_term(recipe: Recipe, student: Model, teacher: Model) -> DenseHeadTerm | RegionTerm:
    """The term of what the heads say: of regions, where both models have two stages, else of all places.

    Raises:
        UserError: The models' heads do not say the same kind of things.
    """
    ours, theirs = detector_of(student), detector_of(teacher)
    if ours.two_stage and theirs.two_stage:
        return RegionTerm(ours, theirs, loss=functools.partial(losses.kl_divergence, temperature=recipe.temperature))
    if not (is_sigmoid(ours) and is_sigmoid(theirs)) or ours.classes != theirs.classes:
        raise UserError(
            f"method {recipe.method}: the heads of {student.name} and {teacher.name} cannot be compared; expected two "
            "Faster R-CNNs, or two of RetinaNet or FCOS alike, of the same classes; projector compares features alone"
        )
    if recipe.temperature != Recipe.model_fields["temperature"].default:
        raise UserError(f"temperature: the heads of {student.name} have no softmax, got {recipe.temperature:g}")
    frame = (4 * ours.divisor, 4 * ours.divisor)
    shapes = [heads_shape(model.module, frame) for model in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"method {recipe.method}: the heads of {student.name} give {shapes[0]} for a frame of {frame[0]} pixels, "
            f"those of {teacher.name} {shapes[1]}; expected equal levels and anchors"
        )
    return DenseHeadTerm(ours.classes)


def build_level_term(recipe: Recipe, ours: Level, theirs: Level) -> FeatureTerm | ForegroundTerm:
    """The feature term of one level: every position is a row; with ``background`` below 1 in two batches."""
    if recipe.background == 1:
        return _level_term(recipe, ours, theirs, pooling.spatial_positions)
    term = _level_term(recipe, ours, theirs, pooling.vector)
    return ForegroundTerm(term, stride=ours.stride, background=recipe.background)


def _level_term(recipe: Recipe, ours: Level, theirs: Level, pool: pooling.Pool) -> FeatureTerm:
    if recipe.projector == "identity" and ours.width != theirs.width:
        raise UserError(
            f'projector "identity" needs equal widths: the student\'s level of stride {ours.stride} has {ours.width} '
            f'channels, the teacher\'s {theirs.width}; use "linear"'
        )
    return build_feature_term(recipe, (ours.tap, theirs.tap), (ours.width, theirs.width), (pool, pool))


def full_weight(recipe: Recipe) -> float:
    """The weight of a rival's terms: the recipe's own, else that of ``WEIGHTS``."""
    assert recipe.rival is not None
    return WEIGHTS[recipe.rival] if recipe.rival_weight is None else recipe.rival_weight


def build_rivals(recipe: Recipe, pairs: list[tuple[Level, Level]], name: str) -> dict[str, Term]:
    """The terms of the recipe's rival, by name; their weight is the method's, each.

    FitNet: a linear map and the mean squared error on each level. ReviewKD: one term over all levels. PKD: both sides
    normalized by channel over all positions, and their mean squared error, which is two minus twice the correlation; it
    needs no projector, but equal widths. FGD: one term a level, with the weights of its code for the kind of detector
    that the student is (``name``).

    References:
        W. Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
        NeurIPS 2022, equation 4.
    """
    if recipe.rival == "review":
        return {
            "review": ReviewTerm(
                [a.tap for a, _ in pairs],
                [b.tap for _, b in pairs],
                d_s=[a.width for a, _ in pairs],
                d_t=[b.width for _, b in pairs],
                loss=losses.hierarchical_context,
            )
        }
    if recipe.rival == "fgd":
        weights, temperature = FGD[name.partition("/")[0].partition("-")[0]]
        return {
            f"fgd{of_stride(a)}": FGDTerm(
                a.tap, b.tap, d_s=a.width, d_t=b.width, stride=a.stride, weights=weights, temperature=temperature
            )
            for a, b in pairs
        }
    norm, projector = ("none", "linear") if recipe.rival == "fitnet" else ("batch", "identity")
    own = recipe.changed(
        {
            "method": "projector",
            "feature_loss": "mean_squared_error",
            "projector": projector,
            "student_norm": norm,
            "teacher_norm": norm,
            "input_norm": "none",
            "inverted": False,
            "background": 1.0,
        }
    )
    return {f"{recipe.rival}{of_stride(a)}": build_level_term(own, a, b) for a, b in pairs}
