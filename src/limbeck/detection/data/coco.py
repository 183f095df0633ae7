"""Annotations in COCO's JSON."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.data.files import read_annotations
from limbeck.data.problems import Problems
from limbeck.detection.data.index import BoxIndex, Collector
from limbeck.detection.data.pictures import Box, Size, base_name, find_pictures, is_inside
from limbeck.detection.data.problems import Fault, Remark
from limbeck.errors import UserError
from limbeck.storage.untrusted import parse_json

_TRIED = 20  # images that are looked for to find their folder
_PATTERNS = (
    "annotations/instances_*.json", "boxes-*.json", "annotations/*.json", "*.json", "*/_annotations.coco.json",
)  # fmt: skip


def annotation_files(folder: Path) -> list[Path]:
    """The COCO files of a folder, in the first of the usual places that has any."""
    return next((files for pattern in _PATTERNS if (files := sorted(folder.glob(pattern)))), [])


def find_coco(place: Path) -> tuple[Path | None, Path | None]:
    """The annotations of training and of validation: of a folder those with such a word in their path.

    Raises:
        UserError: The folder has several for one of them, or none.
    """
    if not place.is_dir():
        return place, None
    files = annotation_files(place)
    words = {file: str(file.relative_to(place)).lower() for file in files}
    train, val, test = ([file for file in files if word in words[file]] for word in ("train", "val", "test"))
    val = val or test
    if len(files) == 1 and not train and not val:
        train = files
    if len(train) > 1 or len(val) > 1 or not (train or val):
        names = ", ".join(str(file.relative_to(place)) for file in files) or "none"
        raise UserError(f'which annotations of "{place}"? Found {names}: give coco:FILE.json, and --val coco:FILE.json')
    return train[0] if train else None, val[0] if val else None


def read_coco(path: Path, problems: Problems) -> BoxIndex:
    """The boxes of a COCO annotation file.

    Category numbers are kept in their order and become 0, 1, .... The images are looked for in the folder of the file
    and in the usual places beside it. Of an object that has an outline and no box the box of the outline is taken.

    Args:
        path: The file.
        problems: Gets the faults of single images and boxes.

    Raises:
        UserError: The file is no COCO file, or its images are nowhere.

    References:
        https://cocodataset.org/#format-data, object detection.
    """
    content = _content(path)
    used = {_integer(entry, "category_id") for entry in content["annotations"]}
    names = _categories(content["categories"], used, problems)
    root = _root(path, content["images"])
    collector = Collector(str(root), tuple(names.values()), problems)
    boxed = {_integer(entry, "image_id") for entry in content["annotations"]}
    numbers = _images(content["images"], root, boxed, collector, problems)
    labels = {category: label for label, category in enumerate(names)}
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
    stem, beside, above = path.stem.removeprefix("instances_"), path.parent, path.parent.parent
    places = [beside, above / stem, above / "images" / stem, above / "images", above, beside / stem]
    places += [beside / "images" / stem, beside / "images"]
    some = [
        image["file_name"] for image in images if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    ]
    some = [name if is_inside(name) else base_name(name) for name in some if name and "\0" not in name][:_TRIED]
    found = {place: sum(_is_there(place, name) for name in some) for place in places}
    best = max(places, key=lambda place: found[place])
    if some and not found[best]:
        tried = ", ".join(f'"{place.absolute() / some[0]}"' for place in dict.fromkeys(places))
        raise UserError(f'the images of "{path}" are nowhere: "{some[0]}", the first one, is none of {tried}')
    return best


def _is_there(place: Path, name: str) -> bool:
    return os.path.isfile(place / name) or os.path.isfile(place / base_name(name))


def _categories(entries: list[Any], used: set[int | None], problems: Problems) -> dict[int, str]:
    """Category number to name, by rising number.

    Exporters write a root above the categories that no box belongs to, and that may have the name of one of them.
    """
    names: dict[int, str] = {}
    for entry in entries:
        number, name = _integer(entry, "id"), entry.get("name") if isinstance(entry, Mapping) else None
        if number is None or not isinstance(name, str) or not name.strip():
            problems.add(Fault.CATEGORY_ENTRY, repr(entry))
            continue
        same = next((other for other, known in names.items() if known == name), None)
        if number in names or (same is not None and {same, number} <= used):
            problems.add(Fault.CATEGORY_TWICE, f'{number} "{name}"')
        elif same is None:
            names[number] = name
        else:
            unused = same if number in used else number
            problems.remark(Remark.SAME_NAME, f'{unused} "{name}"')
            names.pop(unused, None)
            if unused == same:
                names[number] = name
    return dict(sorted(names.items()))


def _images(
    entries: list[Any], root: Path, boxed: set[int | None], collector: Collector, problems: Problems
) -> dict[int, int | None]:
    """Image number of the file to that of the collector; None for an image that was left out, with its boxes."""
    numbers: dict[int, int | None] = {}
    named: dict[str, Size | None] = {}
    owners: dict[str, int] = {}
    again: dict[int, str] = {}
    for entry in entries:
        number, name = _integer(entry, "id"), entry.get("file_name") if isinstance(entry, Mapping) else None
        if number is not None and number in numbers:
            problems.add(Fault.IMAGE_ID_TWICE, f"{number}: {name}")
            continue
        if number is not None:
            numbers[number] = None
        if number is None or not isinstance(name, str) or not name or "\0" in name:
            problems.add(Fault.IMAGE_ENTRY, repr(entry))
        elif name in named:  # boxes of both entries are of one image
            problems.add(Fault.IMAGE_TWICE, name)
            again[number] = name
        elif "height" not in entry and "width" not in entry:
            named[name], owners[name] = None, number
        else:
            height, width = _integer(entry, "height"), _integer(entry, "width")
            if height is None or width is None or height < 1 or width < 1:
                seen = f"height {entry.get('height')!r}, width {entry.get('width')!r}"
                problems.add(Fault.IMAGE_SIZE, f"{name}: {seen}")
            else:
                named[name], owners[name] = (height, width), number
    with_boxes = [name for name, number in owners.items() if number in boxed]
    for name, picture in find_pictures(root, named, with_boxes, problems).items():
        numbers[owners[name]] = collector.add_image(picture)
    return numbers | {number: numbers[owners[name]] for number, name in again.items()}


def _annotations(
    entries: list[Any], numbers: dict[int, int | None], labels: dict[int, int], collector: Collector, problems: Problems
) -> None:
    seen: set[int] = set()

    def lose(image: int | None, fault: Fault, where: str) -> None:
        at = numbers.get(image) if image is not None else None
        if at is None:
            problems.add(fault, where)
        else:
            collector.lose(at, fault, where)

    for place, entry in enumerate(entries):
        own, image, category = (_integer(entry, name) for name in ("id", "image_id", "category_id"))
        where = f"annotation {own if own is not None else f'number {place}'}"
        if not isinstance(entry, Mapping) or image is None or category is None:
            lose(image, Fault.ENTRY, f"{where}: {entry!r}")
            continue
        if own is not None and own in seen:
            problems.add(Fault.ID_TWICE, f"{where} of image {image}")
            continue
        if own is not None:
            seen.add(own)
        if image not in numbers:
            problems.add(Fault.IMAGE, f"{where}: image {image}")
        elif category not in labels:
            lose(image, Fault.CATEGORY, f"{where}: category {category}")
        elif (crowd := entry.get("iscrowd", 0)) not in (0, 1):
            lose(image, Fault.CROWD, f"{where}: {crowd!r}")
        elif (corners := _corners(entry, where, problems)) is None:
            lose(image, Fault.NO_BOX, f"{where}: {entry.get('bbox')!r}")
        else:
            area = _numbers([entry.get("area")])
            known = area[0] if area and 0 < area[0] < float("inf") else None
            if (at := numbers[image]) is not None:
                collector.add_box(at, corners, labels[category], where, crowd=bool(crowd), area=known)


def _corners(entry: Mapping[str, Any], where: str, problems: Problems) -> Box | None:
    """Left, top, right, bottom of a box, or of the outline of an object that has no box; None if it has neither."""
    box = entry.get("bbox")
    if box is not None and box != []:
        numbers = _numbers(box)
        if len(numbers) != 4:
            return None
        left, top, width, height = numbers
        return left, top, left + width, top + height
    outlines = entry.get("segmentation")  # polygons, each a list of x and y in turn; or a mask, which is no list
    numbers = [value for outline in outlines for value in _numbers(outline)] if isinstance(outlines, list) else []
    if len(numbers) < 6:
        return None
    problems.remark(Remark.OUTLINE, where)
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])


def _integer(entry: Any, name: str) -> int | None:
    """A whole number of an object of the file; None where there is none."""
    value = entry.get(name) if isinstance(entry, Mapping) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _numbers(value: Any) -> list[float]:
    """The numbers of a list; none if it is something else, or holds something else."""
    if not isinstance(value, list):
        return []
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        return []
    try:
        return [float(item) for item in value]
    except OverflowError:  # a whole number of hundreds of digits
        return []
