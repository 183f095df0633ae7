"""``limbeck doctor``: the checks that run before every training, alone."""

from collections.abc import Sequence

from limbeck.cli.flags import RecipeFlag, all_fields, default_folder, make_recipe, parse_recipe
from limbeck.cli.running import say

DESCRIPTION = """Check models, labels, inputs, shapes, gradients and losses before training.

Takes the flags of `limbeck distill`, which checks the same before it starts.

Nothing is trained and nothing written. Exit code 1 at an error."""


def main(words: Sequence[str]) -> int:
    """Print every finding with its advice; 1 if one of them is an error."""
    values, _ = parse_recipe(
        words, RecipeFlag(), command="doctor", description=DESCRIPTION, fields=all_fields(), fallback={}
    )
    recipe = make_recipe(values, all_fields(), words)
    from limbeck.runs.inspection import check

    findings = check(recipe, default_folder(recipe))
    for finding in findings:
        say(f"{finding.level:<8} {finding.name}: {finding.message}")
        if finding.advice:
            say(f"{'':<8} advice: {finding.advice}")
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    say(f"{len(findings)} checks, {errors} errors, {warnings} warnings")
    return 1 if errors else 0
