"""A folder of runs that several tables share: each is made once, whoever asks for it first."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from limbeck.assembly.teacher import slug
from limbeck.errors import UserError
from limbeck.recipes.recipe import NOT_COMPARED, Recipe

WAIT = 5.0  # seconds between two looks whether another worker is done

Say = Callable[[str], None]
"""Receives one line about what happens next."""


def place_of(folder: Path, recipe: Recipe) -> Path:
    """Where the run of a recipe lies: named by its models, its method, its seed, and a hash of what else decides it.

    Two recipes of one seed that differ by `NOT_COMPARED` alone have the same place.
    """
    settings = recipe.model_dump(mode="json", exclude=set(NOT_COMPARED))
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    models = "-to-".join(model for model in (recipe.teacher, recipe.student) if model)
    return folder / f"{slug(models)}--{recipe.method}-{key}-seed{recipe.seed}"


def run_all(
    folder: Path,
    recipes: Sequence[Recipe],
    *,
    say: Say,
    what: str,
    on_run: Callable[[Mapping[Path, str]], object] = lambda failed: None,
) -> dict[Path, str]:
    """Make every run that is not there, each in its :func:`place_of`; see :func:`run_each`.

    Args:
        folder: Where the runs lie.
        recipes: Of the runs, in their order; one that is there twice is made once.
        say: Told one line before each run.
        what: Part of that line, what the runs are for.
        on_run: Told after each run why which ones failed.

    Returns:
        Place to why it failed.
    """
    places = {place: recipe.changed({"name": place.name}) for recipe in recipes for place in [place_of(folder, recipe)]}
    return run_each(places, say=say, what=what, on_run=on_run)


def run_each(
    places: Mapping[Path, Recipe],
    *,
    say: Say,
    what: str,
    said: set[str] | None = None,
    on_run: Callable[[Mapping[Path, str]], object] = lambda failed: None,
) -> dict[Path, str]:
    """Make every run that is not there; what another process has begun is waited for.

    A run that fails is told; the others go on.

    Args:
        places: Run folder to recipe, in the order in which they are made.
        say: Told one line before each run.
        what: Part of that line, what the runs are for.
        said: Notes of other runs that need not be printed again.
        on_run: Told after each run why which ones failed.

    Returns:
        Place to why it failed.

    Raises:
        UserError: The runs do not belong together (`limbeck.runs.comparable`).
    """
    from limbeck.assembly.build import is_run
    from limbeck.runs.comparable import agree, begin, check, read
    from limbeck.runs.lock import HeldError, is_held
    from limbeck.runs.run import run

    if not places:
        return {}
    folder = next(iter(places)).parent
    folder.mkdir(parents=True, exist_ok=True)
    made = begin(folder, places, say)
    failed: dict[Path, str] = {}
    said = set[str]() if said is None else said
    pending = list(enumerate(places.items(), start=1))
    while pending:
        of_others: list[tuple[int, tuple[Path, Recipe]]] = []
        for number, (place, recipe) in pending:
            if is_run(place):
                continue
            if is_held(place):
                of_others.append((number, (place, recipe)))
                continue
            begun = (place / "recipe.yaml").is_file()
            say(f"[{number}/{len(places)}, {what}] {place.name}{': continuing' if begun else ''}")
            try:
                run(recipe, place, if_begun=True, said=said)
            except HeldError:  # another process was quicker
                of_others.append((number, (place, recipe)))
                continue
            except UserError as error:
                failed[place] = str(error)
                say(f"failed: {place.name}: {error}")
            made += read([place])
            agree(folder, made)
            on_run(failed)
        if of_others and len(of_others) == len(pending):
            time.sleep(WAIT)
        pending = of_others
    check(folder, places)
    return failed
