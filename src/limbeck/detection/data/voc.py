"""Annotations as Pascal VOC has them: an XML file for each image."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from limbeck.data import folders
from limbeck.data.files import child, read_annotations, read_text
from limbeck.data.problems import Problems
from limbeck.detection.data.index import BoxIndex, Collector
from limbeck.detection.data.pictures import Box, Size, find_pictures, is_inside
from limbeck.detection.data.problems import Fault, Remark
from limbeck.errors import UserError

IMAGES, ANNOTATIONS, SETS = ("JPEGImages", "images"), "Annotations", "ImageSets/Main"


class _Object(NamedTuple):
    name: str
    box: Box
    difficult: bool
    where: str


class _Annotation(NamedTuple):
    image: str
    size: Size | None
    objects: list[_Object]
    faults: list[tuple[Fault, str]]


def find_sets(folder: Path) -> tuple[str | None, str | None]:
    """Names of the sets of training and of validation: ``train`` or ``trainval``, and ``val`` or ``test``; or None.

    Raises:
        UserError: The folder is no VOC folder.
    """
    folders.check_folder(folder)
    _places(folder)
    there = {path.stem for path in (folder / SETS).glob("*.txt")}
    if "train" in there and "val" in there:
        return "train", "val"
    train = next((name for name in ("trainval", "train") if name in there), None)
    return train, next((name for name in ("val", "test") if name in there and train is not None), None)


def is_voc(folder: Path) -> bool:
    """Whether a folder has annotations in XML beside images."""
    return child(folder, *IMAGES) is not None and (
        (place := child(folder, ANNOTATIONS)) is not None and any(place.glob("*.xml"))
    )


def _places(folder: Path) -> tuple[Path, Path]:
    """The folders of the annotations and of the images."""
    annotations, images = child(folder, ANNOTATIONS), child(folder, *IMAGES)
    if annotations is None or images is None:
        raise UserError(f'"{folder}" is no VOC folder: expected {ANNOTATIONS} and {IMAGES[0]} in it')
    return annotations, images


def read_voc(folder: Path, chosen: str | None, problems: Problems) -> BoxIndex:
    """The boxes of a set of a VOC folder. Objects that are marked difficult are treated as crowds: not learned.

    Args:
        folder: Holds ``Annotations``, ``JPEGImages`` and, for a set, ``ImageSets/Main``.
        chosen: Name of the set; None: every annotation.
        problems: Gets the faults of single images and boxes.

    Returns:
        The boxes, with the classes that occur, sorted.

    Raises:
        UserError: There are no annotations.
    """
    annotations, root = _places(folder)
    read: dict[str, _Annotation] = {}
    for file in _files(annotations, None if chosen is None else folder / SETS / f"{chosen}.txt", problems):
        if (found := _read(file, problems)) is None:
            continue
        if found.image in read:
            problems.add(Fault.IMAGE_TWICE, f"{file.name}: {found.image}")
        else:
            read[found.image] = found
    classes = sorted({one.name for found in read.values() for one in found.objects})
    collector = Collector(str(root), classes, problems)
    named = {name: found.size for name, found in read.items()}
    with_boxes = [name for name, found in read.items() if found.objects]
    for name, picture in find_pictures(root, named, with_boxes, problems).items():
        image = collector.add_image(picture)
        for fault, where in read[name].faults:
            collector.lose(image, fault, where)
        for one in read[name].objects:
            collector.add_box(image, one.box, classes.index(one.name), one.where, crowd=one.difficult)
    return collector.index()


def _files(place: Path, listed: Path | None, problems: Problems) -> list[Path]:
    """The annotations of a folder: those that a file lists, or all."""
    if listed is None:
        files = sorted(place.glob("*.xml"))
        if not files:
            raise UserError(f'no annotations in "{place}": expected files that end in .xml')
        return files
    # "000012" alone, or "000012 1" in the lists of a class.
    stems = [line.split()[0] for line in read_text(listed).splitlines() if line.split()]
    files: list[Path] = []
    for stem in dict.fromkeys(stems):
        if is_inside(stem) and (place / f"{stem}.xml").is_file():
            files.append(place / f"{stem}.xml")
        else:
            problems.add(Fault.FILE, f"{stem}.xml, which {listed.name} lists, is not there")
    for stem, count in Counter(stems).items():
        if count > 1:
            problems.add(Fault.IMAGE_TWICE, f"{stem} in {listed.name}")
    if not files:
        raise UserError(f'"{listed}" lists no annotation that is there')
    return files


def _read(file: Path, problems: Problems) -> _Annotation | None:
    """What a file says of its image; None, and a fault, if it cannot be read."""
    try:
        text = read_annotations(file)
        if b"<!ENTITY" in text:  # entities that hold entities fill any memory
            raise ValueError("it declares entities")
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that nobody knows
        problems.add(Fault.FILE, f"{file.name}: {error}")
        return None
    objects: list[_Object] = []
    faults: list[tuple[Fault, str]] = []
    for number, entry in enumerate(tree.findall("object"), start=1):
        where = f"object {number} in {file.name}"
        name = (entry.findtext("name") or "").strip()
        if not name:
            faults.append((Fault.ENTRY, f"{where}: no name"))
            continue
        box = _box(entry)
        if box is None and (box := _outlined(entry)) is not None:
            problems.remark(Remark.OUTLINE, where)
        if box is None:
            faults.append((Fault.NO_BOX, where))
            continue
        objects.append(_Object(name, box, (entry.findtext("difficult") or "0").strip() == "1", where))
    named = (tree.findtext("filename") or "").strip()
    return _Annotation(named or f"{file.stem}.jpg", _size(tree), objects, faults)


def _size(tree: ElementTree.Element) -> Size | None:
    """Height and width that a file declares; None where it has none, or zeros, as some tools write."""
    try:
        height, width = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _outlined(entry: ElementTree.Element) -> Box | None:
    """The box of a polygon of x1, y1, x2, y2, ..., counted as boxes are."""
    points = list(entry.iterfind("polygon/*"))
    try:
        x, y = ([float(one.text or "") for one in points if one.tag.startswith(axis)] for axis in "xy")
    except ValueError:
        return None
    return (min(x) - 1, min(y) - 1, max(x), max(y)) if len(x) > 2 and len(x) == len(y) else None


def _box(entry: ElementTree.Element) -> Box | None:
    """Left, top, right, bottom; VOC counts pixels from 1, and its right and bottom belong to the box."""
    box = entry.find("bndbox")
    try:
        left, top, right, bottom = (float(box.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax"))  # pyright: ignore[reportOptionalMemberAccess]
    except (ValueError, AttributeError):
        return None
    return left - 1, top - 1, right, bottom
