"""Whether a folder can be a run's, and how one is left in which a run did not begin."""

import contextlib
from pathlib import Path

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.recipes.roles import RESUMABLE
from limbeck.runs.lock import LOCK


def claim(recipe: Recipe, folder: Path, resume: bool) -> Recipe:
    """The recipe as the folder's run has it; UserError where the folder holds something else. Nothing is written."""
    if (folder / "recipe.yaml").is_file():
        kept = Recipe.from_yaml(folder / "recipe.yaml")
        # What the first start settled for this machine stays settled.
        settled = {k: getattr(kept, k) for k in fields_of("arithmetic") if getattr(recipe, k) == "auto"}
        recipe = recipe.changed(settled)
        changes = kept.difference(recipe, but=fields_of(*RESUMABLE))
        if changes and resume:
            raise UserError(f"{folder} holds a run of another recipe: {'; '.join(changes)}")
        if not resume:
            raise UserError(f"{folder} holds a run already; continue it with --resume, or choose another --out")
        return recipe
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --out must be a folder")
    if resume:
        raise UserError(f"no run to resume in {folder}")
    if folder.is_dir() and not all(path.name == LOCK or _is_left(path) for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; choose another --out")
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


def _is_left(path: Path) -> bool:
    """Whether a file is half of one, of a run that was killed while it wrote it."""
    return path.name.startswith(".") and path.name.endswith(".tmp")
