"""What a recipe says of shards, and what it cannot say along with them. Nothing in this file imports torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.recipes.recipe import Recipe


def check_shards(recipe: "Recipe") -> str | None:
    """What cannot be combined with shards; None where nothing is wrong."""
    if not recipe.shard:
        return None
    unfit = {
        "task": (recipe.detects, "expected classification"),
        "precision": (recipe.precision == "fp16", "expected auto, bf16 or float32: the loss is not scaled in shards"),
        "accumulate": (recipe.accumulate > 1, "expected 1: the share of a batch is smaller already"),
        "cache_views": (recipe.cache_views is not None, "expected none: with a cache no device holds the teacher"),
        "probe": (isinstance(recipe.probe, int), "expected auto or off: no process has the whole models"),
        "memory_format": (recipe.memory_format == "channels_last", "expected auto or contiguous"),
        "compile": (recipe.compile == "on", "expected auto or off"),
    }
    for name, (is_unfit, expected) in unfit.items():
        if is_unfit:
            return f"{name}: with shard {expected}, got {getattr(recipe, name)}"
    return None
