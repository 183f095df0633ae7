"""Two and four processes with unequal shares of a batch compute what one process computes with all of it.

A share may be a single row, or none. The processes are started once for each number of them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moments_worker
import spawned
from limbeck.terms import LossForm

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return run(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module", params=["two", pytest.param("four", marks=pytest.mark.long)])
def several(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return request.getfixturevalue(request.param)


def run(count: int, folder: Path) -> list[dict[str, Any]]:
    return spawned.found_by(moments_worker.work, count, folder)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert found.keys() == expected.keys(), what
    for name, value in expected.items():
        assert value.dtype == found[name].dtype, f"{what}: {name}"
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-9), f"{what}: {name}"


@pytest.mark.parametrize("name", moments_worker.cases())
def test_values_and_gradients_are_those_of_the_whole_batch(several: list[dict[str, Any]], name: str) -> None:
    count = len(several)
    make = moments_worker.cases()[name]
    for split in moments_worker.SPLITS[count]:
        expected = moments_worker.of_term(make, split)
        assert expected["dz_s"].abs().max() > 1e-6
        for rank, found in enumerate(several):
            assert_close(found["terms"][f"{name} {split}"], expected, f"{split}, process {rank}")


def test_no_process_sends_its_rows_where_it_need_not(several: list[dict[str, Any]]) -> None:
    """Whatever their number, and the same form on all of them."""
    for found in several:
        forms = found["forms"]
        assert {form for name, form in forms.items() if name.startswith("moments")} == {LossForm.MOMENTS.value}
        assert {form for name, form in forms.items() if name.startswith("chunked")} == {LossForm.CHUNKED.value}
        # Behind the gathering norm every process has all rows, and chooses by their number.
        assert forms["ZCA in front"] == forms["Ridge"] == LossForm.DIRECT.value
        assert forms["ZCA in front, moments"] == LossForm.MOMENTS.value


def test_logits_are_gathered_only_for_losses_that_are_no_mean_over_rows(several: list[dict[str, Any]]) -> None:
    """And a user's own loss is gathered unless it is said to be one."""
    for found in several:
        assert {name: calls > 0 for name, calls in found["gathered"].items()} == {
            name: "by rows" not in name for name in found["gathered"]
        }
        assert len(found["gathered"]) == 7


@pytest.mark.parametrize("what", ["sharded", "sharded in units"])
def test_a_distiller_sharded_by_fsdp_takes_the_same_step(two: list[dict[str, Any]], what: str) -> None:
    if "unsupported" in two[0][what]:
        pytest.skip(two[0][what]["unsupported"])
    expected = moments_worker.step(moments_worker.distiller())
    for rank, found in enumerate(two):
        step = dict(found[what])
        assert step.pop("form moments") == LossForm.MOMENTS.value
        assert step.pop("form blocks") == LossForm.CHUNKED.value
        assert_close(step, expected, f"process {rank}")
