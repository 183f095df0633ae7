"""Trainings whose parameters are cut up over two and four processes end as those on one process do.

The processes are started once for each number of them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

import sharding_worker
import spawned
from training.test_resume import flat, timeless

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


def started(count: int, folder: Path) -> list[dict[str, Any]]:
    (folder / str(count)).mkdir()
    return spawned.found_by(sharding_worker.work, count, folder / str(count))


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return started(2, folder)


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    return started(4, folder)


@pytest.fixture(scope="module", params=["two", pytest.param("four", marks=pytest.mark.long)])
def several(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    """What this process finds alone, without shards."""
    return sharding_worker.everything(folder / "1", shard=False)


@pytest.mark.parametrize("case", sharding_worker.CASES)
def test_a_training_ends_as_on_one_process(
    one: dict[str, Any], several: list[dict[str, Any]], folder: Path, case: str
) -> None:
    """Weights, running statistics, banks, average, counters, figures, every number of the log; and the teacher."""
    expected = one[case]
    for whole in several:
        found = whole["cases"][case]
        assert found["state"].keys() == expected["state"].keys()
        for name, value in expected["state"].items():
            assert torch.allclose(found["state"][name], value, rtol=1e-8, atol=1e-9), name
        assert found["counters"] == expected["counters"]
        left, right = flat(found["figures"]), flat(expected["figures"])
        assert left == {name: pytest.approx(value, rel=1e-6, abs=1e-9) for name, value in right.items()}
        assert found["teacher"], "the teacher has changed"
    together, alone = timeless(folder / str(len(several)) / case), timeless(folder / "1" / case)
    for a, b in zip(together, alone, strict=True):
        left, right = flat(a), flat(b)
        assert left.keys() == right.keys()
        for name, value in right.items():
            assert left[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6, abs=1e-9)), name


def test_each_process_holds_its_share_of_the_teacher(several: list[dict[str, Any]]) -> None:
    for case in ("projector", "own norm", "vit and a projector"):
        shares = [found["cases"][case]["held"] for found in several]
        total = shares[0][1]
        assert total > 500
        assert sum(own for own, _ in shares) == total
        assert max(own for own, _ in shares) < 1.4 * total / len(
            several
        )  # rows are not cut: three classes, four shares


def test_of_the_teacher_one_part_is_put_together_at_a_time(several: list[dict[str, Any]]) -> None:
    """Ten equal layers: at most one of them, besides the shares of the others; two, where the next comes beforehand."""
    for found in several:
        between, most, total = found["most at once"]
        assert between == total / len(several)
        assert between < most <= between + 2 * (total / 10) * (1 - 1 / len(several))


def test_it_is_a_part_of_anybodys_loop(several: list[dict[str, Any]]) -> None:
    expected = sharding_worker.own_loop()
    for found in several:
        assert found["own loop"].keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found["own loop"][name], value, rtol=1e-8, atol=1e-9), name


def test_a_sharded_model_is_scored_whatever_the_number_of_batches(several: list[dict[str, Any]]) -> None:
    expected = sharding_worker.scored()
    assert expected[0] == {}
    for found in several:
        assert [flat(figures) for figures in found["scored"]] == [
            {name: pytest.approx(value, rel=1e-9) for name, value in flat(figures).items()} for figures in expected
        ]
