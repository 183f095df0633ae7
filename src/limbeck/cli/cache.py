"""``limbeck cache``: compute a teacher's outputs once, for runs to come."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from limbeck.cli.flags import RecipeFlag, all_fields, default_folder, make_recipe, parse_recipe
from limbeck.cli.running import say
from limbeck.cli.words import arg
from limbeck.errors import UserError

DESCRIPTION = """Compute a teacher's outputs for some augmented views, once.

Takes the flags of `limbeck distill`, which reads them. Needs --cache-views.

  limbeck cache --recipe folder --data FOLDER --cache-views 10"""


@dataclass(frozen=True)
class Flags(RecipeFlag):
    """What it is for, and what is done."""

    out: Annotated[
        str | None,
        arg(metavar="FOLDER", help="The run that will read it; the cache goes beside it, into caches/."),
    ] = None
    estimate: Annotated[
        bool, arg(help="Only say how large it would be; write nothing."), tyro.conf.FlagCreatePairsOff
    ] = False
    verify: Annotated[
        bool,
        arg(help="Only check it: every checksum, and a sample against the live teacher."),
        tyro.conf.FlagCreatePairsOff,
    ] = False


def main(words: Sequence[str]) -> int:
    """Compute, estimate or verify."""
    values, options = parse_recipe(
        words, Flags(), command="cache", description=DESCRIPTION, fields=all_fields(), fallback={}
    )
    recipe = make_recipe(values, all_fields(), words)
    if recipe.cache_views is None:
        raise UserError("--cache-views: missing; how many augmented views of each image to keep, for example 10")
    if options.estimate and options.verify:
        raise UserError("--estimate and --verify: give one")
    from limbeck.runs.precompute import precompute

    folder = Path(options.out) if options.out is not None else default_folder(recipe)
    try:
        say(precompute(recipe, folder, estimate=options.estimate, verify=options.verify))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command") from None
    return 0
