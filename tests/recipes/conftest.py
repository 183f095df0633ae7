"""A small recipe on real, embedded images, and a finished run of it; a small recipe of detection on rectangles."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.recipes.recipe import Recipe
from limbeck.recipes.run import run
from tasks import boxes

TRAIN, VAL = 32, 8

SMALL = Recipe(
    name="small",
    data="digits",
    teacher="small/cnn-4",
    student="small/cnn-2",
    method="projector+kd",
    train_limit=300,
    epochs=2,
    batch_size=50,
    precision="float32",
    memory_format="contiguous",
    device="cpu",
)


@pytest.fixture(scope="session")
def small() -> Recipe:
    """A recipe that trains in a second or two."""
    return SMALL


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the small recipe."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(SMALL, folder)
    return folder


@pytest.fixture(scope="session")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO data set of rectangles whose color is their class."""
    folder = tmp_path_factory.mktemp("colored")
    for name, count, seed in (("train", TRAIN, 0), ("val", VAL, 9)):
        batch = boxes.batch(count, seed=seed)
        images, annotations = [], []
        for i, (pixels, found, labels) in enumerate(zip(batch.images, batch.boxes, batch.labels, strict=True)):
            file = f"{name}{i:02}.png"
            Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy().astype(np.uint8)).save(folder / file)
            images.append({"id": i, "file_name": file, "height": 64, "width": 64})
            for (left, top, right, bottom), label in zip(found.tolist(), labels.tolist(), strict=True):
                if label >= 0:
                    box = [left, top, right - left, bottom - top]
                    entry = {"id": len(annotations), "image_id": i, "category_id": label, "bbox": box, "iscrowd": 0}
                    annotations.append(entry)
        categories = [{"id": 0, "name": "red"}, {"id": 1, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"boxes-{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def alone(colored: Path) -> Recipe:
    return Recipe(
        name="boxes",
        task="detection",
        data=str(colored),
        student="fcos-32/cifar/resnet8",
        method="alone",
        size=64,
        augmentation="none",
        epochs=14,
        batch_size=8,
        optimizer="adamw",
        lr=3e-3,
        clip=10.0,
        precision="float32",
        memory_format="contiguous",
        device="cpu",
    )
