"""The folders of Pascal VOC and of Cityscapes, as they are unpacked, with their classes."""

import re
from pathlib import Path

from limbeck.data.files import child, read_text
from limbeck.data.problems import Problems
from limbeck.errors import UserError
from limbeck.segmentation.batch import VOID
from limbeck.segmentation.data.masks import Values
from limbeck.segmentation.data.pairs import Layout, Pair, by_key, match

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Names by the numbers of the masks' palette; 255 is the seam around objects."""

CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""The 19 classes that are scored, by their numbers in the files ``labelIds``; the others are void."""

_MOST_ID = 34
_IMAGE = re.compile("_leftimg8bit$")
_MASK = re.compile("_gtfine_labelids$")


def find_published(root: Path, void: frozenset[int], problems: Problems) -> Layout | None:
    """The pairs of a folder that is laid out as Pascal VOC's or Cityscapes'; None where it is neither.

    Args:
        root: The folder.
        void: Numbers in the masks that are no class, besides its own.
        problems: Gets images without a mask and masks without an image.
    """
    images, masks = child(root, "leftImg8bit"), child(root, "gtFine")
    if images is not None and masks is not None:
        return _cityscapes(root, images, masks, void, problems)
    images, masks = child(root, "JPEGImages"), child(root, "SegmentationClass")
    lists = root / "ImageSets" / "Segmentation"
    return _voc(root, images, masks, lists, void) if images is not None and masks is not None else None


def _cityscapes(root: Path, images: Path, masks: Path, void: frozenset[int], problems: Problems) -> Layout:
    found: dict[str, tuple[Pair, ...]] = {}
    for part in ("train", "val"):
        if (images / part).is_dir() and (masks / part).is_dir():
            shown = by_key(root, images / part, _IMAGE, only="_leftImg8bit.png")
            drawn = by_key(root, masks / part, _MASK, only="_gtFine_labelIds.png")
            found[part] = match(shown, drawn, problems)
    void |= {VOID, *range(_MOST_ID)} - CITYSCAPES.keys()
    numbers = tuple(number for number in CITYSCAPES if number not in void)
    values = Values(tuple(CITYSCAPES[number] for number in numbers), numbers, void, {})
    return Layout(root, found.get("train", ()), found.get("val"), values, ("Cityscapes' folders: 19 classes",))


def _voc(root: Path, images: Path, masks: Path, lists: Path, void: frozenset[int]) -> Layout:
    found: dict[str, tuple[Pair, ...]] = {}
    for part in ("train", "val"):
        if (lists / f"{part}.txt").is_file():
            names = read_text(lists / f"{part}.txt").split()
            found[part] = tuple(Pair(f"{images.name}/{name}.jpg", f"{masks.name}/{name}.png") for name in names)
    if not found:
        raise UserError(
            f'"{root}" has JPEGImages and SegmentationClass: expected ImageSets/Segmentation/train.txt, too'
        )
    void |= {VOID}
    numbers = tuple(number for number in range(len(VOC)) if number not in void)
    values = Values(tuple(VOC[number] for number in numbers), numbers, void, {})
    return Layout(root, found.get("train", ()), found.get("val"), values, ("Pascal VOC's folders: 21 classes",))
