"""Two processes fill one cache and read it. They are started once, for all checks of this file."""

from pathlib import Path
from typing import Any

import pytest

import spawned
import tiny
from cache import cache_worker
from cache.subject import IMAGES, VIEWS, subject
from limbeck.errors import UserError

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return spawned.found_by(cache_worker.work, 2, folder)


@pytest.mark.parametrize("augmentation", cache_worker.AUGMENTATIONS)
def test_both_write_a_share_and_read_all_of_it(two: list[dict[str, Any]], folder: Path, augmentation: str) -> None:
    one, other = (found[augmentation] for found in two)
    images = VIEWS * (IMAGES if augmentation == "standard" else IMAGES // 20 * 20)
    assert one["computed"] + other["computed"] == images
    assert min(one["computed"], other["computed"]) > images / 3
    assert one["read"] + other["read"] == sum(p.stat().st_size for p in (folder / augmentation).glob("*.safetensors"))
    assert one["tested"] == other["tested"] == (images, 0.0)


@pytest.mark.parametrize("augmentation", cache_worker.AUGMENTATIONS)
def test_training_ends_with_the_bytes_of_the_live_teacher(two: list[dict[str, Any]], augmentation: str) -> None:
    """Each slice was computed as the process that trains on it has it; mixing stays within a slice."""
    for found in two:
        assert tiny.same_bytes(found[augmentation]["cached"], found[augmentation]["live"])


def test_one_process_takes_it_over_unless_images_are_mixed(two: list[dict[str, Any]], folder: Path) -> None:
    assert two
    made = subject(folder / "standard")
    assert made.cache.card.layout.parts == 2
    assert made.fill() == 0
    with pytest.raises(UserError, match="processes: 2 -> 1"):
        subject(folder / "strong", augmentation="strong")
