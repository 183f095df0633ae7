"""Batches of boxes: boxes follow their pixels through every transform, and an epoch can be gone through again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detection.data import planted
from limbeck.detection import DetectionBatch, truth_of
from limbeck.detection.data import DetectionData, DetectionSpec, open_detection
from limbeck.detection.data.transforms import FILL, Frame, lay, place
from limbeck.errors import UserError

MIDDLE = (planted.DARK + planted.BRIGHT) / 2 / 255


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"coco:{planted.write_coco(tmp_path, 12)}"


def opened(source: str, **fields: Any) -> DetectionData:
    return open_detection(DetectionSpec(source=source, **{"val": source, "workers": 2, **fields}))


def passed(data: DetectionData, epoch: int = 0, *, batch_size: int = 4, seed: int = 0) -> list[DetectionBatch]:
    loader = data.train_loader(batch_size=batch_size, seed=seed)
    loader.set_epoch(epoch)
    return list(loader)


def seen_box(image: Tensor) -> tuple[int, int, int, int]:
    """Where the bright rectangle lies, found in the pixels alone; brighter than what is around the image, too."""
    rows, columns = (image.mean(0) > 0.7).nonzero(as_tuple=True)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize("longest", [None, 96], ids=["square", "shorter side"])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_boxes_follow_their_pixels(source: str, longest: int | None, epoch: int):
    data = opened(source, size=64, longest=longest, scales=(0.7, 1.4))
    checked = 0
    for batch in passed(data, epoch):
        for image, boxes, labels, size in zip(batch.images, batch.boxes, batch.labels, batch.sizes, strict=True):
            assert (labels != -1).sum() <= 1
            if labels[0] == -1:
                continue
            box = boxes[0].tolist()
            inside = torch.tensor(box)[[0, 1]].min() > 0 and box[2] < size[1] and box[3] < size[0]
            if inside:
                np.testing.assert_allclose(seen_box(image), box, atol=1.6)
                checked += 1
    assert checked >= 6


def test_validation_keeps_whole_images_and_maps_back_to_the_file(source: str):
    data = opened(source, size=64)
    for batch in data.val_loader(batch_size=5):
        assert batch.images.shape[2:] == (64, 64)
        truth = truth_of(batch)
        for row, image in enumerate(batch.index.tolist()):
            np.testing.assert_allclose(seen_box(batch.images[row]), batch.boxes[row, 0].numpy(), atol=1.1)
            np.testing.assert_allclose(truth.boxes[row].numpy(), planted.corners(image), atol=1e-4)
            assert batch.sizes[row].tolist() == [43, 64]


def test_the_frame_is_filled_with_the_mean_color(source: str):
    batch = next(iter(opened(source, size=64).val_loader(batch_size=2)))
    below = batch.images[0, :, 50, 10] * 255
    assert below.round().tolist() == list(FILL)


def test_an_image_of_the_frame_is_not_touched(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "im00.png")
    content = planted.coco_content(1)
    content["images"][0].update(height=64, width=64)
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    batch = next(iter(opened(f"coco:{file}", size=64).val_loader(batch_size=1)))
    assert torch.equal((batch.images[0] * 255).round().to(torch.uint8).permute(1, 2, 0), torch.from_numpy(pixels))


def assert_same(a: list[DetectionBatch], b: list[DetectionBatch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        for left, right in zip(one, other, strict=True):
            assert torch.equal(left, right)


def test_an_epoch_is_a_function_of_seed_and_number(source: str):
    data = opened(source, size=64)
    assert_same(passed(data, 3), passed(data, 3))
    assert_same(passed(data, 3), passed(opened(source, size=64, workers=0), 3))
    orders = {
        tuple(torch.cat([batch.index for batch in passed(data, epoch, seed=seed)]).tolist())
        for epoch in (0, 1)
        for seed in (0, 1)
    }
    assert len(orders) == 4


def by_image(batches: list[DetectionBatch]) -> dict[int, tuple[Tensor, Tensor]]:
    rows = [row for batch in batches for row in zip(batch.index, batch.images, batch.boxes, strict=True)]
    return {int(index): (image, boxes) for index, image, boxes in rows}


def test_an_image_looks_the_same_in_batches_of_any_size(source: str):
    data = opened(source, size=64)
    small, large = (by_image(passed(data, 1, batch_size=size)) for size in (2, 12))
    assert small.keys() == large.keys() == set(range(12))
    assert all(torch.equal(small[i][0], large[i][0]) and torch.equal(small[i][1], large[i][1]) for i in small)


def test_a_pass_can_begin_in_its_middle(source: str):
    loader = opened(source, size=64).train_loader(batch_size=4, seed=0)
    loader.set_epoch(1)
    assert_same(list(loader.iterate(1)), list(loader)[1:])
    assert len(loader) == 3


@pytest.mark.parametrize("world", [2, 4])
def test_processes_divide_each_batch(source: str, world: int):
    whole = opened(source, size=64).train_loader(batch_size=4, seed=0)
    whole.set_epoch(2)
    shares = [list(whole.shard(rank, world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        joined = [torch.cat(columns) for columns in zip(*(share[step] for share in shares), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(batch, joined, strict=True))


def test_a_batch_that_processes_cannot_share_is_refused(source: str):
    with pytest.raises(UserError, match="batch size 4 cannot be split evenly over 3 processes"):
        opened(source).train_loader(batch_size=4, seed=0).shard(0, 3)
    with pytest.raises(UserError, match="batch size 13 is larger than the training set of 12 images"):
        opened(source).train_loader(batch_size=13, seed=0)


def test_frames_that_are_not_square_are_multiples_of_the_divisor(source: str):
    data = opened(source, size=50, longest=90)
    for batch in data.train_loader(batch_size=4, seed=0, divisor=16):
        assert batch.images.shape[2] % 16 == batch.images.shape[3] % 16 == 0
        assert int(batch.sizes[:, 0].max()) <= 50
        assert int(batch.sizes[:, 1].max()) <= 90


def test_all_batches_have_room_for_the_image_with_most_boxes(tmp_path: Path):
    content = planted.coco_content(8)
    for number in range(4):
        content["annotations"].append({"id": 500 + number, "image_id": 10, "category_id": 5, "bbox": [number, 1, 9, 9]})
    source = f"coco:{planted.write_coco(tmp_path, 8, content=content)}"
    assert {batch.boxes.shape[1] for batch in passed(opened(source, size=64))} == {5}


def test_crowds_are_not_learned_but_count_in_validation(tmp_path: Path):
    content = planted.coco_content(4)
    content["annotations"][1]["iscrowd"] = 1
    data = opened(f"coco:{planted.write_coco(tmp_path, 4, content=content)}", size=64)
    train = passed(data)[0]
    assert train.labels[train.index == 1].tolist() == [[-1]]
    assert not train.crowd.any()
    val = next(iter(data.val_loader(batch_size=4)))
    assert val.crowd.flatten().tolist() == [False, True, False, False]


def test_a_box_that_is_nearly_cut_off_is_not_learned():
    pixels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 12.0, 12.0], [0.0, 0.0, 30.0, 30.0], [20.0, 20.0, 30.0, 30.0]])
    placed = lay(pixels, boxes, place(40, 40, Frame(20), factor=2.0, corner=(0.5, 0.5)))  # the middle 20 x 20
    assert placed.kept.tolist() == [False, True, True]
    assert placed.boxes[1].tolist() == [0.0, 0.0, 20.0, 20.0]


def test_images_that_became_another_size_are_refused_or_skipped(tmp_path: Path):
    source = f"coco:{planted.write_coco(tmp_path, 4)}"
    strict, lenient = opened(source, size=64), opened(source, size=64, skip_bad_images=1)
    Image.new("RGB", (planted.HEIGHT, planted.WIDTH)).save(tmp_path / "im02.png")
    with pytest.raises(
        UserError, match=r'cannot read image "im02.png": it has 40 x 60 pixels, its annotations say 60 x 40'
    ):
        passed(strict)
    assert passed(lenient)[0].index.sort().values.tolist() == [0, 1, 3]
    assert lenient.skipped == ("im02.png: it has 40 x 60 pixels, its annotations say 60 x 40",)


def test_without_augmentation_training_has_the_images_as_they_are(source: str):
    data = opened(source, size=64, augmentation="none")
    val = {
        int(i): image
        for batch in data.val_loader(batch_size=4)
        for image, i in zip(batch.images, batch.index, strict=True)
    }
    for batch in passed(data):
        assert all(torch.equal(image, val[int(i)]) for image, i in zip(batch.images, batch.index, strict=True))


def test_a_sample_is_the_same_in_every_run(source: str):
    first, again = (opened(source, size=64).sample("val", 5) for _ in range(2))
    assert_same([first], [again])
    assert len(first.index) == 5


def test_scales_spread_over_their_range(source: str):
    data = opened(source, size=64, scales=(0.5, 1.0))
    widths = torch.cat([batch.scales[:, 0] for epoch in range(8) for batch in passed(data, epoch)]) * planted.WIDTH / 64
    assert 0.5 <= float(widths.min()) < 0.56
    assert 0.94 < float(widths.max()) <= 1.0


def test_twelve_bits_in_sixteen_bit_files_are_spread_over_all_of_the_range(tmp_path: Path):
    source = f"coco:{planted.write_coco(tmp_path, 6)}"
    for path in tmp_path.glob("*.png"):
        Image.fromarray(np.array(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path)  # 220 * 16 < 4096
    data = opened(source, size=64, augmentation="none")
    assert data.bits == 12
    assert any("16-bit images are read as 12-bit ones" in note for note in data.notes)
    assert float(data.sample("val", 6).images[0].max()) == pytest.approx(planted.BRIGHT / 255)
