"""Two processes compute what one process computes, also when the banks have been written to."""

import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from rivals import rivals_worker

pytestmark = pytest.mark.processes

LIMIT = 120.0  # seconds; a collective that one process does not reach would wait for ever
Found = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes found."""
    folder: Path = tmp_path_factory.mktemp("rivals")
    context = mp.spawn(rivals_worker.work, args=(2, folder), nprocs=2, join=False)
    assert context is not None
    deadline = time.monotonic() + LIMIT
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> Found:
    """What this process finds alone."""
    return rivals_worker.everything()


@pytest.mark.parametrize("what", ["collectives", "norm", "terms", "wrapped"])
def test_values_gradients_and_state_are_those_of_the_whole_batch(one: Found, two: list[Found], what: str) -> None:
    for found in two:
        assert found[what].keys() == one[what].keys()
        for name, value in one[what].items():
            assert torch.allclose(found[what][name], value, rtol=1e-9, atol=1e-9), name


def test_the_banks_are_equal_to_the_bit(two: list[Found]) -> None:
    names = [name for name in two[0]["terms"] if name.endswith("_bank")]
    assert len(names) == 6
    for name in names:
        assert torch.equal(two[0]["terms"][name], two[1]["terms"][name])
