"""The images that annotations name: which file each one is, how large it is, and which way up its boxes are."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from limbeck.data import decode, folders
from limbeck.data.headers import Header, Size, read_header
from limbeck.data.problems import Problems
from limbeck.detection.data.problems import Fault, Remark
from limbeck.errors import UserError

_THREADS = 8

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class Picture(NamedTuple):
    """An image file as it is decoded, that is upright.

    Attributes:
        name: Path in the folder of the images.
        height: Of the upright image.
        width: Of the upright image.
        turn: The EXIF orientation that boxes of the stored pixels have to be turned by; 1: they are upright already.
    """

    name: str
    height: int
    width: int
    turn: int = 1

    def upright(self, box: Box) -> Box:
        """A box of the annotations in pixels of the upright image."""
        left, top, right, bottom = box
        if self.turn in decode.TURNED:  # mirrored along the diagonal first
            left, top, right, bottom = top, left, bottom, right
        if self.turn in (2, 3, 6, 7):
            left, right = self.width - right, self.width - left
        if self.turn in (3, 4, 7, 8):
            top, bottom = self.height - bottom, self.height - top
        return left, top, right, bottom


def is_inside(name: str) -> bool:
    """Whether a path stays in the folder that it is relative to."""
    parts = Path(name.replace("\\", "/")).parts
    return bool(parts) and not os.path.isabs(name) and ".." not in parts


def base_name(name: str) -> str:
    """The last part of a path of any system."""
    return name.replace("\\", "/").rpartition("/")[2]


def find_pictures(
    root: Path, named: Mapping[str, Size | None], boxed: Iterable[str], problems: Problems, *, is_upright: bool = False
) -> dict[str, Picture]:
    """Find the image files that annotations name, and compare their sizes with those of the annotations.

    A file whose EXIF orientation is not 1 has two frames: the stored pixels, and the upright image that is decoded.
    A declared size of other proportions shows which of them boxes are in, of its own image and, if all of these agree,
    of images that stand on their heads, are mirrored, or are square. If nothing shows it, that is a fault.

    Args:
        root: Folder of the images.
        named: Each name in the annotations, with the height and width they declare, if they do.
        boxed: The names of images that have boxes.
        problems: Gets the faults.
        is_upright: Boxes are in the upright image, as YOLO's are; nothing has to show it.

    Returns:
        The pictures by their names in the annotations, without those that have faults.
    """
    files = _files(root, list(named), problems)
    with decode.quiet_pillow(), ThreadPoolExecutor(_THREADS) as pool:
        paths = [os.path.join(root, file) for file in files.values()]
        headers = dict(zip(files, pool.map(read_header, paths), strict=True))
    read: dict[str, Header] = {}
    for name, header in headers.items():
        if isinstance(header, str):
            problems.add(Fault.IMAGE_UNREADABLE, f"{name}: {header}")
        elif (size := named[name]) is not None and size not in (header.stored, header.shown):
            declared, seen = (f"{width} x {height}" for height, width in (size, header.shown))
            problems.add(Fault.IMAGE_SIZE, f"{name}: {declared} in the annotations, {seen} in the file")
        else:
            read[name] = header
    shown = {named[name] == header.shown for name, header in read.items() if _tells(header, named[name])}
    common = True if is_upright else shown.pop() if len(shown) == 1 else None
    owners = set(boxed)
    found: dict[str, Picture] = {}
    for name, header in read.items():
        upright = named[name] == header.shown if _tells(header, named[name]) else common
        if header.orientation == 1 or name not in owners:
            upright = True
        if upright is None:
            problems.add(Fault.IMAGE_TURNED, f"{name}: EXIF orientation {header.orientation}")
            continue
        if not upright:
            problems.remark(Remark.TURNED, name)
        found[name] = Picture(files[name], *header.shown, 1 if upright else header.orientation)
    return found


def _tells(header: Header, declared: Size | None) -> bool:
    """Whether a declared size shows which of the two frames it is of."""
    return declared is not None and header.stored != header.shown


def _files(root: Path, names: list[str], problems: Problems) -> dict[str, str]:
    """The file of each name: itself, or the only one left of that name in another folder, ending or case."""
    files = {name: name for name in names if is_inside(name) and os.path.isfile(os.path.join(root, name))}
    missing = [name for name in names if name not in files]
    if not missing:
        return files
    near = _by_stem(root, set(files.values()))
    wanted: dict[str, list[str]] = {}
    for name in missing:
        wanted.setdefault(_stem(name), []).append(name)
    for name in missing:
        rivals, there = wanted[_stem(name)], near.get(_stem(name), [])
        if len(there) > 1:  # several folders, or endings: the one that has more of the path than the last part
            there = [file for file in there if _spelled(file) == _spelled(name)] or there
        if len(there) == 1 and len(rivals) == 1:
            files[name] = there[0]
            problems.remark(Remark.RENAMED, f"{name}: {there[0]}")
        else:
            many = f" ({', '.join(there[:3])}?)" if there else ""
            problems.add(Fault.IMAGE_MISSING if is_inside(name) else Fault.IMAGE_ELSEWHERE, f"{name}{many}")
    return files


def _by_stem(root: Path, taken: set[str]) -> dict[str, list[str]]:
    """The image files of a folder that nothing names, by their names without folder, ending and case."""
    try:
        names = folders.unlabelled(root).names
    except UserError:  # none at all
        return {}
    found: dict[str, list[str]] = {}
    for name in names:
        if name not in taken:
            found.setdefault(_stem(name), []).append(name)
    return found


def _stem(name: str) -> str:
    """Without folder, ending and case; only the endings of images are endings, for a name may hold other dots."""
    stem, ending = os.path.splitext(base_name(name).lower())
    return stem if ending in folders.EXTENSIONS else stem + ending


def _spelled(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").lower()
