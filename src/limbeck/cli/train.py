"""``limbeck train``: train a model alone, a teacher for later or a baseline."""

from collections.abc import Sequence

from limbeck.cli.flags import RunFlags, default_folder, make_recipe, parse_recipe, run_folder
from limbeck.cli.running import dry_run, train_in
from limbeck.cli.words import RENAMED
from limbeck.recipes.recipe import GROUPS, Recipe

DESCRIPTION = """Train a model alone, on the labels: a teacher, or a baseline.

Needs --model and --data, or --recipe, whose student is trained.

Its run folder can be given to `limbeck distill` as --teacher-weights.

  limbeck train --model timm/resnet34 --data FOLDER"""


def fields() -> dict[str, str]:
    """The recipe's settings that matter to a model alone; the model is the recipe's student."""
    shown = {"name": "name", "task": "task", **RENAMED["train"]}
    shown |= {"pretrained": "pretrained", "frozen_norms": "frozen_norms"}
    for group in ("data", "optimization", "diagnostics", "machine"):
        shown |= {name: name for name in GROUPS[group]}
    shown["label_smoothing"] = "label_smoothing"
    del shown["labels"]  # without them there is nothing to learn from
    return shown


def main(words: Sequence[str]) -> int:
    """Train, or with ``--dry-run`` only say what would be trained."""
    shown = fields()
    values, options = parse_recipe(
        words, RunFlags(), command="train", description=DESCRIPTION, fields=shown, fallback={"name": "train"}
    )
    hidden = {name: field.default for name, field in Recipe.model_fields.items() if name not in shown}
    recipe = make_recipe({**values, **hidden, "method": "alone"}, shown, words)
    folder = run_folder(options, default_folder(recipe))
    if options.dry_run:
        return dry_run(recipe, folder)
    resume, if_begun = options.resume is not None, options.resume_if_begun
    return train_in(recipe, folder, resume=resume, if_begun=if_begun, command="train")
