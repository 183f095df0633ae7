"""Folders of images and masks: the layouts that are read, the faults that are reported, and augmentation of both."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.errors import UserError
from limbeck.segmentation.batch import VOID
from limbeck.segmentation.data import SegmentationSpec, open_for_scoring, open_segmentation
from limbeck.segmentation.data.faults import Fault
from limbeck.segmentation.data.transforms import Drawn, crop
from segmentation import masks


def save(path: Path, pixels: np.ndarray, **how: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)  # pyright: ignore[reportArgumentType]


LAYOUTS = {
    "inside": ("train/images/{}.png", "train/masks/{}.png", "val/images/{}.png", "val/masks/{}.png"),
    "outside": ("images/train/{}.jpg", "labels/train/{}_mask.png", "images/val/{}.jpg", "labels/val/{}_mask.png"),
    "beside": ("train/{}.png", "trainannot/{}.png", "val/{}.png", "valannot/{}.png"),
    "flat": ("Images/a/{}.jpg", "Masks/a/{}_L.png", "Images/b/{}.jpg", "Masks/b/{}_L.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path):
    """The same six pairs in every layout; a flat one holds some back."""
    for number in range(6):
        image, mask = masks.picture(number)
        where = LAYOUTS[layout][:2] if number < 4 else LAYOUTS[layout][2:]
        for place, pixels in zip(where, (image, mask), strict=True):
            save(tmp_path / place.format(number), pixels)
    data = open_segmentation(SegmentationSpec(str(tmp_path), val_share=0.3))
    assert (data.train_count, data.val_count) == (4, 2)
    assert data.classes == ("class 0", "class 1", "class 2")
    pairs = data.part("train").pairs + data.part("val").pairs
    assert all(Path(image).stem == Path(mask).stem.removesuffix("_mask").removesuffix("_L") for image, mask in pairs)
    (batch,) = data.val_loader(batch_size=2)
    expected = [masks.picture(int(Path(data.part("val").pairs[i].image).stem))[1] for i in batch.index.tolist()]
    assert np.array_equal(batch.masks.numpy(), np.stack(expected))
    assert (batch.images.shape[2:], batch.size) == ((64, 64), (40, 48))


def test_a_list_of_classes_says_what_is_void_and_what_is_used(tmp_path: Path):
    for number in range(4):
        image, mask = masks.picture(number)
        save(tmp_path / f"images/{number}.png", image)
        palette = Image.fromarray(np.where(mask == VOID, 3, mask)).convert("P")
        palette.putpalette([7, 7, 7] * 256)
        (tmp_path / "masks").mkdir(exist_ok=True)
        palette.save(tmp_path / f"masks/{number}.png")
    (tmp_path / "classes.txt").write_text("ground\nred\ngreen\nVoid\n")
    spec = SegmentationSpec(str(tmp_path), val_share=0.25)
    data = open_segmentation(spec)
    assert data.classes == ("ground", "red", "green")
    assert data.part("train").counts[:, 3].tolist() == [2 * masks.HEIGHT] * 3
    some = open_segmentation(replace(spec, classes=("green", "red")))
    found, whole = some.part("train").mask(0), data.part("train").mask(0)
    assert (found[whole == 2] == 0).all()
    assert (found[whole == 1] == 1).all()
    assert (found[(whole == 0) | (whole == VOID)] == VOID).all()
    scored = open_for_scoring(spec, ("green", "red", "ground"))
    assert (scored.val_count, scored.classes) == (4, ("green", "red", "ground"))
    with pytest.raises(UserError, match=r'^no class "blue" in '):
        open_for_scoring(spec, ("green", "blue"))
    assert len({data.fingerprint, some.fingerprint, open_segmentation(replace(spec, void=(1,))).fingerprint}) == 3


def test_the_folders_of_pascal_voc_and_cityscapes(tmp_path: Path):
    """Their lists and names, their numbers, and their void."""
    voc, city = tmp_path / "VOC2012", tmp_path / "city"
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for number, part in enumerate(("train", "train", "val")):
        image, mask = masks.picture(number)
        save(voc / f"JPEGImages/{number}.jpg", image)
        save(voc / f"SegmentationClass/{number}.png", np.where(mask == 2, np.uint8(20), mask))
        with (voc / "ImageSets" / "Segmentation" / f"{part}.txt").open("a") as file:
            file.write(f"{number}\n")
        stem = f"{part}/bonn/bonn_00000{number}_000019"
        save(city / f"leftImg8bit/{stem}_leftImg8bit.png", image)
        save(
            city / f"gtFine/{stem}_gtFine_labelIds.png", np.array([7, 26, 4], np.uint8)[np.where(mask == VOID, 2, mask)]
        )
        save(city / f"gtFine/{stem}_gtFine_color.png", image)
    data = open_segmentation(SegmentationSpec(str(voc)))
    assert (data.train_count, data.val_count, len(data.classes)) == (2, 1, 21)
    assert data.part("train").counts[:, [0, 1, 20, 21]].all()
    assert data.part("train").counts.sum() == data.part("train").counts[:, [0, 1, 20, 21]].sum()
    data = open_segmentation(SegmentationSpec(str(city)))
    assert (data.train_count, data.val_count, len(data.classes)) == (2, 1, 19)
    found, drawn = data.part("val").mask(0), masks.picture(2)[1]
    assert data.classes[found[drawn == 1][0]] == "car"
    assert (found[drawn == 2] == VOID).all()  # 4 is "static"
    (voc / "SegmentationClass/0.png").unlink()
    with pytest.raises(UserError, match=r"mask that cannot be read: 1 \(SegmentationClass/0.png: "):
        open_segmentation(SegmentationSpec(str(voc)))


def test_colors_become_classes_by_a_table(tmp_path: Path):
    colors = np.array([[128, 64, 0], [0, 0, 192], [64, 0, 128], [0, 0, 0]], np.uint8)
    for number in range(3):
        image, mask = masks.picture(number)
        save(tmp_path / f"images/{number}.png", image)
        save(tmp_path / f"masks/{number}.png", colors[np.where(mask == VOID, 3, mask)])
    lines = [
        f"{name},{','.join(map(str, color))}" for name, color in zip((*masks.CLASSES, "Void"), colors, strict=True)
    ]
    (tmp_path / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]))
    data = open_segmentation(SegmentationSpec(str(tmp_path), val_share=0.3))
    part = data.part("train")
    assert data.classes == masks.CLASSES
    assert np.array_equal(part.mask(0), masks.picture(int(Path(part.pairs[0].image).stem))[1])


def mask_of(number: int = 0) -> np.ndarray:
    return masks.picture(number)[1]


def file_of(image: Image.Image, form: str, **how: object) -> bytes:
    held = io.BytesIO()
    image.save(held, form, **how)  # pyright: ignore[reportArgumentType]
    return held.getvalue()


def transparent() -> bytes:
    image = Image.fromarray(mask_of()).convert("RGBA")
    image.putalpha(128)
    return file_of(image, "PNG")


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return file_of(Image.fromarray(masks.picture(0)[0]), "JPEG", exif=exif)


def pages() -> bytes:
    page = Image.fromarray(mask_of())
    return file_of(page, "TIFF", save_all=True, append_images=[page])


FAULTS: dict[Fault, tuple[str, bytes | Callable[[], bytes] | None]] = {
    Fault.MISSING: ("masks/00.png", None),
    Fault.NO_IMAGE: ("images/00.png", None),
    Fault.TWICE: ("masks/00_mask.png", lambda: file_of(Image.fromarray(mask_of()), "PNG")),
    Fault.IMAGE_TWICE: ("images/00.bmp", lambda: file_of(Image.fromarray(mask_of()), "BMP")),
    Fault.SIZE: ("masks/00.png", lambda: file_of(Image.fromarray(mask_of()[1:]), "PNG")),
    Fault.UNKNOWN: ("masks/00.png", lambda: file_of(Image.fromarray(np.where(mask_of() == 1, np.uint8(8), 0)), "PNG")),
    Fault.ALL_VOID: ("masks/00.png", lambda: file_of(Image.fromarray(np.full_like(mask_of(), VOID)), "PNG")),
    Fault.UNREADABLE: ("masks/00.png", b"no image"),
    Fault.LOSSY: ("masks/00.png", lambda: file_of(Image.fromarray(mask_of()), "JPEG")),
    Fault.COLORED: ("masks/00.png", lambda: file_of(Image.fromarray(masks.picture(0)[0]), "PNG")),
    Fault.DEEP: ("masks/00.png", lambda: file_of(Image.fromarray(mask_of().astype(np.float32)), "TIFF")),
    Fault.TRANSPARENT: ("masks/00.png", transparent),
    Fault.PAGES: ("masks/00.png", pages),
    Fault.TURNED: ("images/00.png", turned),
    Fault.IMAGE_UNREADABLE: ("images/00.png", b""),
}


@pytest.mark.parametrize("fault", Fault)
def test_each_fault_has_its_line(fault: Fault, tmp_path: Path):
    """One planted fault is refused with one line that names the file; skipped, the other images are left."""
    masks.write(tmp_path, train=3, val=1)
    if fault is Fault.COLOR:
        (tmp_path / "classes.txt").unlink()
        lines = [f"{name},{number},{number},{number}" for number, name in enumerate(("ground", "red"))]
        (tmp_path / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]))
        with pytest.raises(UserError, match=r"4 faults[^\n]*\n  mask with a color that is not in the table: 4 \("):
            open_segmentation(SegmentationSpec(str(tmp_path)))
        return
    name, content = FAULTS[fault]
    if content is None:
        (tmp_path / "train" / name).unlink()
    else:
        (tmp_path / "train" / name).write_bytes(content if isinstance(content, bytes) else content())
    spec = SegmentationSpec(str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_segmentation(spec)
    first, line = str(caught.value).splitlines()
    assert first.endswith(": 1 faults in the annotations (--on-bad-annotations skip leaves them out)")
    assert line.startswith(f"  {fault.value}: 1 (")
    assert "train/" in line
    assert "00" in line
    data = open_segmentation(replace(spec, on_bad="skip"))
    assert data.train_count == 2
    assert any(note.startswith(fault.value) for note in data.notes)


def test_what_is_no_set_of_masks_is_told(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a folder; known layouts: "):
        open_segmentation(SegmentationSpec(str(tmp_path / "nowhere")))
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r'^no images with masks in ".*" \(photos\); known layouts: '):
        open_segmentation(SegmentationSpec(str(tmp_path)))
    folder = masks.write(tmp_path / "set", train=2, val=1)
    with pytest.raises(UserError, match=r"^size: expected a multiple of 32 for segmentation, got 40"):
        open_segmentation(SegmentationSpec(str(folder), size=40))
    (folder / "classes.txt").write_text("red\nred\n")
    with pytest.raises(UserError, match=r'has the class "red" twice'):
        open_segmentation(SegmentationSpec(str(folder)))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mask_follows_its_image(factor: float, mirrored: bool):
    """Whatever is drawn, red stays red: an image that is its own mask, by its color, agrees with the mask after it."""
    mask = np.kron(masks.picture(1)[1], np.ones((4, 4), np.uint8))
    label = torch.from_numpy(np.where(mask == VOID, 0, mask))
    pixels = torch.stack([80 * label, 80 * label, 80 * label]).to(torch.uint8)
    laid = crop(pixels, label, 160, 1.0, Drawn(factor, (0.3, 0.8), mirrored))
    inside = laid.mask != VOID
    assert inside.sum() == min(160, round(160 * factor)) * min(160, round(192 * factor))
    off = (laid.pixels[0][inside].float() / 80 - laid.mask[inside].float()).abs()
    assert (off < 0.5).float().mean() > 0.98  # but for pixels that lie on an edge
    assert laid.mask.shape == (160, 160)


def test_an_epoch_is_a_function_of_seed_and_number(tmp_path: Path):
    """The same pixels again, from a step on, and in two processes; others in the next epoch, whatever the workers."""
    data = open_segmentation(SegmentationSpec(str(masks.write(tmp_path, train=9, val=2)), size=32, workers=3))
    loader = data.train_loader(batch_size=4, seed=5)
    loader.set_epoch(2)
    first = list(loader)
    again = data.train_loader(batch_size=4, seed=5)
    again.set_epoch(2)
    for one, other in zip(first[1:], again.iterate(1), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
    halves = [list(again.shard(rank, 2)) for rank in range(2)]
    for number, one in enumerate(first):
        assert torch.equal(one.images, torch.cat([half[number].images for half in halves]))
    loader.set_epoch(3)
    assert not torch.equal(first[0].images, next(iter(loader)).images)
    plain = open_segmentation(SegmentationSpec(str(tmp_path), size=32, augmentation="none"))
    batch = next(iter(plain.train_loader(batch_size=9, seed=0)))
    expected = [masks.picture(i)[1][4:36, 8:40] for i in batch.index.tolist()]
    assert np.array_equal(batch.masks.numpy(), np.stack(expected))


def test_validation_images_of_one_size_share_a_batch(tmp_path: Path):
    for number, (height, width) in enumerate([(40, 48), (33, 70), (40, 48), (40, 48)]):
        image, mask = masks.picture(number, height, width)
        for part in ("train", "val"):
            save(tmp_path / part / f"images/{number}.png", image)
            save(tmp_path / part / f"masks/{number}.png", mask)
    data = open_segmentation(SegmentationSpec(str(tmp_path), shorter=20, size=32))
    shapes = [(tuple(b.images.shape), b.size, tuple(b.masks.shape)) for b in data.val_loader(batch_size=2)]
    assert shapes == [
        ((2, 3, 32, 32), (20, 24), (2, 40, 48)),
        ((1, 3, 32, 32), (20, 24), (1, 40, 48)),
        ((1, 3, 32, 64), (20, 42), (1, 33, 70)),
    ]
    assert sorted(i for b in data.val_loader(batch_size=2) for i in b.index.tolist()) == [0, 1, 2, 3]
