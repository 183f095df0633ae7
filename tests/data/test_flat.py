"""Over a thousand batches neither the memory of a process nor its open files and threads grow."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import tiny
from data.images import folder
from limbeck import Distiller, fit
from limbeck.data import DataSpec, Loader, open_data
from limbeck.tasks import Classification
from limbeck.training import optim
from limbeck.training.prefetch import in_background

BATCHES = 1000
MOST = 4 << 20  # bytes that may come from anything; one batch kept each time would be 12 MiB and more


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    folder(root / "train", {"a": 16, "b": 12, "c": 12}, kind="jpg")
    folder(root / "val", {"a": 1, "b": 1, "c": 1})
    return root


def loader(photos: Path, memory: int | None, workers: int, size: int = 16) -> Loader:
    spec = DataSpec(source=str(photos), workers=workers, size=size, augmentation="strong")
    return open_data(spec, memory=memory).train_loader(batch_size=4, seed=0)


def use(batches: Any, count: int) -> None:
    epoch = 0
    while count > 0:
        batches.set_epoch(epoch)
        for _ in in_background(batches) if epoch % 2 else batches:
            count -= 1
        epoch += 1


def grown(work: Callable[[int], None]) -> tuple[int, int, int]:
    """Bytes, files and threads that a thousand batches add, after some to warm up."""
    process = psutil.Process()

    def state() -> tuple[int, int, int]:
        gc.collect()
        return process.memory_info().rss, process.num_fds(), threading.active_count()

    work(200)
    before = state()
    work(BATCHES)
    after = state()
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="counts the open files of a process")
@pytest.mark.parametrize(
    ("memory", "workers"),
    [
        (None, 0),
        (0, 0),
        pytest.param(0, 1, marks=pytest.mark.processes),
    ],
    ids=["memory", "disk", "processes"],
)
def test_loaders(photos: Path, memory: int | None, workers: int):
    batches = loader(photos, memory, workers)
    memory_, files, threads = grown(lambda count: use(batches, count))
    assert memory_ < MOST
    assert files <= 0
    assert threads <= 0


@pytest.mark.long
@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="counts the open files of a process")
def test_training(photos: Path):
    batches = loader(photos, None, 0, size=8)

    def train(count: int) -> None:
        torch.manual_seed(0)
        distiller = Distiller(tiny.Net(4), None, Classification())
        steps = len(batches)
        fit(distiller, batches, None, epochs=count // steps, optimizer=optim.sgd(distiller, lr=0.01))

    memory_, files, threads = grown(train)
    assert memory_ < MOST
    assert files <= 0
    assert threads <= 0
