"""A small recipe on real, embedded images, and a finished run of it."""

from pathlib import Path

import pytest

from limbeck.recipes.recipe import Recipe
from limbeck.recipes.run import run

SMALL = Recipe(
    name="small",
    data="digits",
    teacher="small/cnn-4",
    student="small/cnn-2",
    method="projector+kd",
    train_limit=300,
    epochs=2,
    batch_size=50,
    precision="float32",
    memory_format="contiguous",
    device="cpu",
)


@pytest.fixture(scope="session")
def small() -> Recipe:
    """A recipe that trains in a second or two."""
    return SMALL


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the small recipe."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(SMALL, folder)
    return folder
