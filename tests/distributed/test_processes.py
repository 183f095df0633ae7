"""Whole trainings on two and four processes, on unequal shares of each batch, end as those on one process do.

The processes are started once for each number of them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

import processes_worker
import spawned
import tiny
from training.test_resume import flat, timeless

pytestmark = pytest.mark.processes


def started(count: int, folder: Path) -> list[dict[str, Any]]:
    return spawned.found_by(processes_worker.work, count, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    (folder / "2").mkdir()
    return started(2, folder / "2")


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    (folder / "4").mkdir()
    return started(4, folder / "4")


@pytest.fixture(scope="module", params=["two", pytest.param("four", marks=pytest.mark.long)])
def several(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    """What this process finds alone."""
    return processes_worker.everything(folder / "1")


@pytest.mark.parametrize("case", processes_worker.CASES)
def test_a_training_ends_as_on_one_process(
    one: dict[str, Any], several: list[dict[str, Any]], folder: Path, case: str
) -> None:
    """Weights, running statistics, banks, average, counters, figures, and every number of the log."""
    expected = one[case]
    assert any(name.startswith("after one step") for name in expected["state"])
    for whole in several:
        found = whole["cases"][case]
        assert found["state"].keys() == expected["state"].keys()
        for name, value in expected["state"].items():
            assert torch.allclose(found["state"][name], value, rtol=1e-7, atol=1e-9), name
        assert found["counters"] == expected["counters"]
        left, right = flat(found["figures"]), flat(expected["figures"])
        assert left == {name: pytest.approx(value, rel=1e-6, abs=1e-9) for name, value in right.items()}
    together, alone = timeless(folder / str(len(several)) / "several" / case), timeless(folder / "1" / case)
    for a, b in zip(together, alone, strict=True):
        left, right = flat(a), flat(b)
        assert left.keys() == right.keys()
        for name, value in right.items():
            assert left[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6, abs=1e-9)), name


def test_a_share_counts_by_its_rows(several: list[dict[str, Any]]) -> None:
    """Process i has i rows, whose mean is 10 i."""
    rows = sum(range(len(several)))
    mean = sum(rank * 10 * rank for rank in range(len(several))) / rows
    for found in several:
        assert found["shares"] == (pytest.approx(mean), rows)


def test_all_score_and_keep_the_student_of_the_first_process(several: list[dict[str, Any]]) -> None:
    """Its own batch norm has seen other images on each of them."""
    first = several[0]["local norm"]
    for whole in several:
        found = whole["local norm"]
        assert tiny.same_bytes(found["state"], first["state"])
        assert found["last"] == pytest.approx(found["here"], rel=1e-6)


def test_loaders_of_unequal_length_are_refused(several: list[dict[str, Any]]) -> None:
    for found in several:
        assert f"gives 5 batches an epoch to one process and {4 + len(several)} to another" in found["refused"]


def test_no_process_skips_a_collective(several: list[dict[str, Any]]) -> None:
    """With short batches, a process without images, accumulation, probes, records, validation, and a resumed run."""
    first = several[0]["recorded"]
    kinds = {line.split()[0] for line in first}
    assert kinds == {"all_reduce", "all_gather", "broadcast", "barrier", "probe"}
    assert len(first) > 200
    for rank, found in enumerate(several):
        differing = [i for i, (a, b) in enumerate(zip(first, found["recorded"], strict=False)) if a != b]
        assert not differing, f"process {rank}: {found['recorded'][differing[0]]}; the first one: {first[differing[0]]}"
        assert len(found["recorded"]) == len(first), rank
