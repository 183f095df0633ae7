"""Runs that another process makes at the same time."""

import shutil
from pathlib import Path

from limbeck.recipes.recipe import Recipe
from limbeck.studies.pool import run_each


def test_a_run_that_another_process_makes_after_the_look_is_taken(finished: Path, tmp_path: Path) -> None:
    place = tmp_path / "kd-seed0"
    kept = Recipe.from_yaml(finished / "recipe.yaml")

    def say(line: str) -> None:
        """Called after the look and before the run."""
        assert line == f"[1/1, a table] {place.name}"
        shutil.copytree(finished, place)

    assert run_each({place: kept}, say=say, what="a table") == {}
