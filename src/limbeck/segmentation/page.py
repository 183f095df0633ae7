"""What segmentation adds to the page of a run: figures by class, and images with the masks of both models."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from limbeck.logs.records import Record, mapping, number, numbers, records
from limbeck.report.bars import bar_chart
from limbeck.report.chart import Bar, Chart, present
from limbeck.report.page import MakeSection, Section, fill
from limbeck.report.record import RunRecord, read_json
from limbeck.report.samples import image_bytes
from limbeck.report.words import PERCENT

MODELS = ("student", "teacher")
PANELS = ("truth", *MODELS)
MOST_ROWS = 20  # classes, or confusions, that are drawn
MOST_IMAGES = 6
MOST_BYTES = 400_000  # of one image
MOST_PIXELS = 1024  # of a side
SIGNATURE = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Panel:
    """An image under one mask.

    Attributes:
        who: "truth", "student" or "teacher".
        jpeg: The image file in base64, checked to be one.
        right: The share of its pixels that are right, in words; empty of the truth.
    """

    who: str
    jpeg: str
    right: str


@dataclass(frozen=True)
class Shown:
    """One image under each mask, of so many pixels."""

    width: int
    height: int
    panels: tuple[Panel, ...]


def sections(record: RunRecord, section: MakeSection) -> list[Section]:
    """The sections of ``masks.json``; empty ones where the run has no such file."""
    masks = read_json(record.folder / "masks.json") if record.folder is not None else {}
    template, images = Path(__file__).with_name("masks.html.j2"), shown_images(masks)
    ahead = "the teacher is furthest ahead" if mapping(masks, "models", "teacher") else "most pixels are wrong"
    intro = f"Validation images on which {ahead}. The share is that of the pixels with a class that are right."
    return [
        section("s-classes", "Classes", lambda: class_charts(masks), ""),
        section(
            "s-masks",
            "Images with masks",
            lambda: fill(template, images=images, legend=_legend(masks)) if images else (),
            intro,
        ),
    ]


def class_charts(masks: Record) -> list[Chart]:
    """Intersection over union by class, and what the student takes for something else."""
    models = [(who, mapping(masks, "models", who)) for who in MODELS if mapping(masks, "models", who)]
    names = _names(masks)
    rows = [Bar(name, [_at(model.get("iou"), place) for _, model in models]) for place, name in enumerate(names)]
    rows = [row for row in rows if any(value is not None for value in row.values)]
    rows.sort(key=_behind)
    order = "Those first in which the teacher is furthest ahead" if len(models) > 1 else "The weakest first"
    series = [(who, who) for who, _ in models]
    classes = bar_chart(
        "Intersection over union of each class",
        rows[:MOST_ROWS],
        series=series,
        x_title="intersection over union",
        fmt=PERCENT,
        id="classes-iou",
        note=f"{order}.",
        unseen=rows[MOST_ROWS:],
    )
    taken = _confusions(names, mapping(masks, "models", "student"))
    confusions = bar_chart(
        "What the student takes for what",
        taken[:MOST_ROWS],
        series=[("student", "student")],
        x_title="share of the pixels of the first class",
        fmt=PERCENT,
        id="classes-confusion",
        note="The first class is there, the second is predicted.",
        unseen=taken[MOST_ROWS : 2 * MOST_ROWS],
    )
    return present([classes, confusions])


def shown_images(masks: Record) -> list[Shown]:
    """The images that can be shown; those that are damaged are left out."""
    found = (_shown(item) for item in records(masks, "images")[:MOST_IMAGES])
    return [image for image in found if image is not None]


def _shown(item: Record) -> Shown | None:
    width, height = number(item, "width"), number(item, "height")
    if width is None or height is None or not (0 < width <= MOST_PIXELS and 0 < height <= MOST_PIXELS):
        return None
    panels: list[Panel] = []
    for who in PANELS:
        data = image_bytes(mapping(item, "panels").get(who), SIGNATURE, MOST_BYTES)
        if data is not None:
            right = number(item, "right", who)
            words = "" if right is None else f"{100 * min(max(right, 0.0), 1.0):.0f}% right"
            panels.append(Panel(who, base64.b64encode(data).decode("ascii"), words))
    return Shown(int(width), int(height), tuple(panels)) if panels else None


def _names(masks: Record) -> list[str]:
    listed = masks.get("classes")
    return [str(name) for name in cast(list[object], listed)] if isinstance(listed, list) else []


def _legend(masks: Record) -> list[tuple[str, str]]:
    """Name and color of each class."""
    listed = masks.get("colors")
    found: list[tuple[str, str]] = []
    for name, color in zip(_names(masks), cast(list[object], listed) if isinstance(listed, list) else [], strict=False):
        channels = numbers({"": color}, "")
        if len(channels) == 3:
            found.append((name, f"rgb({','.join(str(min(max(int(value), 0), 255)) for value in channels)})"))
    return found


def _at(listed: object, place: int) -> float | None:
    values = cast(list[object], listed) if isinstance(listed, list) else []
    return number({"": values[place]}, "") if place < len(values) else None


def _behind(row: Bar) -> float:
    first, *others = (value or 0.0 for value in row.values)
    return first - others[0] if others else first


def _confusions(names: Sequence[str], model: Record) -> list[Bar]:
    """Pairs of classes, those first of which most pixels are taken for one another."""
    matrix = model.get("confusion")
    found: list[Bar] = []
    for place, row in enumerate(cast(list[object], matrix)[: len(names)] if isinstance(matrix, list) else []):
        counts = numbers({"": row}, "")
        total = sum(counts)
        if len(counts) != len(names) or total <= 0:
            continue
        for other, count in enumerate(counts):
            if other != place and count > 0:
                found.append(Bar(f"{names[place]}: {names[other]}", [count / total]))
    return sorted(found, key=lambda bar: -(bar.values[0] or 0.0))
