"""The teacher cache alone: estimate it, compute it, or check it, for runs to come."""

import contextlib
from pathlib import Path

import torch
from accelerate import PartialState

from limbeck.assembly.caching import check_planned, describe_planned, fill_planned, plan_recipe_cache
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog
from limbeck.recipes.recipe import Recipe
from limbeck.runs.run import device_of, prepare


def precompute(recipe: Recipe, folder: Path, *, estimate: bool = False, verify: bool = False) -> str:
    """Compute the cache that a run of this recipe would read, and test it.

    Args:
        recipe: The run's recipe.
        folder: The run's folder, which is not made; the cache and a teacher that has to be trained go beside it.
        estimate: Only say how large it would be.
        verify: Only compare the checksums of one that is there, and a sample with the live teacher.

    Returns:
        A line that says what came out.

    Raises:
        UserError: If the recipe has no cache, there is no room, or the cache is damaged or not the recipe's.
    """
    if recipe.cache_views is None:
        raise UserError("cache_views: missing; how many augmented views of each image to keep, for example 10")
    PartialState(cpu=recipe.device == "cpu" or not torch.accelerator.is_available())
    threads = torch.get_num_threads()
    with RunLog() as log, contextlib.ExitStack() as restored:
        restored.callback(torch.set_num_threads, threads)
        device = device_of(recipe)
        parts, _, recipe = prepare(recipe, folder, log, device)
        planned = plan_recipe_cache(recipe, parts, folder, device)
        if estimate:
            return f"teacher cache: {describe_planned(recipe, planned, planned.cache.estimate(planned.views))}"
        if verify:
            if missing := planned.cache.missing(planned.views):
                place, count = planned.cache.folder, len(planned.cache.shards(planned.views))
                raise UserError(
                    f"the cache in {place} lacks {len(missing)} of {count} shards; make it without --verify"
                )
        else:
            fill_planned(recipe, planned, log.note)
        return check_planned(planned)
