"""Annotations as YOLO's tools write them: a text file of labels for each image."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from limbeck.data import folders
from limbeck.data.detection.files import image_size, read_annotations
from limbeck.data.detection.index import BoxIndex, Collector
from limbeck.data.detection.problems import Fault, Problems
from limbeck.errors import UserError

_SLACK = 1e-3  # coordinates are written with few digits
TRAIN_NAMES = ("train", "train2017")
VAL_NAMES = (*folders.VAL_NAMES, "val2017")


class Layout(NamedTuple):
    """Where the parts of a YOLO data set are.

    Attributes:
        train: Folder of the training images.
        val: Folder of the validation images, or None.
        classes: Names of the classes; empty where no file says them.
    """

    train: Path
    val: Path | None
    classes: tuple[str, ...]


def find_yolo(folder: Path) -> Layout:
    """The parts of a YOLO data set, and its classes.

    Images lie in ``images/train`` (or ``images/train2017``, ``train/images``, ``images``), labels beside them in the
    folder where the last ``images`` of the path is ``labels``; ``data.yaml`` (or the only other YAML file) names the
    classes, or ``classes.txt`` with one a line.

    Raises:
        UserError: There are no images in these places, or the file of classes cannot be used.
    """
    folders.check_folder(folder)
    train = _part(folder, TRAIN_NAMES) or (folder / "images" if (folder / "images").is_dir() else None)
    if train is None:
        raise UserError(f'"{folder}" is no YOLO folder: expected images/train, train/images or images in it')
    return Layout(train, _part(folder, VAL_NAMES), _classes(folder))


def read_yolo(images: Path, classes: tuple[str, ...], problems: Problems) -> BoxIndex:
    """The boxes of the images in a folder.

    Args:
        images: Folder of the images, ``images`` being a part of its path.
        classes: Names of the classes; empty: as many as the labels have, named by their numbers.
        problems: Gets the faults of single images and lines.

    Raises:
        UserError: There are no images.
    """
    part = folders.unlabelled(images)
    labels = labels_folder(images)
    read = {name: _lines(labels, name, problems) for name in part.names}
    if not classes:
        count = 1 + max((label for lines in read.values() for _, label, _ in lines), default=-1)
        classes = tuple(str(number) for number in range(count))
    collector = Collector(str(images), classes, problems)
    for name in part.names:
        size = image_size(str(images), name, problems)
        if size is None:
            continue
        height, width = size
        image = collector.add_image(name, height, width)
        for where, label, (x, y, w, h) in read[name]:
            if label >= len(classes):
                problems.add(Fault.CATEGORY, f"{where}: class {label}, of {len(classes)}")
                continue
            box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            collector.add_box(image, box, label, where)
    _orphans(labels, part.names, problems)
    return collector.index()


def labels_folder(images: Path) -> Path:
    """Where the labels of a folder of images are: the last ``images`` of its path replaced by ``labels``."""
    parts = list(images.parts)
    place = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:place], "labels", *parts[place + 1 :])


def _part(folder: Path, names: tuple[str, ...]) -> Path | None:
    places = [place for name in names for place in (folder / "images" / name, folder / name / "images")]
    return next((place for place in places if place.is_dir()), None)


def _lines(labels: Path, name: str, problems: Problems) -> list[tuple[str, int, tuple[float, float, float, float]]]:
    """Where each label of an image stands, its class, and its box: center, width and height as shares of the image."""
    file = labels / Path(name).with_suffix(".txt")
    if not file.is_file():
        return []  # an image without objects
    try:
        text = read_annotations(file).decode("utf-8")
    except (UserError, UnicodeDecodeError) as error:
        problems.add(Fault.FILE, f"{file.name}: {error}")
        return []
    found: list[tuple[str, int, tuple[float, float, float, float]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"line {number} of {file.name}"
        words = line.split()
        if not words:
            continue
        label = _class(words[0])
        box = _four(words[1:])
        if label is None or box is None:
            problems.add(Fault.FIELDS, f"{where}: {line}")
        elif all(math.isfinite(value) for value in box) and not all(-_SLACK <= value <= 1 + _SLACK for value in box):
            negative = min(box[2:]) < 0
            problems.add(Fault.NEGATIVE if negative else Fault.RANGE, f"{where}: {line}")
        else:
            found.append((where, label, box))
    return found


def _class(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() and len(word) < 7 else None


def _four(words: list[str]) -> tuple[float, float, float, float] | None:
    try:
        x, y, w, h = (float(word) for word in words)
    except ValueError:  # no numbers, or not four
        return None
    return x, y, w, h


def _orphans(labels: Path, names: tuple[str, ...], problems: Problems) -> None:
    """Note label files whose image is not there."""
    known = {str(Path(name).with_suffix(".txt")) for name in names}
    for path, _, files in sorted(os.walk(labels)):
        for file in sorted(files):
            relative = os.path.relpath(os.path.join(path, file), labels)
            if file.endswith(".txt") and file != "classes.txt" and relative not in known:
                problems.add(Fault.NO_IMAGE, relative)


def _classes(folder: Path) -> tuple[str, ...]:
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    chosen = next((file for file in files if file.name == "data.yaml"), files[0] if len(files) == 1 else None)
    if chosen is not None:
        return _named(chosen)
    listed = next(
        (file for file in (folder / "classes.txt", folder / "labels" / "classes.txt") if file.is_file()), None
    )
    if listed is None:
        return ()
    names = tuple(
        line.strip() for line in read_annotations(listed).decode("utf-8", "replace").splitlines() if line.strip()
    )
    return _unique(names, listed)


def _named(file: Path) -> tuple[str, ...]:
    try:
        content: Any = yaml.safe_load(read_annotations(file))
    except (yaml.YAMLError, RecursionError, ValueError):
        raise UserError(f'"{file}" is not YAML') from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise UserError(f'"{file}" has no names of classes: expected "names", a list, or numbers from 0 with names')
    return _unique(tuple(str(name) for name in names), file)


def _unique(names: tuple[str, ...], file: Path) -> tuple[str, ...]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'"{file}" names the class "{twice}" twice')
    return names
