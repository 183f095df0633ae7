"""Two processes compute what one process computes, also when the banks have been written to."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import spawned
from rivals import rivals_worker

pytestmark = pytest.mark.processes

Found = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes found."""
    folder: Path = tmp_path_factory.mktemp("rivals")
    return spawned.found_by(rivals_worker.work, 2, folder)


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
