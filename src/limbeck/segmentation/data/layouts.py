"""Where the images and masks of a source are: which folders, which pairs, which classes."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

from limbeck.data import folders, layout
from limbeck.data.files import child, read_text
from limbeck.data.problems import Problems
from limbeck.errors import UserError
from limbeck.segmentation.batch import MOST_CLASSES, VOID
from limbeck.segmentation.data.masks import Color, Values
from limbeck.segmentation.data.pairs import Layout, by_key, match
from limbeck.segmentation.data.published import find_published

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos")
MASKS = ("masks", "mask", "labels", "label", "annotations", "annots", "segmentation", "segmentations", "gt", "targets")
BESIDE = ("annot", "_annot", "annots", "_labels", "_masks", "-masks", "-labels")
"""What the name of a folder of masks adds to that of its images (``train``, ``trainannot``)."""

LISTS = ("classes.txt", "labels.txt", "class_names.txt", "class_dict.csv", "classes.csv")
NO_CLASS = ("void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown")
LAYOUTS = (
    "known layouts: FOLDER/images and FOLDER/masks; FOLDER/train/images and FOLDER/train/masks, with val; "
    "FOLDER/images/train and FOLDER/masks/train; FOLDER/train and FOLDER/trainannot; Pascal VOC's; Cityscapes'"
)


def find_layout(source: str, void: Iterable[int], problems: Problems) -> Layout:
    """Find the pairs of a folder.

    Images and masks are paired by their paths without ending, where a mask may end in ``_mask``, ``_L`` and the like.

    Args:
        source: The folder.
        void: Numbers in the masks that are no class.
        problems: Gets images without a mask and masks without an image.

    Raises:
        UserError: It is no such folder, or its list of classes cannot be read.
    """
    root = Path(source).expanduser()
    if not root.is_dir():
        raise UserError(f'data "{source}" is not a folder; {LAYOUTS}')
    if (published := find_published(root, frozenset(void), problems)) is not None:
        return published
    values = _values(root, frozenset(void))
    parts = layout.choose(folders.folders_in(root))
    found, notes = _parted(root, parts)
    pairs = {part: match(by_key(root, both[0]), by_key(root, both[1]), problems) for part, both in found.items()}
    if "all" in pairs:
        return Layout(root, pairs["all"], None, values, notes)
    return Layout(root, pairs.get("train", ()), pairs.get("val"), values, notes)


Folders = tuple[Path, Path]
"""A folder of images and one of masks."""


def _parted(root: Path, parts: layout.Chosen) -> tuple[dict[str, Folders], tuple[str, ...]]:
    """The folders of each part, ``all`` where there are no parts, and what was chosen."""
    inside: dict[str, Folders] = {}
    for part, name in (("train", parts.train), ("val", parts.val)):
        if name is not None and (both := _images_and_masks(root / name) or _beside(root, name)) is not None:
            inside[part] = both
    if inside:
        return inside, parts.notes
    both = _images_and_masks(root)
    if both is None:
        there = folders.some(folders.folders_in(root)) or "no folders"
        raise UserError(f'no images with masks in "{root}" ({there}); {LAYOUTS}')
    below = [layout.choose(folders.folders_in(folder)) for folder in both]
    if below[0].train is None or below[1].train is None:
        return {"all": both}, ()
    for part, names in (("train", [b.train for b in below]), ("val", [b.val for b in below])):
        if names[0] is not None and names[1] is not None:
            inside[part] = both[0] / names[0], both[1] / names[1]
    return inside, below[0].notes


def _images_and_masks(folder: Path) -> Folders | None:
    images, masks = child(folder, *IMAGES), child(folder, *MASKS)
    return None if images is None or masks is None else (images, masks)


def _beside(root: Path, name: str) -> Folders | None:
    masks = child(root, *(f"{name}{ending}" for ending in BESIDE))
    return None if masks is None else (root / name, masks)


def _values(root: Path, void: frozenset[int]) -> Values | None:
    """What a list of classes says; None where there is none."""
    path = next((root / name for name in LISTS if (root / name).is_file()), None)
    if path is None:
        return None
    read: Callable[[Path], tuple[list[str], dict[Color, int]]] = _table if path.suffix == ".csv" else _lines
    names, colors = read(path)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f'"{path}" has the class "{twice}" twice: expected each once')
    void = void | {number for number, name in enumerate(names) if name.lower() in NO_CLASS}
    void |= {VOID} if len(names) <= VOID else set()
    numbers = tuple(number for number in range(len(names)) if number not in void)
    if not 2 <= len(numbers) <= MOST_CLASSES:
        raise UserError(f'"{path}" names {len(numbers)} classes: expected 2 to {MOST_CLASSES}, a line each')
    return Values(tuple(names[number] for number in numbers), numbers, frozenset(void), colors)


def _lines(path: Path) -> tuple[list[str], dict[Color, int]]:
    """A class a line, the first one number 0."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()], {}


def _table(path: Path) -> tuple[list[str], dict[Color, int]]:
    """Name, red, green and blue of a class a line, below a line of titles."""
    names: list[str] = []
    colors: dict[Color, int] = {}
    for line in list(csv.reader(read_text(path).splitlines()))[1:]:
        try:
            name, red, green, blue = (cell.strip() for cell in line[:4])
            color = int(red), int(green), int(blue)
        except ValueError:
            raise UserError(f'"{path}": expected NAME,RED,GREEN,BLUE, got "{",".join(line)}"') from None
        if color in colors:
            raise UserError(f'"{path}" has the color {" ".join(map(str, color))} twice: expected each once')
        colors[color] = len(names)
        names.append(name)
    return names, colors
