"""The teacher cache of a recipe: what it holds, where it is, and the loader that reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import PIL
import torch

from limbeck.assembly.build import batch_size_of
from limbeck.assembly.probing import plain
from limbeck.assembly.rivals import PAIRS
from limbeck.assembly.tasks import Parts
from limbeck.assembly.teacher import slug
from limbeck.cache import (
    Cache,
    CachedLoader,
    Contents,
    LiveTeacher,
    Reduction,
    Tested,
    check_room,
    digest_of,
    fill,
    key_of,
    plan_cache,
    self_test,
    verify,
    views_of,
)
from limbeck.data import Loader
from limbeck.distributed import collectives
from limbeck.features import pooling
from limbeck.models import Model
from limbeck.recipes.recipe import Recipe
from limbeck.training.precision import PRECISIONS

Say = Callable[[str], None]
MIB = 1 << 20


@dataclass(frozen=True)
class Planned:
    """A recipe's cache, there or not.

    Attributes:
        cache: The cache, or its plan.
        views: How many views the run goes through.
        loader: Goes through them; not sharded.
        teacher: Runs the teacher.
    """

    cache: Cache
    views: int
    loader: Loader
    teacher: LiveTeacher


def plan_recipe_cache(recipe: Recipe, parts: Parts, folder: Path, device: torch.device) -> Planned:
    """The cache of a recipe; nothing is written.

    Args:
        recipe: With its precision and memory format settled.
        parts: Made from it, on the device and laid out as for training.
        folder: The run's folder; caches are in `caches/` beside it, shared by the runs that need the same outputs.
        device: Where the teacher runs.

    Raises:
        UserError: If the folder that the recipe names holds another cache, or a term reads what is not kept.
    """
    assert recipe.cache_views is not None
    assert parts.teacher is not None
    contents = build_contents(recipe, parts)
    contents.require(parts.distiller)
    # More views than epochs would never be read.
    views = min(recipe.cache_views, recipe.epochs)
    loader = plain(parts).train_loader(
        batch_size=batch_size_of(recipe, parts.data), seed=recipe.seed, views=views, view_seed=recipe.cache_seed
    )
    teacher = LiveTeacher(parts.distiller, device, PRECISIONS[recipe.precision])
    identity = _identity(recipe, parts, parts.teacher, contents, loader)
    name = f"{slug(str(recipe.teacher))}-{key_of(identity)}"
    place = Path(recipe.cache_folder) if recipe.cache_folder is not None else folder.parent / "caches" / name
    cache = plan_cache(
        place,
        identity,
        contents,
        loader=loader,
        teacher=teacher,
        parts=collectives.world_size(),
        made_by={
            "torch": torch.__version__,
            "timm": metadata.version("timm"),
            "pillow": PIL.__version__,
            "device": str(device),
        },
    )
    return Planned(cache, views, loader, teacher)


def cached_loader(recipe: Recipe, parts: Parts, folder: Path, device: torch.device, say: Say) -> CachedLoader:
    """The training loader with the teacher's outputs; computes first what is missing of them, and tests the rest.

    Args:
        recipe: As for `plan_recipe_cache`.
        parts: As there.
        folder: As there.
        device: As there.
        say: Tells the user one line.

    Raises:
        UserError: If there is no room, or the cache is damaged or not of these images and this teacher.
    """
    planned = plan_recipe_cache(recipe, parts, folder, device)
    fill_planned(recipe, planned, say)
    say(check_planned(planned))
    return CachedLoader(planned.loader, planned.cache, parts.distiller.clock)


def fill_planned(recipe: Recipe, planned: Planned, say: Say) -> None:
    """Compute what is missing, and say what it costs and saves."""
    cache, views = planned.cache, planned.views
    size = check_room(cache, views, limit=recipe.cache_limit)
    missing, all_ = len(cache.missing(views)), len(cache.shards(views))
    say(f"teacher cache: {describe_planned(recipe, planned, size)}; {all_ - missing} of {all_} shards exist")
    if recipe.augmentation == "none" and views > 1:
        say("teacher cache: without augmentation all views are the same; --cache-views 1 is enough")
    fill(cache, views, planned.loader, planned.teacher)


def check_planned(planned: Planned) -> str:
    """Compare every checksum, and random images with the live teacher.

    Returns:
        A line for the user.

    Raises:
        UserError: If something is damaged or differs.
    """
    verify(planned.cache, planned.views)
    tested: Tested = self_test(planned.cache, planned.views, planned.loader, planned.teacher)
    how = f"within {100 * tested.deviation:.2g}%" if tested.deviation else "equal to the byte"
    return f"teacher cache: checksums are right; {tested.rows} images computed again: {how}"


def describe_planned(recipe: Recipe, planned: Planned, size: int) -> str:
    """What a cache holds, takes and saves."""
    images, views = planned.cache.card.images, planned.views
    saved = (
        f"the teacher runs {views} epochs instead of {recipe.epochs}"
        if views < recipe.epochs
        else ("the teacher runs as often as live; it is saved in runs that share the cache")
    )
    return f"{views} views of {images} images, {size / MIB:,.1f} MiB in {planned.cache.folder}; {saved}"


def build_contents(recipe: Recipe, parts: Parts) -> Contents:
    """What the recipe's terms read of the teacher, and its logits, which runs with another method may share."""
    assert parts.teacher is not None
    taps = tuple(dict.fromkeys(tap for term in parts.distiller.terms.values() for tap in term.teacher_taps))
    return Contents(
        taps,
        output=parts.teacher.num_classes > 0,
        top_k=recipe.cache_top_k,
        exact=recipe.cache_precision == "exact",
        reduction=build_reduction(recipe),
    )


def build_reduction(recipe: Recipe) -> Reduction | None:
    """How features are made smaller: as the one term that reads them pools them; None where it reads positions."""
    if recipe.rival in PAIRS or recipe.rival == "crd":
        return Reduction("automatic", pooling.automatic, _as_vector)
    if not recipe.uses_features:
        return None
    match recipe.teacher_pool:
        case "automatic":
            return Reduction("automatic", pooling.automatic, _as_vector)
        case "spatial_mean":
            return Reduction("spatial_mean", pooling.spatial_mean, _as_map)
        case "spatial_mean_nhwc":
            return Reduction("spatial_mean_nhwc", pooling.spatial_mean_nhwc, _as_nhwc_map)
        case "token_mean":
            return Reduction("token_mean", pooling.token_mean(1), _as_prefix_and_patch)
        case "class_token":
            return Reduction("class_token", pooling.class_token, _as_token)
        case _:
            return None


def _identity(recipe: Recipe, parts: Parts, teacher: Model, contents: Contents, loader: Loader) -> dict[str, Any]:
    spec = teacher.input
    return {
        "teacher": teacher.name,
        "teacher_weights": digest_of(teacher.module),
        "teacher_input": [list(spec.mean), list(spec.std), spec.size, spec.interpolation],
        **contents.settings(),
        "data": parts.data.fingerprint,
        "classes": len(parts.data.classes),
        "size": parts.data.size,
        **views_of(loader, processes=collectives.world_size()),
        "precision": recipe.precision,
        "memory_format": recipe.memory_format,
    }


def _as_vector(x: torch.Tensor) -> torch.Tensor:
    return x


def _as_map(x: torch.Tensor) -> torch.Tensor:
    return x[:, :, None, None]


def _as_nhwc_map(x: torch.Tensor) -> torch.Tensor:
    return x[:, None, None, :]


def _as_token(x: torch.Tensor) -> torch.Tensor:
    return x[:, None]


def _as_prefix_and_patch(x: torch.Tensor) -> torch.Tensor:
    return x[:, None].expand(-1, 2, -1)
