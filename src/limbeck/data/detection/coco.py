"""Annotations in COCO's JSON."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.data.detection.files import image_size, is_inside, read_annotations
from limbeck.data.detection.index import BoxIndex, Collector
from limbeck.data.detection.problems import Fault, Problems
from limbeck.errors import UserError
from limbeck.untrusted import parse_json

_TRIED = 20  # images that are looked for to find their folder


def read_coco(path: Path, problems: Problems, *, classes: tuple[str, ...] | None = None) -> BoxIndex:
    """The boxes of a COCO annotation file.

    Category numbers are kept in their order and become 0, 1, ...; those of a validation file have to be the same. The
    images are looked for in the folder of the file and in the usual places beside it.

    Args:
        path: The file.
        problems: Gets the faults of single images and boxes.
        classes: For a validation file: the class names of the training file.

    Raises:
        UserError: The file is no COCO file, its images are nowhere, or its classes are others than those of training.

    References:
        https://cocodataset.org/#format-data, object detection.
    """
    content = _content(path)
    names = _categories(content["categories"], problems)
    if classes is not None and tuple(names.values()) != classes:
        names = _same_classes(path, names, classes)
    order = tuple(names.values()) if classes is None else classes
    collector = Collector(str(_root(path, content["images"])), order, problems)
    numbers = _images(content["images"], _root(path, content["images"]), collector, problems)
    labels = {category: order.index(name) for category, name in names.items()}
    _annotations(content["annotations"], numbers, labels, collector, problems)
    return collector.index()


def _content(path: Path) -> dict[str, list[Any]]:
    try:
        content = parse_json(read_annotations(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'"{path}" is not JSON: {str(error).splitlines()[0]}') from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(f'"{path}" is no COCO file: expected an object with lists images, annotations, categories')
    return content


def _root(path: Path, images: list[Any]) -> Path:
    """The folder in which the images are found: the annotations' own, or one of the usual places beside it."""
    stem = path.stem.removeprefix("instances_")
    above = path.parent.parent
    places = [path.parent, above / stem, above / "images" / stem, above / "images", above, path.parent / stem]
    some = [
        image["file_name"] for image in images if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    ]
    some = [name for name in some if "\0" not in name][:_TRIED]
    found = {place: sum(os.path.isfile(place / name) for name in some) for place in places}
    best = max(places, key=lambda place: found[place])
    if some and not found[best]:
        tried = ", ".join(str(place) for place in dict.fromkeys(places))
        raise UserError(f'the images of "{path}" are nowhere: "{some[0]}" is in none of {tried}')
    return best


def _categories(entries: list[Any], problems: Problems) -> dict[int, str]:
    """Category number to name, by rising number."""
    names: dict[int, str] = {}
    for entry in entries:
        number, name = _integer(entry, "id"), entry.get("name") if isinstance(entry, Mapping) else None
        if number is None or not isinstance(name, str) or not name.strip():
            problems.add(Fault.CATEGORY_ENTRY, repr(entry))
        elif number in names or name in names.values():
            problems.add(Fault.CATEGORY_TWICE, f'{number} "{name}"')
        else:
            names[number] = name
    return dict(sorted(names.items()))


def _same_classes(path: Path, names: dict[int, str], classes: tuple[str, ...]) -> dict[int, str]:
    """The categories that training knows as well; others in the file are no fault where training chose some."""
    missing = [name for name in classes if name not in names.values()]
    if missing:
        raise UserError(f'"{path}" has no category "{missing[0]}", which the training annotations have')
    return {number: name for number, name in names.items() if name in classes}


def _images(entries: list[Any], root: Path, collector: Collector, problems: Problems) -> dict[int, int | None]:
    """Image number of the file to that of the collector; None for an image that was left out, with its boxes."""
    numbers: dict[int, int | None] = {}
    names: set[str] = set()
    for entry in entries:
        number, name = _integer(entry, "id"), entry.get("file_name") if isinstance(entry, Mapping) else None
        if number is not None and number in numbers:
            problems.add(Fault.IMAGE_ID_TWICE, f"{number}: {name}")
            continue
        if number is not None:
            numbers[number] = None
        if number is None or not isinstance(name, str) or not name or "\0" in name:
            problems.add(Fault.IMAGE_ENTRY, repr(entry))
        elif name in names:
            problems.add(Fault.IMAGE_TWICE, name)
        elif not is_inside(name):
            problems.add(Fault.IMAGE_ELSEWHERE, name)
        else:
            size = _declared_size(entry, root, name, problems)
            if size is not None:
                numbers[number] = collector.add_image(name, *size)
                names.add(name)
    return numbers


def _declared_size(entry: Mapping[str, Any], root: Path, name: str, problems: Problems) -> tuple[int, int] | None:
    """Height and width as the file says; of an image without them from the image itself."""
    if "height" not in entry and "width" not in entry:
        return image_size(str(root), name, problems)
    height, width = _integer(entry, "height"), _integer(entry, "width")
    if height is None or width is None or height < 1 or width < 1:
        problems.add(Fault.IMAGE_SIZE, f"{name}: height {entry.get('height')!r}, width {entry.get('width')!r}")
        return None
    if not os.path.isfile(root / name):  # Path.is_file raises where a name is too long
        problems.add(Fault.IMAGE_MISSING, name)
        return None
    return height, width


def _annotations(
    entries: list[Any], numbers: dict[int, int | None], labels: dict[int, int], collector: Collector, problems: Problems
) -> None:
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        own, image, category = (_integer(entry, name) for name in ("id", "image_id", "category_id"))
        where = f"annotation {own if own is not None else f'number {place}'}"
        if not isinstance(entry, Mapping) or image is None or category is None:
            problems.add(Fault.ENTRY, f"{where}: {entry!r}")
            continue
        if own is not None and own in seen:
            problems.add(Fault.ID_TWICE, f"{where} of image {image}")
            continue
        if own is not None:
            seen.add(own)
        if image not in numbers:
            problems.add(Fault.IMAGE, f"{where}: image {image}")
        elif category not in labels:
            problems.add(Fault.CATEGORY, f"{where}: category {category}")
        elif (crowd := entry.get("iscrowd", 0)) not in (0, 1):
            problems.add(Fault.CROWD, f"{where}: {crowd!r}")
        elif (box := _numbers(entry.get("bbox"))) is None:
            problems.add(Fault.NO_BOX, f"{where}: {entry.get('bbox')!r}")
        else:
            left, top, width, height = box
            corners = (left, top, left + width, top + height)
            area = _numbers([entry.get("area")] * 4)
            known = area[0] if area is not None and 0 < area[0] < float("inf") else None
            if (at := numbers[image]) is not None:
                collector.add_box(at, corners, labels[category], where, crowd=bool(crowd), area=known)


def _integer(entry: Any, name: str) -> int | None:
    """A whole number of an object of the file; None where there is none."""
    value = entry.get(name) if isinstance(entry, Mapping) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _numbers(value: Any) -> tuple[float, float, float, float] | None:
    """Four numbers; None where it is something else."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        return None
    try:
        left, top, width, height = (float(item) for item in value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return left, top, width, height
