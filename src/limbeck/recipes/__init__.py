"""Recipes: what defines a run, and the ones that have a name.

Configuration stops here: below a recipe there are plain typed arguments only.
"""

from limbeck.recipes.published import NAMED, named
from limbeck.recipes.recipe import Recipe

__all__ = ["NAMED", "Recipe", "named"]
