"""``limbeck distill``: train a student with a teacher, into a run folder."""

from collections.abc import Sequence

from limbeck.cli.flags import RunFlags, all_fields, default_folder, make_recipe, parse_recipe, run_folder
from limbeck.cli.running import dry_run, train_in

DESCRIPTION = """Train a student with a teacher through a projector.

Needs --student, --teacher and --data, or --recipe.

  limbeck distill --teacher timm/resnet34 --student timm/resnet18 --data FOLDER"""


def main(words: Sequence[str]) -> int:
    """Train, or with ``--dry-run`` only say what would be trained."""
    values, options = parse_recipe(
        words, RunFlags(), command="distill", description=DESCRIPTION, fields=all_fields(), fallback={}
    )
    recipe = make_recipe(values, all_fields(), words)
    folder = run_folder(options, default_folder(recipe))
    if options.dry_run:
        return dry_run(recipe, folder)
    resume, if_begun = options.resume is not None, options.resume_if_begun
    return train_in(recipe, folder, resume=resume, if_begun=if_begun, command="distill")
