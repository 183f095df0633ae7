"""A small recipe on real, embedded images, and a finished run of it; a small recipe of detection on rectangles."""

from pathlib import Path

import pytest

from limbeck.recipes import probing
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.run import run
from tasks import boxes

probing.LEAST_SECONDS = 60.0  # on a busy machine logs that are compared would be of unequal numbers of images

TRAIN, VAL = 32, 8

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


@pytest.fixture(scope="session")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO data set of rectangles whose color is their class."""
    folder = tmp_path_factory.mktemp("colored")
    boxes.write_coco(folder, train=TRAIN, val=VAL)
    return folder


@pytest.fixture(scope="session")
def alone(colored: Path) -> Recipe:
    return Recipe(
        name="boxes",
        task="detection",
        data=str(colored),
        student="fcos-32/cifar/resnet8",
        method="alone",
        size=64,
        augmentation="none",
        epochs=14,
        batch_size=8,
        optimizer="adamw",
        lr=3e-3,
        clip=10.0,
        precision="float32",
        memory_format="contiguous",
        device="cpu",
    )
