"""From a recipe's words to a segmentation run: data with masks, terms between two models, the distiller."""

from limbeck import losses
from limbeck.assembly.features import build_feature_term, stage_pools
from limbeck.distiller import Distiller, Weight
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.models import Model, Normalization
from limbeck.recipes.recipe import Recipe
from limbeck.segmentation.data import SegmentationData, SegmentationSpec, open_for_scoring, open_segmentation
from limbeck.segmentation.models import stage_taps
from limbeck.segmentation.task import Segmentation
from limbeck.segmentation.terms import ChannelTerm, PixelTerm
from limbeck.terms import RelationTerm, Term

WEIGHTS: dict[str, float] = {"cwd": 3.0, "at": 1000.0}
"""CWD: 3 for logits (the paper, section 4.1, at temperature 4). AT: 1000, of the CRD protocol; no published one for
masks is known."""


def build_segmentation_data(
    recipe: Recipe, *, scored: tuple[str, ...] | None = None, bits: int | None = None
) -> SegmentationData:
    """Open the recipe's images and masks.

    Args:
        recipe: Which ones.
        scored: Open all of them, to score a model of these classes. None: a part to train on and one to validate on.
        bits: How many bits 16-bit images use, if they are opened to be scored.

    Raises:
        UserError: The masks cannot be used.
    """
    spec = SegmentationSpec(
        source=recipe.data,
        val=recipe.val,
        val_share=recipe.val_share,
        size=recipe.size,
        shorter=recipe.shorter,
        scales=(recipe.scales[0], recipe.scales[1]) if recipe.scales else None,
        augmentation="none" if recipe.augmentation == "none" else "standard",
        flip=recipe.flip is not False,
        classes=recipe.classes,
        void=recipe.void,
        subset=recipe.subset,
        train_limit=recipe.train_limit,
        on_bad=recipe.on_bad_annotations,
        skip_bad_images=recipe.skip_bad_images,
        workers=recipe.workers,
    )
    return open_segmentation(spec) if scored is None else open_for_scoring(spec, scored, bits=bits)


def build_segmentation_task(student: Model, teacher: Model | None) -> Segmentation:
    """The task, with each model's own input statistics."""
    teacher_input = Normalization(teacher.input) if teacher is not None else None
    return Segmentation(student_input=Normalization(student.input), teacher_input=teacher_input)


def build_segmentation_distiller(recipe: Recipe, student: Model, teacher: Model | None) -> Distiller:
    """The terms between two models that are there already.

    Of a projector the taps are the recipe's, else the decoders' last features; of stages also the ends of the trunks'
    stages, paired from the deep end. Every position is a row, on the coarser of both grids.
    """
    task = build_segmentation_task(student, teacher)
    weights: dict[str, Weight] = {"task": recipe.task_weight}
    if teacher is None or recipe.method == "alone":
        return Distiller(student.module, None, task, weights=weights)
    terms: dict[str, Term] = {}
    if recipe.uses_features:
        pairs = [(recipe.student_tap or student.penultimate, recipe.teacher_tap or teacher.penultimate)]
        pairs += _stage_pairs(recipe, student, teacher) if recipe.uses_stages else []
        terms |= {
            "feature" if not number else f"feature{number}": build_feature_term(
                recipe, (student, teacher), pair, stage_pools(student, teacher, pair)
            )
            for number, pair in enumerate(pairs)
        }
        weights |= dict.fromkeys(terms, recipe.full_feature_weight / len(terms))
    if recipe.has_logit_term:
        terms["logit"] = PixelTerm(temperature=recipe.temperature)
        weights["logit"] = recipe.full_logit_weight
    if recipe.rival is not None:
        rivals = _rivals(recipe, student, teacher)
        terms |= rivals
        weights |= dict.fromkeys(rivals, full_weight(recipe))
    return Distiller(student.module, teacher.module, task, terms=terms, weights=weights)


def full_weight(recipe: Recipe) -> float:
    """The weight of a rival's terms: the recipe's own, else that of ``WEIGHTS``."""
    assert recipe.rival is not None
    return WEIGHTS[recipe.rival] if recipe.rival_weight is None else recipe.rival_weight


def _rivals(recipe: Recipe, student: Model, teacher: Model) -> dict[str, Term]:
    if recipe.rival == "cwd":
        return {"cwd": ChannelTerm(temperature=recipe.temperature)}
    return {
        f"at{number}": RelationTerm(
            *pair, loss=losses.attention_transfer, student_pool=pooling.unpooled, teacher_pool=pooling.unpooled
        )
        for number, pair in enumerate(_stage_pairs(recipe, student, teacher), start=1)
    }


def _stage_pairs(recipe: Recipe, student: Model, teacher: Model) -> list[tuple[str, str]]:
    try:
        both = stage_taps(student), stage_taps(teacher)
    except UserError as error:
        raise UserError(f"method {recipe.method}: {error}") from None
    count = min(map(len, both))
    return list(zip(*(taps[-count:] for taps in both), strict=True))
