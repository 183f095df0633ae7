"""A signal that one of two processes gets stops both behind one step; they go on to the bytes of an unbroken run."""

from typing import Any

import pytest
import torch

import spawned
import stopping_worker
import tiny
from limbeck.storage.random_state import state_of_this

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawned.found_by(stopping_worker.work, 2, tmp_path_factory.mktemp("stopping"))


def test_both_stop_where_the_log_records_next(two: list[dict[str, Any]]) -> None:
    for found in two:
        raised = {at: (stop["raised"], stop["step"]) for at, stop in found["stopped"].items()}
        assert raised == {
            1: ("SIGTERM", "step-000000002"),
            4: ("SIGTERM", "step-000000004"),
            6: ("SIGTERM", "step-000000006"),
            9: ("SIGTERM", "step-000000010"),
        }


def test_they_end_with_the_bytes_of_an_unbroken_run(two: list[dict[str, Any]]) -> None:
    for found in two:
        for stop in found["stopped"].values():
            assert tiny.same_bytes(stop["end"], found["whole"])


def test_checkpoints_within_an_epoch_are_gone_on_from(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["killed"]["step"] == "step-000000004"
        assert tiny.same_bytes(found["killed"]["end"], found["whole"])


def test_every_process_keeps_its_own_random_numbers(two: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(two):
        assert torch.equal(found["own"], found["drawn"][rank])
        assert torch.equal(found["drawn"][rank], torch.Generator().manual_seed(rank).get_state())
    # Of a state of one process, the second one draws numbers of its own.
    assert not any(torch.equal(two[1]["beyond"], state) for state in two[0]["drawn"])
    assert torch.equal(two[0]["beyond"], two[0]["own"])
    assert state_of_this([{"torch": two[0]["own"]}], torch.device("cpu"))["torch"] is two[0]["own"]
