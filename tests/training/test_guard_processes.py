"""Two processes decide alike on bad numbers that one of them has; started once, for all checks of this file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import guard_worker
import spawned
import tiny
from limbeck.training.bad_batch import BAD_BATCH

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return spawned.found_by(guard_worker.work, 2, folder)


@pytest.mark.parametrize("fault", list(guard_worker.FAULTS))
def test_both_leave_it_out_and_end_with_the_bytes_of_a_run_without_it(two: list[dict[str, Any]], fault: str) -> None:
    for found in two:
        assert found[fault]["skipped"] == 1
        assert trained(found[fault]["state"]).keys() == trained(found[fault]["expected"]).keys()
        assert tiny.same_bytes(found[fault]["state"], found[fault]["expected"])
    assert tiny.same_bytes(trained(two[0][fault]["state"]), trained(two[1][fault]["state"]))


def trained(state: dict[str, Any]) -> dict[str, Any]:
    """Without the running statistics of the student's batch norm, which are each process's own."""
    return {name: value for name, value in state.items() if "running_" not in name}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("input of rank 1", "at step 5 (epoch 2, process 1): "),
        ("gradient of rank 1", "the gradient is not finite at step 5 (epoch 2): that of student."),
        ("gradient of rank 0", "the gradient is not finite at step 6 (epoch 2): that of student."),
    ],
)
def test_both_stop_with_the_same_line(two: list[dict[str, Any]], fault: str, words: str) -> None:
    assert words in two[0][fault]["stopped"]
    assert two[0][fault]["stopped"] == two[1][fault]["stopped"]


def test_the_process_whose_batch_it_is_tells_of_it(two: list[dict[str, Any]], folder: Path) -> None:
    """Its terms make the other's loss infinite, too, which keeps its own batch."""
    place = folder / "two" / "input-of-rank-1"
    assert "the input is not finite before it" in two[0]["input of rank 1"]["stopped"]
    told = [json.loads((place / name).read_text()) for name in (BAD_BATCH, "bad_batch-1.json")]
    assert [each["first"] for each in told] == ["term feature", "input"]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))[8:16]
    assert [each["images"] for each in told] == [order[:4].tolist(), order[4:].tolist()]
    (record,) = two[0]["input of rank 1"]["records"]
    assert (record["step"], record["images"]) == (5, order[4:].tolist())
    assert two[1]["input of rank 1"]["records"] == []


def test_memory_banks_and_running_covariances_stay_equal(two: list[dict[str, Any]]) -> None:
    """What every process has of its own is its student's running statistics."""
    assert [found["everything"]["skipped"] for found in two] == [1, 1]
    terms = [{name: value for name, value in found["everything"]["state"].items() if name[0] in "tm"} for found in two]
    assert any("bank" in name for name in terms[0])
    assert tiny.same_bytes(*terms)


def test_found_at_a_record_both_stop_for_the_earliest_step(two: list[dict[str, Any]]) -> None:
    assert "at step 5 (epoch 2, process 1): " in two[0]["late"]
    assert two[0]["late"] == two[1]["late"]


def test_a_state_that_is_bad_on_one_process_is_kept_by_none(two: list[dict[str, Any]]) -> None:
    assert two[0]["broken"].startswith("not finite after step 3: student.norm.running_var; ")
    assert two[0]["broken"] == two[1]["broken"]
