"""A training on one process that a launcher started ends with the bytes of one that nobody launched."""

from pathlib import Path
from typing import Any

import pytest

import launched_worker
import spawned
import tiny

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return spawned.found_by(launched_worker.work, 1, tmp_path_factory.mktemp("launched"))[0]


def test_the_processes_are_those_of_a_launcher(launched: dict[str, Any]) -> None:
    assert launched["is used"]


@pytest.mark.parametrize("kind", launched_worker.KINDS)
def test_the_bytes_are_those_without_a_launcher(launched: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """Whatever ``accelerate launch`` was told of number format and compiler: a run has those of its arguments."""
    assert tiny.same_bytes(launched[kind], launched_worker.trained(kind, tmp_path))
