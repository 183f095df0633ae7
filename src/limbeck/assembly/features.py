"""The feature terms of a recipe: which layers of the models are projected, and how they are laid out in rows."""

import torch

from limbeck.assembly import terms
from limbeck.assembly.terms import build_pool
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.models import Model
from limbeck.models.stages import Layout, Shape, layout_of, pair_stages, reads_first_token, shapes_of
from limbeck.recipes.recipe import Recipe
from limbeck.terms import FeatureTerm


def build_feature_terms(recipe: Recipe, student: Model, teacher: Model) -> dict[str, FeatureTerm]:
    """The feature term between the two taps, and of method stages one for each pair of stages, shallow to deep.

    At the end of a stage every position is a row, on the coarser of both grids.
    """
    taps = (recipe.student_tap or student.penultimate, recipe.teacher_tap or teacher.penultimate)
    pools = (
        tap_pool(recipe.student_pool, student, taps[0]),
        tap_pool(recipe.teacher_pool, teacher, taps[1]),
    )
    terms = {"feature": build_feature_term(recipe, (student, teacher), taps, pools)}
    if recipe.uses_stages:
        for index, pair in enumerate(pair_stages(student, teacher), start=1):
            layout = stage_pools(student, teacher, pair)
            terms[f"feature{index}"] = build_feature_term(recipe, (student, teacher), pair, layout)
    return terms


def build_feature_term(
    recipe: Recipe, models: tuple[Model, Model], taps: tuple[str, str], pools: tuple[pooling.Pool, pooling.Pool]
) -> FeatureTerm:
    """The feature term between two taps, its widths read off a dry forward pass of each model."""
    d_s, d_t = (pooled_shape(*side)[-1] for side in zip(models, taps, pools, strict=True))
    if recipe.projector == "identity" and d_s != d_t:
        raise UserError(
            f'projector "identity" needs equal widths: "{taps[0]}" of the student has {d_s} channels, '
            f'"{taps[1]}" of the teacher {d_t}; use "linear"'
        )
    return terms.build_feature_term(recipe, taps, (d_s, d_t), pools)


def stage_pools(student: Model, teacher: Model, taps: tuple[str, str]) -> tuple[pooling.Pool, pooling.Pool]:
    """Every position a row, on the coarser of both sides' grids; pooled where one of them has no positions."""
    ours, theirs = layout_of(tap_shape(student, taps[0])), layout_of(tap_shape(teacher, taps[1]))
    if ours is None or theirs is None:
        return pooling.automatic, pooling.automatic
    height, width = (min(sides) for sides in zip(ours.size, theirs.size, strict=True))
    return _on_grid(ours, height, width), _on_grid(theirs, height, width)


def tap_pool(name: str, model: Model, tap: str) -> pooling.Pool:
    """A pool by its name in the recipe, which leaves out the tokens that this model has before its patches.

    If the classifier reads tokens and the model returns what it makes of the first one (the attention pooling of CLIP),
    the automatic pool is the first token.
    """
    shape = tap_shape(model, tap)
    if name == "automatic" and len(shape) == 3 and tap == model.penultimate and reads_first_token(model):
        return pooling.class_token
    layout = layout_of(shape)
    return build_pool(name, layout.prefix if layout is not None else 0)


def _on_grid(layout: Layout, height: int, width: int) -> pooling.Pool:
    return pooling.grid_positions(height, width, prefix=layout.prefix, channels_last=layout.channels_last)


def tap_shape(model: Model, tap: str) -> Shape:
    """Shape of a tapped feature for a batch of two, from a dry forward pass in eval mode."""
    return shapes_of(model, [tap])[0]


def pooled_shape(model: Model, tap: str, pool: pooling.Pool) -> tuple[int, ...]:
    """Shape of a tapped feature after its pooling."""
    return tuple(pool(torch.zeros(tap_shape(model, tap))).shape)
