"""One thread a test process, so that runs in parallel do not fight, and nothing that reaches for the network."""

# ruff: noqa: E402 (the environment comes before torch)
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # processes that tests start inherit it
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of them would compile the library again
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NO_COLOR", "1")
_cache = tempfile.TemporaryDirectory(prefix="limbeck-tests-")
os.environ["LIMBECK_CACHE"] = _cache.name  # never the user's own

import pytest
import torch

from detection import boxes
from limbeck.assembly import probing
from limbeck.recipes.recipe import Recipe

torch.set_num_threads(1)
probing.LEAST_SECONDS = 60.0  # on a busy machine logs that are compared would be of unequal numbers of images


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, alone or in any order."""
    torch.manual_seed(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell has what it starts in the background ignore it, and so would our children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


TRAIN, VAL = 32, 8

SMALL = Recipe(
    name="small",
    data="digits",
    teacher="small/cnn-4",
    student="small/cnn-2",
    method="projector+kd",
    teacher_epochs=2,
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
    from limbeck.runs.run import run

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
