"""Annotations as Pascal VOC has them: an XML file for each image."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from limbeck.data import folders
from limbeck.data.detection.files import image_size, is_inside, read_annotations
from limbeck.data.detection.index import BoxIndex, Collector
from limbeck.data.detection.problems import Fault, Problems
from limbeck.errors import UserError

IMAGES, ANNOTATIONS, SETS = "JPEGImages", "Annotations", "ImageSets/Main"


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    where: str


def find_sets(folder: Path) -> tuple[str | None, str | None]:
    """Names of the sets of training and of validation: ``train`` or ``trainval``, and ``val`` or ``test``; or None.

    Raises:
        UserError: The folder is no VOC folder.
    """
    folders.check_folder(folder)
    for name in (IMAGES, ANNOTATIONS):
        if not (folder / name).is_dir():
            raise UserError(f'"{folder}" is no VOC folder: expected {ANNOTATIONS} and {IMAGES} in it')
    there = {path.stem for path in (folder / SETS).glob("*.txt")}
    if "train" in there and "val" in there:
        return "train", "val"
    train = next((name for name in ("trainval", "train") if name in there), None)
    return train, next((name for name in ("val", "test") if name in there and train is not None), None)


def read_voc(
    folder: Path, chosen: str | None, problems: Problems, *, classes: tuple[str, ...] | None = None
) -> BoxIndex:
    """The boxes of a set of a VOC folder. Objects that are marked difficult are treated as crowds: not learned.

    Args:
        folder: Holds ``Annotations``, ``JPEGImages`` and, for a set, ``ImageSets/Main``.
        chosen: Name of the set; None: every annotation.
        problems: Gets the faults of single images and boxes.
        classes: Names of the classes; None: those that occur, sorted.

    Raises:
        UserError: There are no annotations.
    """
    files = _files(folder, chosen, problems)
    read = {file: _read(file, problems) for file in files}
    if classes is None:
        classes = tuple(sorted({one.name for found in read.values() if found is not None for one in found[1]}))
    root = folder / IMAGES
    collector = Collector(str(root), classes, problems)
    names: set[str] = set()
    for file, found in read.items():
        if found is None:
            continue
        name, objects = found
        if not is_inside(name):
            problems.add(Fault.IMAGE_ELSEWHERE, f"{file.name}: {name}")
        elif name in names:
            problems.add(Fault.IMAGE_TWICE, f"{file.name}: {name}")
        elif (size := image_size(str(root), name, problems)) is not None:
            names.add(name)
            image = collector.add_image(name, *size)
            for one in objects:
                if one.name not in classes:
                    problems.add(Fault.CATEGORY, f'{one.where}: "{one.name}"')
                else:
                    collector.add_box(image, one.box, classes.index(one.name), one.where, crowd=one.difficult)
    return collector.index()


def _files(folder: Path, chosen: str | None, problems: Problems) -> list[Path]:
    place = folder / ANNOTATIONS
    if chosen is None:
        files = sorted(place.glob("*.xml"))
        if not files:
            raise UserError(f'no annotations in "{place}": expected files that end in .xml')
        return files
    listed = folder / SETS / f"{chosen}.txt"
    # "000012" alone, or "000012 1" in the lists of a class.
    stems = [
        line.split()[0] for line in read_annotations(listed).decode("utf-8", "replace").splitlines() if line.split()
    ]
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


def _read(file: Path, problems: Problems) -> tuple[str, list[_Object]] | None:
    """The name of the image and its objects; None, and a fault, where the file cannot be read."""
    try:
        text = read_annotations(file)
        if b"<!ENTITY" in text:  # entities that hold entities fill any memory
            raise ValueError("it declares entities")
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        problems.add(Fault.FILE, f"{file.name}: {error}")
        return None
    objects: list[_Object] = []
    for number, entry in enumerate(tree.findall("object"), start=1):
        where = f"object {number} in {file.name}"
        name = (entry.findtext("name") or "").strip()
        if not name:
            problems.add(Fault.ENTRY, f"{where}: no name")
            continue
        box = _box(entry)
        if box is None:
            problems.add(Fault.NO_BOX, where)
            continue
        objects.append(_Object(name, box, (entry.findtext("difficult") or "0").strip() == "1", where))
    named = (tree.findtext("filename") or "").strip()
    return named or f"{file.stem}.jpg", objects


def _box(entry: ElementTree.Element) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom; VOC counts pixels from 1, and its right and bottom belong to the box."""
    box = entry.find("bndbox")
    try:
        left, top, right, bottom = (float(box.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax"))  # pyright: ignore[reportOptionalMemberAccess]
    except (ValueError, AttributeError):
        return None
    return left - 1, top - 1, right, bottom
