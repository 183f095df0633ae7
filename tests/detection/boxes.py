"""Batches of bright rectangles on dark images, which a small detector learns in a few steps; for tests of detection."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.detection import DetectionBatch

SIDE = 64


def batch(count: int, *, seed: int = 0, first: int = 0, classes: int = 2, boxes: int = 2) -> DetectionBatch:
    """Rectangles of a color by their class, at most ``boxes`` an image; every third image has one less."""
    random = torch.Generator().manual_seed(seed)
    images = torch.full((count, 3, SIDE, SIDE), 0.2) + 0.05 * torch.rand(count, 3, SIDE, SIDE, generator=random)
    found = torch.zeros(count, boxes, 4)
    labels = torch.full((count, boxes), -1)
    for image in range(count):
        for row in range(boxes - (image % 3 == 2)):
            label = int(torch.randint(classes, (1,), generator=random))
            width, height = (int(side) for side in torch.randint(14, 28, (2,), generator=random))
            left = row * 32 + int(torch.randint(0, 33 - width, (1,), generator=random))
            top = int(torch.randint(0, SIDE - height, (1,), generator=random))
            images[image, label, top : top + height, left : left + width] = 0.9
            found[image, row] = torch.tensor([left, top, left + width, top + height])
            labels[image, row] = label
    return from_parts(images, found, labels, first=first)


def from_parts(images: Tensor, boxes: Tensor, labels: Tensor, *, first: int = 0) -> DetectionBatch:
    count = len(images)
    sides = boxes[:, :, 2:] - boxes[:, :, :2]
    return DetectionBatch(
        images=images,
        boxes=boxes,
        labels=labels,
        crowd=torch.zeros_like(labels, dtype=torch.bool),
        areas=sides.prod(-1),
        sizes=torch.tensor([images.shape[2:]] * count),
        scales=torch.ones(count, 2),
        index=torch.arange(first, first + count),
    )


def write_coco(folder: Path, *, train: int, val: int) -> None:
    """A COCO data set of such images, ``boxes-train.json`` and ``boxes-val.json``."""
    for name, count, seed in (("train", train, 0), ("val", val, 9)):
        made = batch(count, seed=seed)
        images, annotations = [], []
        for i, (pixels, found, labels) in enumerate(zip(made.images, made.boxes, made.labels, strict=True)):
            file = f"{name}{i:02}.png"
            Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy().astype(np.uint8)).save(folder / file)
            images.append({"id": i, "file_name": file, "height": SIDE, "width": SIDE})
            for (left, top, right, bottom), label in zip(found.tolist(), labels.tolist(), strict=True):
                if label >= 0:
                    box = [left, top, right - left, bottom - top]
                    entry = {"id": len(annotations), "image_id": i, "category_id": label, "bbox": box, "iscrowd": 0}
                    annotations.append(entry)
        categories = [{"id": 0, "name": "red"}, {"id": 1, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"boxes-{name}.json").write_text(json.dumps(content), encoding="utf-8")
