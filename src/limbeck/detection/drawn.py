"""Validation images with the boxes of student and teacher, as they are shown on the page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from limbeck.logs.records import Record, mapping, number, numbers, records
from limbeck.report.samples import image_bytes

MODELS = ("student", "teacher")
MOST_IMAGES = 12
MOST_BOXES = 60  # of a kind on one image
MOST_BYTES = 400_000  # of one image
MOST_PIXELS = 1024  # of a side
MOST_NAMED = 4  # boxes that are named below an image
SIGNATURE = b"\xff\xd8\xff"
HEADINGS = {
    "missed": "The teacher finds more",
    "gained": "The student finds more",
    "neither": "Neither finds all",
    "both": "All found, and nothing else",
}
ALONE = {"neither": "Not all are found"}
"""Headings of a run without a teacher, where they differ."""


@dataclass(frozen=True)
class Box:
    """A box on an image, in its pixels.

    Attributes:
        x: Left.
        y: Top.
        width: Across.
        height: Down.
        style: The class that draws it: "there", "crowd", "right" or "wrong".
        tip: What it is.
    """

    x: float
    y: float
    width: float
    height: float
    style: str
    tip: str


@dataclass(frozen=True)
class Panel:
    """What one model finds on an image.

    Attributes:
        who: "student" or "teacher".
        boxes: What is there, then what is found.
        named: Name of what is found, its score in percent, and whether it is right; the surest first.
        more: How many boxes are not named.
        words: The same in a sentence, for those who do not see it.
    """

    who: str
    boxes: tuple[Box, ...]
    named: tuple[tuple[str, str, bool], ...]
    more: int
    words: str


@dataclass(frozen=True)
class Drawn:
    """One image.

    Attributes:
        jpeg: The image file in base64, checked to be one.
        width: Pixels.
        height: Pixels.
        heading: What it is an example of.
        labels: What is on it.
        panels: One for each model.
    """

    jpeg: str
    width: int
    height: int
    heading: str
    labels: str
    panels: tuple[Panel, ...]


def drawn_images(boxes: Record) -> list[Drawn]:
    """The images that can be shown; those that are damaged are left out."""
    names = class_names(boxes)
    who = [name for name in MODELS if mapping(boxes, "models", name)]
    found = (_drawn(item, names, who) for item in records(boxes, "images")[:MOST_IMAGES])
    return [image for image in found if image is not None]


def cuts(boxes: Record) -> list[tuple[str, float]]:
    """For each model the score from which on its boxes are drawn."""
    found = [(who, number(boxes, "models", who, "cut")) for who in MODELS]
    return [(who, cut) for who, cut in found if cut is not None]


def class_names(boxes: Record) -> list[str]:
    """The names of the classes, in the order of their numbers."""
    listed = boxes.get("classes")
    return [str(name) for name in cast(list[object], listed)] if isinstance(listed, list) else []


def _drawn(item: Record, names: Sequence[str], who: Sequence[str]) -> Drawn | None:
    data, width, height = (
        image_bytes(item.get("jpeg"), SIGNATURE, MOST_BYTES),
        number(item, "width"),
        number(item, "height"),
    )
    if data is None or width is None or height is None or not (0 < width <= MOST_PIXELS and 0 < height <= MOST_PIXELS):
        return None
    size = (int(width), int(height))
    there = [
        (box, _name(entry, names), bool(entry.get("crowd")))
        for entry in records(item, "truth")[:MOST_BOXES]
        if (box := _inside(entry, size)) is not None
    ]
    known = tuple(
        Box(*box, "crowd" if crowd else "there", f"there: {name}{', a crowd' if crowd else ''}")
        for box, name, crowd in there
    )
    counts = {name: sum(1 for _, other, _ in there if other == name) for _, name, _ in there}
    labels = ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items())
    kind = str(item.get("kind"))
    heading = (ALONE if len(who) == 1 else {}).get(kind, HEADINGS.get(kind, ""))
    panels = tuple(_panel(one, records(item, one), known, names, size) for one in who)
    return Drawn(base64.b64encode(data).decode("ascii"), *size, heading, labels or "nothing", panels)


def _panel(
    who: str, entries: Sequence[Record], known: tuple[Box, ...], names: Sequence[str], size: tuple[int, int]
) -> Panel:
    boxes: list[Box] = []
    named: list[tuple[str, str, bool]] = []
    for entry in entries[:MOST_BOXES]:
        box, score = _inside(entry, size), number(entry, "score")
        if box is None or score is None:
            continue
        right, percent = bool(entry.get("right")), f"{100 * min(max(score, 0.0), 1.0):.0f}%"
        name = _name(entry, names)
        style = "right" if right else "wrong"
        boxes.append(Box(*box, style, f"{who}: {name}, {percent}, {style}"))
        named.append((name, percent, right))
    says = "; ".join(f"{name}, {percent}, {'right' if right else 'wrong'}" for name, percent, right in named)
    words = f"{who.capitalize()}: {says or 'nothing'}. There: {'; '.join(box.tip[7:] for box in known) or 'nothing'}."
    return Panel(who, (*known, *boxes), tuple(named[:MOST_NAMED]), max(0, len(named) - MOST_NAMED), words)


def _inside(entry: Record, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Left, top, width and height, cut off at the edges; None where that leaves nothing."""
    corners = numbers(entry, "box")
    if len(corners) != 4:
        return None
    left, right = (min(max(corners[i], 0.0), float(size[0])) for i in (0, 2))
    top, bottom = (min(max(corners[i], 0.0), float(size[1])) for i in (1, 3))
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def _name(entry: Record, names: Sequence[str]) -> str:
    label = number(entry, "label")
    if label is None:
        return "?"
    return names[int(label)] if 0 <= label < len(names) else f"class {label:.0f}"
