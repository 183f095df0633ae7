"""Images and the masks that belong to them, by their names."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from limbeck.data import folders
from limbeck.data.problems import Problems
from limbeck.segmentation.data.faults import Fault
from limbeck.segmentation.data.masks import Values

_SUFFIX = re.compile(
    r"(_mask|_masks|_label|_labels|_labelids|_labeltrainids|_l|_seg|_segmentation|_gt|_annotation|_image|_img)$"
)


class Pair(NamedTuple):
    """An image and its mask, as paths below the source's folder."""

    image: str
    mask: str


class Layout(NamedTuple):
    """What a source has; its files are not read yet.

    Attributes:
        root: Folder that the pairs are relative to.
        train: The pairs to train on; empty if there are none.
        val: The pairs to validate on; None where some are to be held back.
        values: What the numbers in the masks stand for; None where the files have to tell.
        notes: What was chosen, for the log.
    """

    root: Path
    train: tuple[Pair, ...]
    val: tuple[Pair, ...] | None
    values: Values | None
    notes: tuple[str, ...]


def match(
    shown: Mapping[str, Sequence[str]], drawn: Mapping[str, Sequence[str]], problems: Problems
) -> tuple[Pair, ...]:
    """The pairs of images and masks that have one key; what has no partner, or several, is a fault.

    Args:
        shown: The images of each key.
        drawn: The masks of each key.
        problems: Gets the faults.
    """
    found: list[Pair] = []
    for key, names in shown.items():
        theirs = drawn.get(key, ())
        if len(names) > 1:
            problems.add(Fault.IMAGE_TWICE, ", ".join(names))
        elif not theirs:
            problems.add(Fault.MISSING, names[0])
        elif len(theirs) > 1:
            problems.add(Fault.TWICE, f"{names[0]}: {', '.join(theirs)}")
        else:
            found.append(Pair(names[0], theirs[0]))
    for key, names in drawn.items():
        for name in names if key not in shown else ():
            problems.add(Fault.NO_IMAGE, name)
    return tuple(sorted(found))


def by_key(root: Path, folder: Path, suffix: re.Pattern[str] = _SUFFIX, *, only: str = "") -> dict[str, list[str]]:
    """The images of a folder, as paths below the source's, by what pairs them.

    Args:
        root: The source's folder.
        folder: The one that is listed.
        suffix: What is cut off a name without its ending, in small letters.
        only: Names that end so are listed alone.
    """
    found: dict[str, list[str]] = {}
    for name in folders.every_image(folder).part.names:
        if name.endswith(only):
            key = suffix.sub("", os.path.splitext(name)[0].lower())
            found.setdefault(key, []).append(os.path.relpath(folder / name, root))
    return found
