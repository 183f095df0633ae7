"""The boxes of a part (train or val) in arrays, and the checks that every format shares."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from limbeck.data.problems import Problems
from limbeck.detection.data.pictures import Picture, is_inside
from limbeck.detection.data.problems import Fault, Remark
from limbeck.storage.untrusted import read_image_file

EDGE = 1.0
"""Pixels that a box may reach over the edge: annotators count pixels from 0 or from 1, and round. It is cut off."""


@dataclass(frozen=True)
class BoxIndex:
    """Images and their boxes; those of image i are the rows ``starts[i]`` to ``starts[i + 1]``.

    Attributes:
        root: Folder that the names are relative to.
        names: Path of each image.
        sizes: Height and width of each image in pixels.
        starts: Where the boxes of each image begin, and the number of all boxes.
        boxes: Left, top, right, bottom, in pixels.
        labels: Class of each box.
        crowd: Whether a box is around a crowd: it is not learned, and no detection in it is counted as wrong.
        areas: Area of each object in pixels, of its outline where the annotations know that.
        classes: Names of the classes.
        bits: How many bits the values of 16-bit greyscale images use.
    """

    root: str
    names: tuple[str, ...]
    sizes: Int64[np.ndarray, "n 2"]
    starts: Int64[np.ndarray, " n+1"]
    boxes: Float64[np.ndarray, "m 4"]
    labels: Int64[np.ndarray, " m"]
    crowd: Bool[np.ndarray, " m"]
    areas: Float64[np.ndarray, " m"]
    classes: tuple[str, ...]
    bits: int = 16

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def read(self, image: int) -> bytes:
        """The bytes of an image's file.

        Raises:
            OSError: It cannot be read, or its path leaves the folder of the images.
        """
        if not is_inside(self.names[image]):
            raise OSError("its path leaves the folder of the images")
        return read_image_file(f"{self.root}/{self.names[image]}")

    def of(self, image: int) -> slice:
        """The rows of an image's boxes."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    @property
    def counts(self) -> Int64[np.ndarray, " n"]:
        """Boxes of each image."""
        return np.diff(self.starts)

    def take(self, keep: Int64[np.ndarray, " k"]) -> "BoxIndex":
        """These images alone, in this order."""
        rows = np.concatenate(
            [np.arange(int(self.starts[i]), int(self.starts[i + 1])) for i in keep] or [np.zeros(0, np.int64)]
        )
        return replace(
            self._rows(rows.astype(np.int64)),
            names=tuple(self.names[int(i)] for i in keep),
            sizes=self.sizes[keep],
            starts=_starts(self.counts[keep]),
        )

    def named(self, wanted: Sequence[str]) -> "BoxIndex":
        """All images, with the boxes of these classes alone, numbered in this order."""
        number = np.array([wanted.index(name) if name in wanted else -1 for name in self.classes], np.int64)
        kept = number[self.labels] >= 0
        counts = np.bincount(np.repeat(np.arange(len(self)), self.counts)[kept], minlength=len(self))
        narrowed = self._rows(np.flatnonzero(kept))
        return replace(narrowed, labels=number[narrowed.labels], starts=_starts(counts), classes=tuple(wanted))

    def of_classes(self, wanted: Sequence[str]) -> "BoxIndex":
        """As :meth:`named`, with the images alone that have such a box."""
        narrowed = self.named(wanted)
        return narrowed.take(np.flatnonzero(narrowed.counts > 0))

    def digest(self) -> str:
        """Short digest of all that the index holds but for the root: equal if two runs had the same boxes."""
        digest = hashlib.blake2b(repr((self.classes, self.names)).encode(), digest_size=8)
        for values in (self.sizes, self.starts, self.boxes, self.labels, self.crowd, self.areas):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def _rows(self, rows: Int64[np.ndarray, " k"]) -> "BoxIndex":
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            areas=self.areas[rows],
        )


@final
class Collector:
    """Takes the images and boxes of an annotation file, and notes what is wrong with them.

    Args:
        root: Folder of the images.
        classes: Names of the classes.
        problems: Gets the faults.
    """

    def __init__(self, root: str, classes: Sequence[str], problems: Problems) -> None:
        self._root = root
        self._classes = tuple(classes)
        self._problems = problems
        self._boxes: list[list[tuple[float, ...]]] = []
        self._seen: list[set[tuple[float, ...]]] = []
        self._pictures: list[Picture] = []
        self._lost: set[int] = set()

    def add_image(self, picture: Picture) -> int:
        """Take an image; its number."""
        self._pictures.append(picture)
        self._boxes.append([])
        self._seen.append(set())
        return len(self._pictures) - 1

    def lose(self, image: int, fault: Fault, where: str) -> None:
        """Note that a box of an image cannot be used.

        The image is left out then: what is in it and has no box would be learned, and scored, as background.
        """
        self._problems.add(fault, where)
        self._lost.add(image)

    def add_box(
        self,
        image: int,
        box: tuple[float, float, float, float],
        label: int,
        where: str,
        *,
        crowd: bool = False,
        area: float | None = None,
    ) -> None:
        """Take a box, unless something is wrong with it.

        Args:
            image: Number of the image.
            box: Left, top, right, bottom, in the frame of the annotations.
            label: Number of the class.
            where: How the report calls the box.
            crowd: Whether it is around a crowd.
            area: Area of the object; of the box where omitted.
        """
        picture = self._pictures[image]
        height, width = picture.height, picture.width
        box = picture.upright(box)
        where = f"{where} of {picture.name}"
        fault = _fault(box, height, width)
        if fault is not None:
            left, top, right, bottom = box
            seen = f"{right - left:g} x {bottom - top:g} at {left:g}, {top:g} in {width} x {height}"
            self.lose(image, fault, f"{where}: {seen}")
            return
        key = (*box, float(label), float(crowd))
        if key in self._seen[image]:
            self._problems.add(Fault.TWICE, where)
            return
        self._seen[image].add(key)
        left, top = max(0.0, box[0]), max(0.0, box[1])
        right, bottom = min(float(width), box[2]), min(float(height), box[3])
        area = (right - left) * (bottom - top) if area is None else area
        self._boxes[image].append((left, top, right, bottom, float(label), float(crowd), area))

    def index(self) -> BoxIndex:
        """What was taken, the images in the order of their names; those that lost a box are left out."""
        for image in sorted(self._lost):
            self._problems.remark(Remark.LEFT_OUT, self._pictures[image].name)
        kept = set(range(len(self._pictures))) - self._lost
        order = sorted(kept, key=lambda i: self._pictures[i].name)
        rows = np.array([row for i in order for row in self._boxes[i]], np.float64).reshape(-1, 7)
        return BoxIndex(
            root=self._root,
            names=tuple(self._pictures[i].name for i in order),
            sizes=np.array([self._pictures[i][1:3] for i in order], np.int64).reshape(-1, 2),
            starts=_starts(np.array([len(self._boxes[i]) for i in order], np.int64)),
            boxes=rows[:, :4],
            labels=rows[:, 4].astype(np.int64),
            crowd=rows[:, 5] > 0,
            areas=rows[:, 6],
            classes=self._classes,
        )


def _fault(box: tuple[float, float, float, float], height: int, width: int) -> Fault | None:
    left, top, right, bottom = box
    if not all(math.isfinite(value) for value in box):
        return Fault.NOT_FINITE
    if right < left or bottom < top:
        return Fault.NEGATIVE
    if right == left or bottom == top:
        return Fault.EMPTY
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        return Fault.OUTSIDE
    if left < -EDGE or top < -EDGE or right > width + EDGE or bottom > height + EDGE:
        return Fault.OVER_EDGE
    return None


def _starts(counts: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n+1"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
