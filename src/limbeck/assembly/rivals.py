"""The terms of the rival methods of a recipe, between the taps that each of them is published with."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from limbeck import losses
from limbeck.data import Data
from limbeck.distiller import Weight
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.models import Model
from limbeck.models.cifar import Staged
from limbeck.models.stages import layout_of, shapes_of, stages
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.values import Rival
from limbeck.rivals import CRDTerm, HintTerm, ReviewTerm, VIDTerm, regressor
from limbeck.terms import LabelledLogitTerm, LogitTerm, RelationTerm, Term

WEIGHTS: dict[str, float] = {
    "fitnet": 100.0,
    "at": 1000.0,
    "nst": 50.0,
    "sp": 3000.0,
    "rkd": 1.0,
    "pkt": 30000.0,
    "cc": 100.0,
    "vid": 1.0,
    "crd": 0.8,
    "dkd": 1.0,
    "dist": 2.0,
}
"""Weights of the CRD protocol (HobbitLong/RepDistiller, scripts/run_cifar_distill.sh), but for four. CC: 100, of
AberHu/Knowledge-Distillation-Zoo (example_train_script.sh), which has the paper's loss; the protocol's 0.02 belongs to
another loss. DKD's are inside of its loss (megvii-research/mdistiller). DIST: 2, of its configuration of CIFAR
(hunto/image_classification_sota, dist_cifar.yaml). ReviewKD has one for each pair: ``review_weight``."""

RISING: tuple[Rival, ...] = ("dkd", "review")
"""Those whose authors raise the weight over the first epochs."""

PAIRS: dict[Rival, Callable[[Tensor, Tensor], Tensor]] = {
    "rkd": losses.relational,
    "pkt": losses.probabilistic_transfer,
    "cc": losses.correlation_congruence,
}
MAPS: dict[Rival, Callable[[Tensor, Tensor], Tensor]] = {
    "at": losses.attention_transfer,
    "nst": losses.neuron_selectivity,
}


@dataclass(frozen=True)
class _Side:
    """Taps of one model, and the shape of what is there for a batch of two."""

    taps: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def width(self, index: int) -> int:
        shape = self.shapes[index]
        return shape[1] if len(shape) == 4 else shape[-1]


def build_rival_terms(recipe: Recipe, student: Model, teacher: Model, data: Data) -> dict[str, Term]:
    """The terms of the recipe's method, by name; their weight is the method's, each.

    DKD and DIST compare the logits; RKD, PKT, CC and CRD the pooled penultimate features; AT, NST, VID and ReviewKD
    the ends of the stages; FitNet the end of the second one; SP that of the last one, flattened. Between two nets of
    the CRD protocol with equally many stages these are the taps of its code, and ReviewKD takes the teacher's before
    their last ReLU; of other models they are found by :func:`limbeck.models.stages.stages`. ``student_tap`` and
    ``teacher_tap`` of the recipe take the place of features.

    Deviates from: the published codes where a model is none of the CRD protocol's: ReviewKD then takes the ends of the
        teacher's stages as they are, mostly behind a ReLU. RepDistiller's ``correlation`` is another loss than the CC
        of the paper, which is the one here.

    Raises:
        UserError: The models have nothing that the method can compare.
    """
    rival = recipe.rival
    assert rival is not None
    if rival in ("dkd", "dist"):
        return {rival: _logit_term(recipe)}
    if rival in PAIRS or rival == "crd":
        tap_s, tap_t = recipe.student_tap or student.penultimate, recipe.teacher_tap or teacher.penultimate
        if rival in PAIRS:
            return {rival: RelationTerm(tap_s, tap_t, loss=PAIRS[rival])}
        return {rival: _crd(recipe, _side(student, (tap_s,)), _side(teacher, (tap_t,)), data)}
    side_s, side_t = _stages(recipe, student, teacher)
    if rival == "sp":
        taps = side_s.taps[-1], side_t.taps[-1]
        return {
            rival: RelationTerm(
                *taps, loss=losses.similarity_preserving, student_pool=_flattened, teacher_pool=_flattened
            )
        }
    if rival in MAPS:
        return {
            f"{rival}{index}": RelationTerm(
                tap_s, tap_t, loss=MAPS[rival], student_pool=_as_map(shape_s), teacher_pool=_as_map(shape_t)
            )
            for index, (tap_s, tap_t, shape_s, shape_t) in enumerate(
                zip(side_s.taps, side_t.taps, side_s.shapes, side_t.shapes, strict=True), start=1
            )
        }
    layouts = [layout_of(shape) for shape in (*side_s.shapes, *side_t.shapes) if len(shape) == 4]
    if len(layouts) < 2 * len(side_s.taps) or any(layout is None or layout.channels_last for layout in layouts):
        raise UserError(
            f"method {rival} compares maps, and one of the models has none at {side_s.taps[-1]} or {side_t.taps[-1]}; "
            "projector, at, nst, sp, rkd, pkt, cc and crd take tokens too"
        )
    count = len(side_s.taps)
    widths_s, widths_t = ([side.width(index) for index in range(count)] for side in (side_s, side_t))
    if rival == "vid":
        return {rival: VIDTerm(side_s.taps, side_t.taps, d_s=widths_s, d_t=widths_t)}
    if rival == "review":
        deepest_s, deepest_t = _side(student, (student.penultimate,)), _side(teacher, (teacher.penultimate,))
        return {
            rival: ReviewTerm(
                (*side_s.taps, *deepest_s.taps),
                (*side_t.taps, *deepest_t.taps),
                d_s=[*widths_s, deepest_s.width(0)],
                d_t=[*widths_t, deepest_t.width(0)],
                loss=losses.hierarchical_context,
            )
        }
    hint = min(1, count - 1)  # the protocol's --hint_layer 2, which counts the stem
    shape_s, shape_t = side_s.shapes[hint], side_t.shapes[hint]
    module = regressor(shape_s[1], shape_t[1], size_s=shape_s[2:], size_t=shape_t[2:])
    return {rival: HintTerm(side_s.taps[hint], side_t.taps[hint], regressor=module)}


def full_weight(recipe: Recipe) -> float:
    """The weight of a rival's terms behind any warm-up: the recipe's own or the published one."""
    assert recipe.rival is not None
    if recipe.rival_weight is not None:
        return recipe.rival_weight
    return recipe.review_weight if recipe.rival == "review" else WEIGHTS[recipe.rival]


def rival_weight(recipe: Recipe) -> Weight:
    """The weight of a rival's terms; that of some rises, epoch by epoch."""
    weight = full_weight(recipe)
    if recipe.rival not in RISING or recipe.rival_warmup == 0:
        return weight
    return functools.partial(_rising, weight=weight, epochs=recipe.epochs, warmup=recipe.rival_warmup)


def _rising(progress: float, *, weight: float, epochs: int, warmup: float) -> float:
    """As the authors count: epoch 1 has a ``warmup``-th of the weight, epoch ``warmup`` and later ones the whole."""
    epoch = 1 + math.floor(progress * epochs + 1e-6)
    return weight * min(epoch / warmup, 1.0)


def _logit_term(recipe: Recipe) -> LogitTerm | LabelledLogitTerm:
    """DKD or DIST, at the recipe's temperature."""
    tap, temperature = recipe.student_logit_tap, recipe.temperature
    if recipe.rival == "dkd":
        loss = functools.partial(losses.decoupled_kl, temperature=temperature, beta=recipe.dkd_beta)
        return LabelledLogitTerm(loss, student_tap=tap)
    return LogitTerm(functools.partial(losses.pearson_distance, temperature=temperature), student_tap=tap)


def _crd(recipe: Recipe, side_s: _Side, side_t: _Side, data: Data) -> CRDTerm:
    labels = data.train_labels if recipe.labels else None
    return CRDTerm(
        side_s.taps[0], side_t.taps[0], d_s=side_s.width(0), d_t=side_t.width(0), images=data.train_count, labels=labels
    )


def _stages(recipe: Recipe, student: Model, teacher: Model) -> tuple[_Side, _Side]:
    """The same number of stages of both, paired from the deep end; or the taps that the recipe names."""
    named = (recipe.student_tap, recipe.teacher_tap)
    ours, theirs = student.module, teacher.module
    if named == (None, None) and isinstance(ours, Staged) and isinstance(theirs, Staged):
        published = theirs.preactivation_taps if recipe.rival == "review" else theirs.stage_taps
        if len(ours.stage_taps) == len(published):
            return _side(student, ours.stage_taps), _side(teacher, published)
    taps_s = (named[0],) if named[0] is not None else stages(student)
    taps_t = (named[1],) if named[1] is not None else stages(teacher)
    count = min(len(taps_s), len(taps_t))
    return _side(student, taps_s[-count:]), _side(teacher, taps_t[-count:])


def _side(model: Model, taps: tuple[str, ...]) -> _Side:
    return _Side(taps, shapes_of(model, taps))


def _flattened(x: Tensor) -> Tensor:
    """Everything of an image in one row."""
    return x.flatten(1)


def _as_map(shape: tuple[int, ...]) -> pooling.Pool:
    """A pool that gives a map; tokens are laid out in a square, without those in front of the patches."""
    layout = layout_of(shape)
    if layout is None or layout.channels_last:
        raise UserError(f"a feature of shape {shape} is no map (n, c, h, w); tap a submodule that gives maps or tokens")
    return pooling.unpooled if len(shape) == 4 else pooling.token_map(layout.prefix)
