"""Annotations as YOLO's tools write them: a text file of labels for each image."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from limbeck.data import folders
from limbeck.data.files import child, read_annotations, read_text
from limbeck.data.problems import Problems
from limbeck.detection.data.index import BoxIndex, Collector
from limbeck.detection.data.pictures import Box, find_pictures
from limbeck.detection.data.problems import Fault, Remark
from limbeck.errors import UserError

_SLACK = 1e-3  # coordinates are written with few digits
TRAIN_NAMES = ("train", "training", "train2017")
VAL_NAMES = ("val", "valid", "validation", "val2017")
IMAGES, LABELS = "images", "labels"
ENDINGS = (".yaml", ".yml")


class Part(NamedTuple):
    """The images of a part.

    Attributes:
        root: Folder that the names are relative to.
        names: Path of each image.
    """

    root: Path
    names: tuple[str, ...]


class Layout(NamedTuple):
    """Where the parts of a YOLO data set are.

    Attributes:
        train: Folders of the training images, or files that list them; empty if there are none.
        val: The same of the validation images.
        classes: Names of the classes; empty if no file says them.
        has_points: Whether four numbers of a line are the box and those after them key points.
        notes: What was chosen, for the log.
    """

    train: tuple[Path, ...]
    val: tuple[Path, ...]
    classes: tuple[str, ...]
    has_points: bool
    notes: tuple[str, ...]


def find_yolo(place: Path) -> Layout:
    """The parts of a YOLO data set, and its classes.

    ``data.yaml`` (or the only other YAML file) says where images lie, as folders or files that list them, and names
    the classes. Without its ``train`` and ``val`` images lie in ``images/train`` (or ``train/images``, ``images``), and
    without its ``names`` ``classes.txt`` has the classes, one a line.

    Args:
        place: The folder, or the YAML file.

    Raises:
        UserError: There are no images in these places, or the file of classes cannot be used.
    """
    if place.suffix.lower() in ENDINGS and place.is_file():
        folder, card = place.parent, place
    else:
        folders.check_folder(place)
        folder, card = place, _card(place)
    content = {} if card is None else _content(card)
    notes: list[str] = []
    usual = {"train": _part(folder, TRAIN_NAMES), "val": _part(folder, VAL_NAMES) or _part(folder, ("test",))}
    found: dict[str, tuple[Path, ...]] = {}
    for key, there in usual.items():
        given = content.get(key) or (content.get("test") if key == "val" else None)
        if card is None or not given:
            found[key] = (there,) if there is not None else ()
            if key == "val" and there is not None and _part(folder, VAL_NAMES) is None:
                notes.append(f'"{there}" is used for validation: there is no other part for it')
            continue
        if not content.get(key):
            notes.append(f'"{card}" has no val: its test part is used for validation')
        places, missing = _places(given, key, content, card)
        if missing and there is None:
            raise UserError(f'"{card}": {key} "{missing[0][0]}" is not there, tried {_quoted(missing[0][1])}')
        if missing:
            notes.append(f'"{card}": {key} "{missing[0][0]}" is not there; "{there}" is used')
        found[key] = (there,) if missing and there is not None else places
    if not found["train"] and not found["val"]:
        if (images := child(folder, IMAGES)) is None:
            raise UserError(f'"{folder}" is no YOLO folder: expected images/train, train/images or images in it')
        found["train"] = (images,)
    classes = _classes(folder, card, content)
    if not classes:
        notes.append(
            f'"{folder}" has no data.yaml or classes.txt that names the classes: their numbers are their names'
        )
    return Layout(found["train"], found["val"], classes, "kpt_shape" in content, tuple(notes))


def is_yolo(place: Path) -> bool:
    """Whether a path looks like a YOLO data set: a YAML file with parts or classes, or folders of images."""
    if place.is_file():
        return place.suffix.lower() in ENDINGS
    if child(place, IMAGES) is not None or _part(place, (*TRAIN_NAMES, *VAL_NAMES)) is not None:
        return True
    card = _card(place)
    return card is not None and bool({"train", "val", "names"} & set(_content(card)))


def read_yolo(
    places: Sequence[Path], classes: tuple[str, ...], problems: Problems, *, has_points: bool = False
) -> BoxIndex:
    """The boxes of the images in folders, or of those that files list.

    Labels lie in the folder where the last ``images`` of the path is ``labels``; beside the images where there is no
    such folder. Of outlines the boxes are taken.

    Args:
        places: Folders of images, or files with the path of an image a line.
        classes: Names of the classes; empty: as many as the labels have, named by their numbers.
        problems: Gets the faults of single images and lines.
        has_points: As of :class:`Layout`.

    Raises:
        UserError: There are no images, or none of them has labels.
    """
    part = _images(places)
    labels = _label_files(part)
    if not any(file.is_file() for file in labels.values()):
        beside = {name: (part.root / name).with_suffix(".txt") for name in part.names}
        if not any(file.is_file() for file in beside.values()):
            raise UserError(_no_labels(part, labels))
        labels = beside
    elif all(place.is_dir() for place in places):
        _orphans(labels, problems)
    read = {name: _lines(file, has_points, problems) for name, file in labels.items() if file.is_file()}
    for name in part.names:
        if name not in read:
            problems.remark(Remark.BACKGROUND, name)
    if not classes:
        count = 1 + max((label for lines in read.values() for _, label, _ in lines.boxes), default=-1)
        classes = tuple(str(number) for number in range(count))
    collector = Collector(str(part.root), classes, problems)
    with_boxes = [name for name, lines in read.items() if lines.boxes]
    pictures = find_pictures(part.root, dict.fromkeys(part.names), with_boxes, problems, is_upright=True)
    for name, picture in pictures.items():
        height, width = picture.height, picture.width
        image = collector.add_image(picture)
        lines = read.get(name, _Lines([], []))
        for fault, where in lines.faults:
            collector.lose(image, fault, where)
        for where, label, outline in lines.boxes:
            if label >= len(classes):
                collector.lose(image, Fault.CATEGORY, f"{where}: class {label}, of {len(classes)}")
                continue
            box = outline.box
            corners = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
            area = None if outline.area is None else outline.area * width * height
            collector.add_box(image, corners, label, where, area=area)
    return collector.index()


class _Outline(NamedTuple):
    box: Box
    area: float | None


class _Lines(NamedTuple):
    boxes: list[tuple[str, int, _Outline]]
    faults: list[tuple[Fault, str]]


def _part(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of the images of a part, in any case."""
    images = child(folder, IMAGES)
    for name in names:
        found = child(images, name) if images is not None else None
        own = child(folder, name)
        if found is None and own is not None:
            found = child(own, IMAGES)
        if found is not None:
            return found
    return None


def _places(
    given: object, key: str, content: Mapping[str, Any], card: Path
) -> tuple[tuple[Path, ...], list[tuple[str, list[Path]]]]:
    """The paths that a YAML file gives for a part; and those that are nowhere, with where they were looked for."""
    entries = given if isinstance(given, list) else [given]
    base = content.get("path")
    bases = [card.parent / base, Path(base)] if isinstance(base, str) and base else []
    found: list[Path] = []
    missing: list[tuple[str, list[Path]]] = []
    for entry in entries:
        if not isinstance(entry, str) or not entry or "\0" in entry:
            raise UserError(f'"{card}": {key} is {entry!r}; expected a path, or a list of paths')
        name = entry.replace("\\", "/")
        tried = [folder / name for folder in (*bases, card.parent)]
        if name.startswith("../"):  # Roboflow writes "../train/images" for a folder beside the file
            tried += [folder / name.removeprefix("../") for folder in (*bases, card.parent)]
        there = next((place for place in tried if place.exists()), None)
        if there is None:
            missing.append((entry, list(dict.fromkeys(tried))))
        else:
            found.append(Path(os.path.normpath(there)))
    return tuple(dict.fromkeys(found)), missing


def _images(places: Sequence[Path]) -> Part:
    """The images of folders, and those that files list, under the folder that they share."""
    if len(places) == 1 and places[0].is_dir():
        return Part(places[0], folders.unlabelled(places[0]).names)
    paths: list[str] = []
    for place in places:
        if place.is_dir():
            paths += [os.path.join(place, name) for name in folders.unlabelled(place).names]
        else:
            lines = (line.strip().replace("\\", "/") for line in read_text(place).splitlines())
            paths += [os.path.join(place.parent, line) for line in lines if line]
    if not paths:
        raise UserError(f"{_quoted(list(places))} lists no images")
    paths = [os.path.abspath(path) for path in dict.fromkeys(paths)]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Part(Path(root), tuple(sorted({os.path.relpath(path, root) for path in paths})))


def _label_files(part: Part) -> dict[str, Path]:
    """Where the labels of each image are: the last ``images`` of its path replaced by ``labels``; else beside it."""
    places: dict[Path, Path] = {}
    found: dict[str, Path] = {}
    for name in part.names:
        image = part.root / name
        if image.parent not in places:
            places[image.parent] = _label_folder(image.parent)
        found[name] = places[image.parent] / image.with_suffix(".txt").name
    return found


def _quoted(paths: Sequence[Path]) -> str:
    return ", ".join(f'"{path}"' for path in paths)


def _label_folder(folder: Path) -> Path:
    lowered = [part.lower() for part in folder.parts]
    if IMAGES not in lowered:
        return folder
    place = len(lowered) - 1 - lowered[::-1].index(IMAGES)
    above = Path(*folder.parts[:place])
    return Path(child(above, LABELS) or above / LABELS, *folder.parts[place + 1 :])


def _no_labels(part: Part, labels: Mapping[str, Path]) -> str:
    """What is there in place of the labels."""
    name, expected = next(iter(labels.items()))
    place = expected.parent
    while not place.is_dir() and place != place.parent:
        place = place.parent
    there = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    some = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
    return (
        f'no labels for the {len(part.names)} images of "{part.root}": expected "{expected}" for "{name}", and '
        f'"{place}" has {some or "nothing"}'
    )


def _lines(file: Path, has_points: bool, problems: Problems) -> _Lines:
    """Where each label of a file stands, its class, and its box in shares of the image; and the faults."""
    try:
        text = read_text(file)
    except UserError as error:
        return _Lines([], [(Fault.FILE, f"{file.name}: {error}")])
    found = _Lines([], [])
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"line {number} of {file.name}"
        words = line.split()
        if not words:
            continue
        label, numbers = _class(words[0]), _floats(words[1:])
        if has_points and len(numbers) > 4:
            problems.remark(Remark.KEYPOINTS, where)
            numbers = numbers[:4]
        is_outline = len(numbers) >= 6 and len(numbers) % 2 == 0
        if label is None or not (len(numbers) == 4 or is_outline):
            found.faults.append((Fault.FIELDS, f"{where}: {line}"))
        elif is_outline and not all(math.isfinite(value) for value in numbers):
            found.faults.append((Fault.NOT_FINITE, f"{where}: {line}"))
        elif not all(-_SLACK <= value <= 1 + _SLACK for value in numbers if math.isfinite(value)):
            negative = not is_outline and min(numbers[2:]) < 0
            found.faults.append((Fault.NEGATIVE if negative else Fault.RANGE, f"{where}: {line}"))
        else:
            if is_outline:
                problems.remark(Remark.OUTLINE, where)
            found.boxes.append((where, label, _outline(numbers)))
    return found


def _outline(numbers: list[float]) -> _Outline:
    """The box of an outline, x and y in turn, and its area; or that of a center, a width and a height."""
    if len(numbers) == 4:
        x, y, w, h = numbers
        return _Outline((x - w / 2, y - h / 2, x + w / 2, y + h / 2), None)
    x, y = numbers[::2], numbers[1::2]
    area = abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2
    return _Outline((min(x), min(y), max(x), max(y)), area if area > 0 else None)


def _class(word: str) -> int | None:
    """The number of a class, which some tools write as 1.0."""
    values = _floats([word])
    return int(values[0]) if values and values[0].is_integer() and 0 <= values[0] < 10**6 else None


def _floats(words: list[str]) -> list[float]:
    """The numbers; none if one of the words is no number."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return []


def _orphans(labels: Mapping[str, Path], problems: Problems) -> None:
    """Note label files whose image is not there, in the folders of those whose image is."""
    known = set(labels.values())
    for folder in sorted({file.parent for file in known}):
        for file in sorted(folder.glob("*.txt")):
            if file.name != "classes.txt" and file not in known:
                problems.add(Fault.NO_IMAGE, file.name)


def _card(folder: Path) -> Path | None:
    """The YAML file of a data set: ``data.yaml``, or the only one."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    return next((file for file in files if file.stem.lower() == "data"), files[0] if len(files) == 1 else None)


def _content(file: Path) -> Mapping[str, Any]:
    try:
        content: Any = yaml.safe_load(read_annotations(file))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'"{file}" is not YAML') from None
    return cast("Mapping[str, Any]", content) if isinstance(content, dict) else {}


def _classes(folder: Path, card: Path | None, content: Mapping[str, Any]) -> tuple[str, ...]:
    if card is not None:
        return _named(card, content)
    places = (folder / "classes.txt", folder / LABELS / "classes.txt")
    listed = next((file for file in places if file.is_file()), None)
    if listed is None:
        return ()
    names = tuple(line.strip() for line in read_text(listed).splitlines() if line.strip())
    return _unique(names, listed)


def _named(file: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in cast("dict[Any, Any]", names).items()}
        names = [numbered.get(str(number)) for number in range(len(numbered))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise UserError(f'"{file}" has no names of classes: expected "names", a list, or numbers from 0 with names')
    return _unique(tuple(str(name) for name in names), file)


def _unique(names: tuple[str, ...], file: Path) -> tuple[str, ...]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'"{file}" names the class "{twice}" twice')
    return names
