"""Batches of bright rectangles on dark images, which a small detector learns in a few steps; for tests of detection."""

import torch
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
