"""Runs that several processes divide among them: whoever holds a run folder's lock works at it."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from limbeck.errors import UserError
from limbeck.recipes.build import is_run
from limbeck.recipes.lock import HeldError, is_held
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.run import run

WAIT = 5.0  # seconds between two looks whether another worker is done


def run_all(
    runs: Mapping[Path, Recipe],
    *,
    what: str,
    said: set[str],
    say: Callable[[str], None],
    on_run: Callable[[Mapping[Path, str]], object],
) -> dict[Path, str]:
    """Make every run that is not there; what another process has begun is waited for.

    Args:
        runs: Run folder to recipe, in the order in which they are made.
        what: What they are for, in the line that is said before each.
        said: Notes that need not be printed again.
        say: Told one line before each run, and where one failed.
        on_run: Told after each run which have failed.

    Returns:
        Why each failed run did.
    """
    failed: dict[Path, str] = {}
    pending = list(enumerate(runs.items(), start=1))
    while pending:
        of_others: list[tuple[int, tuple[Path, Recipe]]] = []
        for number, (place, recipe) in pending:
            if is_run(place):
                continue
            if is_held(place):
                of_others.append((number, (place, recipe)))
                continue
            begun = (place / "recipe.yaml").is_file()
            say(f"[{number}/{len(runs)}, {what}] {place.name}{': going on' if begun else ''}")
            try:
                run(recipe, place, resume=begun, said=said)
            except HeldError:  # another process was quicker
                of_others.append((number, (place, recipe)))
                continue
            except UserError as error:
                failed[place] = str(error)
                say(f"failed: {place.name}: {error}")
            on_run(failed)
        if of_others and len(of_others) == len(pending):
            time.sleep(WAIT)
        pending = of_others
    return failed
