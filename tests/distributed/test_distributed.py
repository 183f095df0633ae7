"""Two processes compute what one process computes. They are started once, for all checks of this file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import distributed_worker
import spawned
from training.test_resume import flat, timeless

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return spawned.found_by(distributed_worker.work, 2, folder)


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[dict[str, Any]]:
    """What this process finds alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield distributed_worker.everything(folder / "one")
    torch.set_num_threads(threads)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("what", ["gather", "gather nothing", "terms", "wrapped log_sum", "wrapped log_correlation"])
def test_values_and_gradients_are_those_of_the_whole_batch(
    one: dict[str, Any], two: list[dict[str, Any]], what: str
) -> None:
    for found in two:
        assert_close(found[what], one[what])


@pytest.mark.parametrize(
    ("what", "counters"), [("fit", (20, 160)), ("fit accumulating", (12, 160)), ("fit large", (8, 128))]
)
def test_training_ends_with_the_weights_of_one_process(
    one: dict[str, Any], two: list[dict[str, Any]], what: str, counters: tuple[int, int]
) -> None:
    """With "fit large" two processes accumulate two batches each, and one process has all four as one batch."""
    assert one[what]["counters"] == counters
    for found in two:
        assert_close(found[what]["state"], one[what]["state"])
        assert found[what]["counters"] == one[what]["counters"]
        assert found[what]["last"] == pytest.approx(one[what]["last"], rel=1e-9)
        assert found[what]["best"] == pytest.approx(one[what]["best"], rel=1e-9)


@pytest.mark.parametrize("run", ["fit", "large"])
def test_the_log_is_written_once_and_tells_of_all_processes(
    one: dict[str, Any], two: list[dict[str, Any]], folder: Path, run: str
) -> None:
    alone, together = timeless(folder / "one" / run), timeless(folder / "two" / run)
    assert len(alone) == len(together) == 8
    for a, b in zip(alone, together, strict=True):
        left, right = flat(a), flat(b)
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert right[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name


def test_evaluation_is_that_of_one_process(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Also with fewer batches than processes, with none, and of terms without labels."""
    assert one["evaluations"]["0 images"] == {}
    for found in two:
        assert found["evaluations"].keys() == one["evaluations"].keys()
        for name, figures in one["evaluations"].items():
            assert found["evaluations"][name] == pytest.approx(figures, rel=1e-9), name


def test_resuming_on_two_processes(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for found in two:
        assert_close(found["resumed"], one["resumed"])


def test_the_small_collectives(two: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(two):
        here = found["here"]
        assert here["sum"] == [3.0, 4.0]
        assert here["unchanged"] == [1.0 + rank, 2.0]
        assert here["mean"] == [1.5, 2.0]
        assert here["alone"] == (1, 0, [1.0 + rank, 2.0])
        assert here["told"] == ["ä 0", "", "short"]  # what the first one said, whatever the others have
        assert here["loader"] == (3, 24)  # of 6 batches, each process has 3


def test_processes_that_accelerate_does_not_know_of_are_refused(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert "use torchrun" in found["refused"]
