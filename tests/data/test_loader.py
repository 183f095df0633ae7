import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.images import folder, picture
from limbeck.data import Batch, Data, DataSpec, dataset, keys, open_data, randaugment
from limbeck.errors import UserError

AUGMENTATIONS = ("none", "standard", "randaugment", "strong")
TINY_IMAGENET = Path.home() / ".cache" / "limbeck" / "tiny-imagenet-100"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    folder(root / "train", {"a": 14, "b": 12}, width=20, height=16)
    folder(root / "val", {"a": 3, "b": 4}, width=16, height=20)
    return root


def opened(source: object, memory: int | None = None, **options: object) -> Data:
    return open_data(DataSpec(source=str(source), **{"workers": 0, **options}), memory=memory)


def epoch(data: Data, number: int = 0, *, seed: int = 0, batch_size: int = 8) -> list[Batch]:
    loader = data.train_loader(batch_size=batch_size, seed=seed)
    loader.set_epoch(number)
    return list(loader)


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.index, b.index) and torch.equal(a.target, b.target)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("size", [16, 72])
@pytest.mark.parametrize("memory", [None, 0])
def test_an_epoch_is_a_function_of_seed_and_epoch(photos: Path, augmentation: str, size: int, memory: int | None):
    data = opened(photos, memory, augmentation=augmentation, size=size)
    assert data.in_memory is (memory is None)
    first = epoch(data, 1)
    assert same(first, epoch(opened(photos, memory, augmentation=augmentation, size=size), 1))
    assert not same(first, epoch(data, 2))
    assert not same(first, epoch(data, 1, seed=1))
    for batch in first:
        assert batch.images.dtype == torch.float32
        assert batch.images.shape == (8, 3, size, size)
        assert 0 <= batch.images.min() <= batch.images.max() <= 1
        if augmentation == "strong":
            assert batch.target.dtype == torch.float32
            torch.testing.assert_close(batch.target.sum(1), torch.ones(8))
        else:
            assert batch.target.dtype == torch.int64


def test_randaugment_lies_between_standard_and_strong(photos: Path):
    """The same crops and flips as standard, then the operations of strong, and no mixing of images or labels."""
    kinds = {kind: epoch(opened(photos, augmentation=kind, size=16)) for kind in ("standard", "randaugment", "strong")}
    assert not same(kinds["standard"], kinds["randaugment"])
    for plain, more in zip(kinds["standard"], kinds["randaugment"], strict=True):
        assert torch.equal(plain.index, more.index)
        assert torch.equal(plain.target, more.target)
        untouched = [torch.equal(a, b) for a, b in zip(plain.images, more.images, strict=True)]
        assert not all(untouched)
    batch, seed = kinds["standard"][0], 0
    numbers = keys.uniforms(seed, 0, keys.Stream.RAND_AUGMENT, batch.index.numpy(), randaugment.NUMBERS)
    bytes_ = (batch.images * 255).round().to(torch.uint8)
    expected = randaugment.rand_augment(bytes_, numbers).float() / 255
    torch.testing.assert_close(kinds["randaugment"][0].images, expected)


def test_counts_order_and_the_last_batch(photos: Path):
    data = opened(photos)
    loader = data.train_loader(batch_size=8, seed=0)
    batches = list(loader)
    assert (len(loader), len(batches), loader.images_per_epoch) == (3, 3, 24)
    index = torch.cat([batch.index for batch in batches]).tolist()
    assert len(set(index)) == 24
    assert index != sorted(index)
    val = data.val_loader(batch_size=4)
    assert (len(val), val.images_per_epoch) == (2, 7)
    assert [batch.index.tolist() for batch in val] == [[0, 1, 2, 3], [4, 5, 6]]
    whole = data.train_loader(batch_size=26, seed=0)
    assert (len(whole), whole.images_per_epoch) == (1, 26)


@pytest.mark.parametrize("memory", [None, 0])
def test_an_epoch_continues_in_the_middle(photos: Path, memory: int | None):
    data = opened(photos, memory, augmentation="strong", size=72)
    assert same(list(data.train_loader(batch_size=8, seed=3).iterate(2)), epoch(data, seed=3)[2:])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("size", [16, 72])
def test_shards_are_slices_of_the_global_batch(photos: Path, world: int, size: int):
    data = opened(photos, size=size)
    loader = data.train_loader(batch_size=8, seed=0)
    loader.set_epoch(5)
    shards = [list(loader.shard(rank, world)) for rank in range(world)]
    for step, batch in enumerate(loader):
        assert torch.equal(batch.images, torch.cat([shard[step].images for shard in shards]))
        assert torch.equal(batch.target, torch.cat([shard[step].target for shard in shards]))
    val = data.val_loader(batch_size=4)
    indices = sorted(int(i) for rank in range(world) for batch in val.shard(rank, world) for i in batch.index)
    assert indices == list(range(7))


def test_one_ratio_for_all_shards_under_mixing(photos: Path):
    loader = opened(photos, augmentation="strong").train_loader(batch_size=8, seed=0)
    shards = [list(loader.shard(rank, 2)) for rank in range(2)]
    for left, right in zip(*shards, strict=True):
        ratios = {round(float(v), 4) for target in (left.target, right.target) for v in target.max(1).values} - {1.0}
        assert len(ratios) <= 1


@pytest.mark.parametrize(("size", "batch_size"), [(16, 4), (16, 13)])
def test_pixels_do_not_depend_on_the_batch_size(photos: Path, size: int, batch_size: int):
    data = opened(photos, size=size)
    by_index = {
        int(i): x for b in epoch(data, 1, batch_size=batch_size) for i, x in zip(b.index, b.images, strict=True)
    }
    for batch in epoch(data, 1, batch_size=8):
        for i, image in zip(batch.index, batch.images, strict=True):
            assert int(i) not in by_index or torch.equal(image, by_index[int(i)])


@pytest.mark.parametrize("size", [16, 72])
def test_memory_and_disk_give_the_same_pixels(photos: Path, size: int):
    near, far = (opened(photos, memory, augmentation="none", size=size) for memory in (None, 0))
    assert same(epoch(near), epoch(far))
    assert same(list(near.val_loader(batch_size=4)), list(far.val_loader(batch_size=4)))
    if size <= 64:
        near, far = (opened(photos, memory, augmentation="strong", size=size) for memory in (None, 0))
        assert same(epoch(near, 3), epoch(far, 3))


@pytest.mark.processes
def test_worker_processes_give_the_same_pixels(photos: Path):
    alone, workers = (opened(photos, 0, size=72, workers=n) for n in (0, 1))
    loader = workers.train_loader(batch_size=8, seed=0)
    assert same(list(loader), epoch(alone, 0))
    loader.set_epoch(1)  # the kept processes
    assert same(list(loader), epoch(alone, 1))


@pytest.mark.parametrize("augmentation", ["none", "standard", "strong"])
def test_the_free_memory_does_not_decide_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmentation: str):
    folder(tmp_path / "train", {"a": 9, "b": 9}, width=240, height=120, kind="jpg")
    folder(tmp_path / "val", {"a": 3, "b": 4}, width=120, height=240)
    kept, read = (opened(tmp_path, memory, size=72, augmentation=augmentation) for memory in (None, 0))
    assert (kept.in_memory, read.in_memory) == (True, False)
    assert same(epoch(kept, 1), epoch(read, 1))
    assert same(list(kept.val_loader(batch_size=4)), list(read.val_loader(batch_size=4)))
    monkeypatch.setattr(dataset, "LARGEST_IN_MEMORY", 0)  # what a large set does, whatever the memory
    large = opened(tmp_path, 0, size=72, augmentation=augmentation)
    assert large.cropped == (None if augmentation == "none" else "whole images")
    assert same(epoch(kept, 1), epoch(large, 1)) is (augmentation == "none")


GENERATORS = """
import random, sys
import numpy as np, torch
from limbeck.data import DataSpec, open_data

def states():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()

def epoch(memory):
    spec = DataSpec(source=sys.argv[1], augmentation="strong", size=72, workers=0)
    return [b.images for b in open_data(spec, memory=memory).train_loader(batch_size=8, seed=0)]

for memory in (None, 0):
    before = states()
    first = epoch(memory)
    assert states() == before
    random.random(), np.random.rand(), torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(memory), strict=True))
"""


def test_global_generators_are_left_alone(photos: Path):
    # In a process of its own: beartype, which checks shapes in the tests, itself draws from Python's generator.
    subprocess.run([sys.executable, "-c", GENERATORS, str(photos)], check=True, env={**os.environ, "PYTHONPATH": "src"})


def test_none_is_the_center_and_standard_moves_and_mirrors(tmp_path: Path):
    folder(tmp_path / "train", {"a": 64, "b": 64}, width=16, height=16)
    folder(tmp_path / "val", {"a": 1, "b": 1})
    plain = {
        int(i): x
        for b in epoch(opened(tmp_path, augmentation="none", size=16))
        for i, x in zip(b.index, b.images, strict=False)
    }
    want = np.asarray(picture(0, 16, 16)).transpose(2, 0, 1)
    np.testing.assert_array_equal((plain[0] * 255).round().numpy(), want)
    mirrored = moved = 0
    for batch in epoch(opened(tmp_path, size=16)):
        for i, image in zip(batch.index, batch.images, strict=True):
            padded = torch.nn.functional.pad(plain[int(i)], (2, 2, 2, 2))
            flips = [f for f in (False, True) if fits(padded, image.flip(-1) if f else image)]
            assert flips
            mirrored += flips == [True]
            moved += not torch.equal(image, plain[int(i)])
    assert 40 < mirrored < 90
    assert moved > 100
    assert not any(
        fits(torch.nn.functional.pad(plain[int(i)], (2, 2, 2, 2)), x.flip(-1))
        for b in epoch(opened(tmp_path, size=16, flip=False))
        for i, x in zip(b.index, b.images, strict=True)
    )


def fits(padded: torch.Tensor, image: torch.Tensor) -> bool:
    side = image.shape[-1]
    shifts = range(padded.shape[-1] - side + 1)
    return any(torch.equal(padded[:, y : y + side, x : x + side], image) for y in shifts for x in shifts)


def test_unlabelled_batches_mix_images_only(photos: Path):
    for augmentation in AUGMENTATIONS:
        assert all(batch.target is None for batch in epoch(opened(photos, labels=False, augmentation=augmentation)))
    strong = epoch(opened(photos, labels=False, augmentation="strong"))
    labelled = epoch(opened(photos, augmentation="strong"))
    assert all(torch.equal(a.images, b.images) for a, b in zip(strong, labelled, strict=True))


def spoil(root: Path, *names: str) -> None:
    for name in names:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("memory", [None, 0])
def test_bad_images(tmp_path: Path, memory: int | None):
    folder(tmp_path / "train", {"a": 5, "b": 5}, kind="jpg")
    folder(tmp_path / "val", {"a": 2, "b": 2}, kind="jpg")
    spoil(tmp_path / "train", "a/001.jpg", "b/003.jpg")
    with pytest.raises(UserError, match=r'cannot read image "./00..jpg": .*[Tt]runcated.*--skip-bad-images') as caught:
        epoch(opened(tmp_path, memory, augmentation="none"), batch_size=10)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="more than the 1 unreadable"):
        epoch(opened(tmp_path, memory, augmentation="none", skip_bad_images=1), batch_size=10)
    data = opened(tmp_path, memory, augmentation="strong", skip_bad_images=2)
    assert data.train_count == (8 if memory is None else 10)
    (batch,) = epoch(data, batch_size=data.train_count)
    assert len(batch.images) == len(batch.target) == 8
    assert sorted(line.split(":")[0] for line in data.skipped) == ["a/001.jpg", "b/003.jpg"]
    epoch(data, 1, batch_size=data.train_count)
    assert len(data.skipped) == 2


def test_a_process_whose_share_cannot_be_read_stops_rather_than_skip_a_step(tmp_path: Path):
    folder(tmp_path / "train", {"a": 2, "b": 2}, kind="jpg")
    folder(tmp_path / "val", {"a": 1, "b": 1}, kind="jpg")
    spoil(tmp_path / "train", "a/000.jpg", "a/001.jpg", "b/000.jpg")
    data = opened(tmp_path, 0, augmentation="none", skip_bad_images=9)
    shares = [data.train_loader(batch_size=4, seed=0).shard(rank, 4) for rank in range(4)]
    outcomes: list[int | str] = []
    for share in shares:
        try:
            outcomes.append(sum(len(batch.images) for batch in share))
        except UserError as error:
            outcomes.append(str(error))
    assert outcomes.count(1) == 1
    for rank, outcome in enumerate(outcomes):
        assert outcome == 1 or f"of those that process {rank} has of batch 1" in str(outcome)
    assert sum(len(batch.images) for batch in data.train_loader(batch_size=2, seed=0)) == 1  # alone it goes on


def test_nothing_readable(tmp_path: Path):
    folder(tmp_path / "train", {"a": 1, "b": 1}, kind="jpg")
    folder(tmp_path / "val", {"a": 1, "b": 1})
    spoil(tmp_path / "train", "a/000.jpg", "b/000.jpg")
    with pytest.raises(UserError, match="no image of the train part"):
        epoch(opened(tmp_path, skip_bad_images=9))


def test_batch_size_errors(photos: Path):
    data = opened(photos)
    with pytest.raises(UserError, match="batch size 27 is larger than the training set of 26 images"):
        data.train_loader(batch_size=27, seed=0)
    with pytest.raises(UserError, match="batch size 0"):
        data.val_loader(batch_size=0)
    with pytest.raises(UserError, match="batch size 8 cannot be split evenly over 3 processes"):
        data.train_loader(batch_size=8, seed=0).shard(0, 3)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        data.train_loader(batch_size=8, seed=0).shard(2, 2)
    assert len(data.val_loader(batch_size=100)) == 1


def test_pixels_are_decoded_once_for_all_loaders(photos: Path):
    data = opened(photos)
    first, second = (data.train_loader(batch_size=8, seed=seed) for seed in (0, 1))
    assert first._source is second._source


@pytest.mark.skipif(not TINY_IMAGENET.is_dir(), reason="Tiny ImageNet-100 is not at ~/.cache/limbeck/tiny-imagenet-100")
def test_real_images():
    data = open_data(DataSpec(source=str(TINY_IMAGENET), train_limit=300))
    assert (len(data.classes), data.size, data.train_count, data.val_count) == (100, 64, 300, 5000)
    batch = next(iter(data.train_loader(batch_size=100, seed=0)))
    assert 0.3 < batch.images.mean() < 0.6


def pixels(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches for i, image in zip(batch.index, batch.images, strict=True)}


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("size", [16, 72])
def test_views_come_again_under_new_orders(photos: Path, memory: int | None, size: int):
    data = opened(photos, memory, size=size)
    loader = data.train_loader(batch_size=8, seed=0, views=2)
    passes: list[list[Batch]] = []
    for number in range(4):
        loader.set_epoch(number)
        assert loader.view == number % 2
        passes.append(list(loader))
    assert same(passes[0], epoch(data, 0))
    assert same(passes[1], epoch(data, 1))
    for number in (2, 3):
        assert [b.index.tolist() for b in passes[number]] == [b.index.tolist() for b in epoch(data, number)]
        first, again = pixels(passes[number - 2]), pixels(passes[number])
        assert all(torch.equal(first[i], again[i]) for i in first.keys() & again.keys())


def test_where_images_are_mixed_the_order_comes_again_too(photos: Path):
    loader = opened(photos, augmentation="strong").train_loader(batch_size=8, seed=0, views=2)
    first = list(loader)
    loader.set_epoch(2)
    assert same(first, list(loader))
    loader.set_epoch(3)
    assert not same(first, list(loader))


def test_views_have_a_seed_of_their_own(photos: Path):
    data = opened(photos)
    one, two = (list(data.train_loader(batch_size=8, seed=seed, views=1, view_seed=7)) for seed in (0, 1))
    assert [b.index.tolist() for b in one] != [b.index.tolist() for b in two]
    left, right = pixels(one), pixels(two)
    assert all(torch.equal(left[i], right[i]) for i in left.keys() & right.keys())
    other = pixels(list(data.train_loader(batch_size=8, seed=0, views=1, view_seed=8)))
    assert any(not torch.equal(left[i], other[i]) for i in left.keys() & other.keys())
    mixed = opened(photos, augmentation="strong")
    assert same(*(list(mixed.train_loader(batch_size=8, seed=seed, views=1, view_seed=7)) for seed in (0, 1)))


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_stretch_has_the_batches_of_its_epoch_and_the_short_one(photos: Path, augmentation: str, memory: int | None):
    loader = opened(photos, memory, augmentation=augmentation).train_loader(batch_size=8, seed=0)
    assert loader.steps_of_view == (3 if augmentation == "strong" else 4)
    loader.set_epoch(5)
    whole = list(loader.stretch(5, range(loader.steps_of_view)))
    assert same(whole[:3], list(loader))
    assert [len(batch.index) for batch in whole] == [8, 8, 8, 2][: loader.steps_of_view]
    assert sorted(i for batch in whole for i in batch.index.tolist()) == sorted(pixels(whole))
    assert same(list(loader.stretch(5, range(1, 3))), whole[1:3])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_parts_of_a_stretch_are_the_slices_of_the_processes(photos: Path, augmentation: str):
    loader = opened(photos, augmentation=augmentation).train_loader(batch_size=8, seed=0)
    slices = list(loader.stretch(0, range(3), parts=2))
    shards = [list(loader.shard(rank, 2)) for rank in range(2)]
    assert same(slices, [batch for pair in zip(*shards, strict=True) for batch in pair])


def test_a_changed_loader_keeps_the_pixels(photos: Path):
    loader = opened(photos).train_loader(batch_size=8, seed=3)
    changed = loader.changed(batch_size=13, seed=4)
    left, right = pixels(list(loader)), pixels(list(changed))
    assert len(next(iter(changed)).index) == 13
    assert list(left) != list(right)
    assert all(torch.equal(left[i], right[i]) for i in left.keys() & right.keys())
