"""From a recipe's words to the parts of its terms: losses, projectors, norms, pooling."""

import functools

from torch import nn

from limbeck import losses, norms, projectors
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.recipes.recipe import Recipe
from limbeck.terms import CorrelationLoss, FeatureTerm, LabelledLogitTerm, LogitTerm, Loss

WHITENING_MOMENTUM = 0.1  # a batch alone seldom has enough rows for a covariance
GROUP_SIZE = 16  # channels a group of GroupNorm; the published code comments out GroupNorm(16, d) with 16 groups


def build_logit_term(recipe: Recipe) -> LogitTerm | LabelledLogitTerm:
    """The term of the logits."""
    temperature, tap = recipe.temperature, recipe.student_logit_tap
    match recipe.logit_loss:
        case "kl":
            return LogitTerm(functools.partial(losses.kl_divergence, temperature=temperature), student_tap=tap)
        case "standardized_kl":
            return LogitTerm(functools.partial(losses.standardized_kl, temperature=temperature), student_tap=tap)
        case "dkd":
            loss = functools.partial(losses.decoupled_kl, temperature=temperature, beta=recipe.dkd_beta)
            return LabelledLogitTerm(loss, student_tap=tap)
        case "nkd":
            loss = functools.partial(losses.normalized_kl, temperature=temperature)
            return LabelledLogitTerm(loss, student_tap=tap)
        case "dist":
            return LogitTerm(functools.partial(losses.pearson_distance, temperature=temperature), student_tap=tap)
        case "mlkd":
            return LogitTerm(losses.multi_level_kl, student_tap=tap)


def build_feature_loss(recipe: Recipe) -> tuple[Loss | None, CorrelationLoss | None]:
    """The loss of a feature term, elementwise or of the correlation; the other one is None.

    A loss without settings has the name of its function.
    """
    match recipe.feature_loss:
        case "log_sum":
            return functools.partial(losses.log_sum, alpha=recipe.alpha), None
        case "log_correlation":
            return None, functools.partial(losses.log_correlation, alpha=recipe.alpha)
        case "correlation_power":
            return None, functools.partial(losses.correlation_power, power=recipe.alpha)
        case "feature_kl":
            return functools.partial(losses.feature_kl, temperature=recipe.temperature), None
        case name:
            return getattr(losses, name), None


def build_feature_term(
    recipe: Recipe, taps: tuple[str, str], widths: tuple[int, int], pools: tuple[pooling.Pool, pooling.Pool]
) -> FeatureTerm:
    """The recipe's feature term between two taps; of every pair the student's comes first."""
    d_s, d_t = widths
    source, width = (d_t, d_s) if recipe.inverted else (d_s, d_t)
    loss, correlation_loss = build_feature_loss(recipe)
    return FeatureTerm(
        *taps,
        projector=build_projector(recipe, source, width),
        input_norm=build_norm(recipe.input_norm, source),
        student_norm=build_norm(recipe.student_norm, width),
        teacher_norm=build_norm(recipe.teacher_norm, width),
        inverted=recipe.inverted,
        loss=loss,
        correlation_loss=correlation_loss,
        student_pool=pools[0],
        teacher_pool=pools[1],
    )


def build_projector(recipe: Recipe, d_s: int, d_t: int) -> nn.Module:
    """A projector by its name in the recipe, between two widths."""
    behind = recipe.teacher_norm if recipe.inverted else recipe.student_norm
    bias = behind != "batch"  # batch norm behind the projector cancels it
    match recipe.projector:
        case "identity":
            return projectors.identity()
        case "linear":
            return projectors.linear(d_s, d_t, bias=bias)
        case "mlp":
            return projectors.mlp(d_s, d_t, hidden=recipe.projector_hidden, bias=bias)
        case "orthogonal":
            return projectors.orthogonal(d_s, d_t)
        case "ensemble":
            return projectors.ensemble(d_s, d_t, count=recipe.projector_count)
        case "low_rank":
            return projectors.low_rank(d_s, d_t, rank=min(recipe.projector_rank, d_s, d_t))
        case "ridge":
            return projectors.Ridge(d_s, d_t)


def build_norm(name: str, width: int) -> nn.Module | None:
    """A norm by its name in the recipe."""
    match name:
        case "batch":
            return norms.BatchNorm(width)
        case "layer":
            return norms.LayerNorm(width)
        case "group":
            if width % GROUP_SIZE:
                raise UserError(f"norm group has groups of {GROUP_SIZE} channels; the teacher's {width} do not divide")
            return norms.GroupNorm(width // GROUP_SIZE, width)
        case "l2":
            return norms.L2()
        case "zca":
            return norms.ZCA(width, momentum=WHITENING_MOMENTUM)
        case "cholesky":
            return norms.Cholesky(width, momentum=WHITENING_MOMENTUM)
        case _:
            return None


def build_pool(name: str, prefix: int) -> pooling.Pool:
    """A pooling function by its name in the recipe, for tokens of which ``prefix`` come before the patches."""
    match name:
        case "vector":
            return pooling.vector
        case "spatial_mean":
            return pooling.spatial_mean
        case "spatial_mean_nhwc":
            return pooling.spatial_mean_nhwc
        case "token_mean":
            return pooling.token_mean(prefix)
        case "class_token":
            return pooling.class_token
        case "spatial_positions":
            return pooling.spatial_positions
        case "token_positions":
            return pooling.token_positions(prefix)
        case _:
            return pooling.automatic
