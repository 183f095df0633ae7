"""Whether a folder can be a run's, and how one is left in which a run did not begin."""

import contextlib
from pathlib import Path

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.recipes.roles import RESUMABLE
from limbeck.runs.lock import LOCK
from limbeck.storage.shared import check_free
from limbeck.storage.untrusted import text_of


def claim(recipe: Recipe, folder: Path, resume: bool | None) -> Recipe:
    """The recipe as the folder's run has it. Nothing is written.

    Args:
        recipe: What is to be trained.
        folder: The run folder.
        resume: Whether a run has to be there; None: either way.

    Raises:
        UserError: The folder holds something else, or the run is there or missing against ``resume``.
    """
    check_free(folder, "recipe.yaml", kind="run")
    if (text := text_of(folder / "recipe.yaml")) is None:
        if resume:
            raise UserError(f"no run to resume in {folder}")
        return recipe
    if resume is False:
        raise UserError(f"{folder} holds a run already; continue it with --resume, or choose another --out")
    kept = Recipe.from_yaml(text, called=str(folder / "recipe.yaml"))
    # What the first start settled for this machine stays settled.
    settled = {k: getattr(kept, k) for k in fields_of("arithmetic") if getattr(recipe, k) == "auto"}
    recipe = recipe.changed(settled)
    if changes := kept.difference(recipe, but=fields_of(*RESUMABLE)):
        raise UserError(f"{folder} holds a run of another recipe: {'; '.join(changes)}")
    return recipe


def give_up(folder: Path) -> None:
    """Leave no trace of a run that did not begin, so that the same command can be given again, corrected."""
    if collectives.rank() == 0:
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            for name in ("log.jsonl", "data.json", "recipe.yaml"):  # without the last one the folder is nobody's
                (folder / name).unlink(missing_ok=True)
            if all(path.name == LOCK for path in folder.iterdir()):  # which is this run's own
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
