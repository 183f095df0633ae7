"""Images on which student and teacher disagree, as they are shown on the page."""

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from limbeck.logs.records import Record, number, records
from limbeck.report.record import RunRecord

MOST_SAMPLES = 24
MOST_BYTES = 100_000  # of one image: 96 x 96 pixels are less than 30,000
MOST_PIXELS = 1024  # of a side
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Guess:
    """A class, how sure a model is of it, and whether it is right."""

    name: str
    share: float
    right: bool

    @property
    def percent(self) -> str:
        """For instance ``62%``."""
        return f"{100 * self.share:.0f}%"


@dataclass(frozen=True)
class Sample:
    """One image with the first classes of both models.

    Attributes:
        png: The image file in base64, checked to be one.
        width: Pixels.
        height: Pixels.
        label: Name of its class.
        alt: What the image is, for those who do not see it.
        student: The student's first classes, the surest first.
        teacher: Those of the teacher.
    """

    png: str
    width: int
    height: int
    label: str
    alt: str
    student: tuple[Guess, ...]
    teacher: tuple[Guess, ...]


def samples(record: RunRecord) -> list[Sample]:
    """The samples that can be shown; those that are damaged are left out."""
    listed = record.samples.get("classes")
    names = [str(name) for name in cast(list[object], listed)] if isinstance(listed, list) else []
    found = (_sample(item, names) for item in records(record.samples, "samples")[:MOST_SAMPLES])
    return [sample for sample in found if sample is not None]


def _sample(item: Record, names: Sequence[str]) -> Sample | None:
    image = _png(item.get("png"))
    if image is None:
        return None
    png, width, height = image
    label = _name(item.get("label"), names)
    student, teacher = (_guesses(item.get(who), names, label) for who in ("student", "teacher"))
    index = number(item, "index")
    alt = f"Validation image{'' if index is None else f' {index:.0f}'}, labelled {label}"
    says = [f"{who} says {first[0].name}" for who, first in (("student", student), ("teacher", teacher)) if first]
    return Sample(png, width, height, label, f"{alt}: {', '.join(says)}" if says else alt, student, teacher)


def _png(text: object) -> tuple[str, int, int] | None:
    """The base64 text without anything else in it, with the size of the image; None where it is no PNG."""
    data = image_bytes(text, SIGNATURE, MOST_BYTES)
    if data is None or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    if not (0 < width <= MOST_PIXELS and 0 < height <= MOST_PIXELS):
        return None
    return base64.b64encode(data).decode("ascii"), width, height


def image_bytes(text: object, signature: bytes, most: int) -> bytes | None:
    """The file that a base64 text holds; None where it is none, too large, or does not begin as its format does."""
    if not isinstance(text, str):
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) <= most and data.startswith(signature) else None


def _name(value: object, names: Sequence[str]) -> str:
    """A class's name, of its number or as it stands."""
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return f"class {value}" if isinstance(value, int) else str(value or "?")


def _guesses(value: object, names: Sequence[str], label: str) -> tuple[Guess, ...]:
    found: list[Guess] = []
    for pair in cast(list[object], value) if isinstance(value, list) else []:
        parts = cast(list[object], pair) if isinstance(pair, list) else []
        share = number({"": parts[1]}, "") if len(parts) == 2 else None
        if share is not None:
            name = _name(parts[0], names)
            found.append(Guess(name, min(max(share, 0.0), 1.0), name == label))
    return tuple(found[:3])
