"""Small data sets with boxes, in every format; each image has a bright rectangle where its box is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "emu")
HEIGHT, WIDTH = 40, 60
DARK, BRIGHT = 30, 220


def corners(image: int) -> tuple[int, int, int, int]:
    """The box of an image, in whole pixels."""
    left, top = 4 + 3 * (image % 7), 5 + 2 * (image % 5)
    return left, top, left + 20, top + 16


def write_image(path: Path, image: int) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), DARK, np.uint8)
    left, top, right, bottom = corners(image)
    pixels[top:bottom, left:right] = BRIGHT
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_turned(path: Path, image: int, orientation: int) -> tuple[int, int, int, int]:
    """An image whose pixels are stored in another way than it is shown; where its box is in the stored pixels."""
    pixels = np.full((HEIGHT, WIDTH), DARK, np.uint8)
    left, top, right, bottom = corners(image)
    pixels[top:bottom, left:right] = BRIGHT
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation >= 5:
        pixels = pixels.T
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").save(path, exif=exif, quality=95)
    rows, columns = np.nonzero(pixels > 128)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def coco_content(count: int) -> dict[str, Any]:
    """A COCO file with one box an image and category numbers with gaps."""
    images = [{"id": 10 + i, "file_name": f"im{i:02}.png", "height": HEIGHT, "width": WIDTH} for i in range(count)]
    boxes = []
    for i in range(count):
        left, top, right, bottom = corners(i)
        box = [left, top, right - left, bottom - top]
        boxes.append({"id": 100 + i, "image_id": 10 + i, "category_id": 5 * (1 + i % 3), "bbox": box, "iscrowd": 0})
    categories = [{"id": 5 * (1 + number), "name": name} for number, name in enumerate(CLASSES)]
    return {"images": images, "annotations": boxes, "categories": categories}


def write_coco(
    folder: Path, count: int = 6, *, content: dict[str, Any] | None = None, name: str = "boxes.json"
) -> Path:
    """The file, beside its images."""
    for i in range(count):
        write_image(folder / f"im{i:02}.png", i)
    file = folder / name
    file.write_text(json.dumps(content if content is not None else coco_content(count)), encoding="utf-8")
    return file


def write_yolo(folder: Path, count: int = 6) -> Path:
    for part in ("train", "val"):
        for i in range(count):
            write_image(folder / "images" / part / f"im{i:02}.png", i)
            left, top, right, bottom = corners(i)
            numbers = (
                (left + right) / 2 / WIDTH,
                (top + bottom) / 2 / HEIGHT,
                (right - left) / WIDTH,
                (bottom - top) / HEIGHT,
            )
            label = folder / "labels" / part / f"im{i:02}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{i % 3} " + " ".join(f"{number:.8f}" for number in numbers) + "\n", encoding="utf-8")
    (folder / "data.yaml").write_text("names:\n  0: cat\n  1: dog\n  2: emu\n", encoding="utf-8")
    return folder


def write_voc(folder: Path, count: int = 6) -> Path:
    for place in ("Annotations", "ImageSets/Main"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write_image(folder / "JPEGImages" / f"im{i:02}.png", i)
        (folder / "Annotations" / f"im{i:02}.xml").write_text(voc_xml(i), encoding="utf-8")
    for name, own in (("train", range(count - 2)), ("val", range(count - 2, count))):
        lines = "".join(f"im{i:02}\n" for i in own)
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(lines, encoding="utf-8")
    return folder


def voc_xml(image: int, *, name: str | None = None, box: str | None = None, difficult: int = 0) -> str:
    left, top, right, bottom = corners(image)
    if box is None:
        box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return (
        f"<annotation><filename>im{image:02}.png</filename><object><name>{name or CLASSES[image % 3]}</name>"
        f"<difficult>{difficult}</difficult><bndbox>{box}</bndbox></object></annotation>"
    )
