"""From a spec to loaders: which annotations, which images of them, in what frame."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np

from limbeck.data import decode
from limbeck.data.annotated import chosen, held_back, threads
from limbeck.data.fetch import Skips
from limbeck.data.files import child
from limbeck.data.problems import Problems
from limbeck.detection import DetectionBatch
from limbeck.detection.data.coco import annotation_files, find_coco, read_coco
from limbeck.detection.data.index import BoxIndex
from limbeck.detection.data.loader import DetectionLoader, Plan, detection_loader
from limbeck.detection.data.problems import Fault, Remark
from limbeck.detection.data.spec import FORMATS, DetectionSpec
from limbeck.detection.data.transforms import Frame
from limbeck.detection.data.voc import find_sets, is_voc, read_voc
from limbeck.detection.data.yolo import LABELS, find_yolo, is_yolo, read_yolo
from limbeck.errors import UserError, did_you_mean, paths_explained

LARGEST_SIZE = 640
DIVISOR = 32
NARROW_SCALES, WIDE_SCALES = (0.8, 1.0), (0.8, 1.25)


class _Source(NamedTuple):
    """What a source has, not read yet.

    Attributes:
        name: A short name for tables.
        train: Reads the boxes of training; None if there are none.
        val: Reads those of validation.
        notes: What was chosen, for the log.
    """

    name: str
    train: Callable[[Problems], BoxIndex] | None
    val: Callable[[Problems], BoxIndex] | None
    notes: tuple[str, ...]


@paths_explained()
def open_detection(spec: DetectionSpec) -> "DetectionData":
    """Read the annotations of a spec, check them, and choose their train and val parts. A few images are decoded.

    Args:
        spec: What to open.

    Returns:
        The data, with loaders for training and validation.

    Raises:
        UserError: The source does not exist, is in no known format, or has faults that are not to be skipped.
    """
    problems = Problems()
    found = _find(spec.source)
    if found.train is None:
        raise UserError(f'"{spec.source}" has images for validation and none for training')
    train, notes = found.train(problems), list(found.notes)
    second = found.val
    if spec.val is not None:
        other = _find(spec.val)
        second = other.val or other.train
        notes += other.notes
    val = None if second is None else _matched(second(problems), train, problems, notes)
    notes += problems.settle(spec.source, spec.on_bad)
    if spec.classes:
        for name in spec.classes:
            if name not in train.classes:
                raise UserError(f'no class "{name}" in "{spec.source}"{did_you_mean(name, train.classes)}')
        train, val = train.of_classes(spec.classes), None if val is None else val.of_classes(spec.classes)
        notes.append(f"classes {', '.join(spec.classes)} alone, in the images that have one")
    if val is None:
        train, val = held_back(train, spec.val_share)
        notes.append(f"{len(val)} images held back for validation, chosen by a hash of their names")
    if both := len(_paths(train) & _paths(val)):
        notes.append(f"{both} images are in train and in val: their figures do not hold for new images")
    train = chosen(train, spec.subset, spec.train_limit)
    for part, what in ((train, "training"), (val, "validation")):
        if not len(part.boxes):
            why = "".join(f"\n  {line}" for line in problems.lines())
            raise UserError(f'no boxes left for {what} in "{spec.source}"{why}')
    absent = sorted(set(range(len(train.classes))) - set(train.labels[~train.crowd].tolist()))
    if absent:
        names = ", ".join(train.classes[number] for number in absent[:5])
        notes.append(f"{len(absent)} classes have no box to learn from ({names}{', ...' if len(absent) > 5 else ''})")
    if train.crowd.any():
        notes.append(f"{int(train.crowd.sum())} boxes around crowds are not learned")
    return DetectionData(spec, found.name, train, val, notes)


@final
class DetectionData:
    """Opened images with boxes.

    Attributes:
        name: A short name for tables.
        classes: Names of the classes in the order of their numbers.
        size: Side of the square frame, or of the shorter side of the images.
        frame: How images are laid into a frame.
        fingerprint: Equal if another run had the same images and boxes in the same parts.
        bits: How many bits the values of 16-bit greyscale images use.
        notes: What was chosen and why, for the log.
    """

    def __init__(
        self,
        spec: DetectionSpec,
        name: str,
        train: BoxIndex,
        val: BoxIndex,
        notes: list[str],
        *,
        bits: int | None = None,
    ) -> None:
        """Use `open_detection`."""
        told: tuple[str, ...] = ()
        if bits is None:
            sampled = train if len(train) else val
            bits, told = decode.used_bits(sampled.read, len(sampled))
        train, val = replace(train, bits=bits), replace(val, bits=bits)
        self.bits = bits
        self.name = name
        self.classes = train.classes
        self.size = spec.size or _usual_size(train if len(train) else val)
        self.frame = Frame(self.size, spec.longest)
        self.fingerprint = hashlib.blake2b((train.digest() + val.digest()).encode(), digest_size=8).hexdigest()
        self._spec = spec
        self._parts = {"train": train, "val": val}
        self._skips = Skips(spec.skip_bad_images)
        self.notes = (
            *notes,
            *told,
            f"{len(train.boxes)} boxes in train, {len(val.boxes)} in val, {len(self.classes)} classes",
        )

    @property
    def cropped(self) -> None:
        """None: no random crops are taken."""
        return None

    @property
    def train_count(self) -> int:
        """Training images."""
        return len(self._parts["train"])

    @property
    def val_count(self) -> int:
        """Validation images."""
        return len(self._parts["val"])

    @property
    def skipped(self) -> tuple[str, ...]:
        """Unreadable images met so far, each with the reason."""
        return tuple(f"{name}: {why}" for name, why in self._skips.found.items())

    def content(self) -> str | None:
        """None: the files are decoded anew in each pass, and their bytes are not digested."""
        return None

    def part(self, which: Literal["train", "val"]) -> BoxIndex:
        """The images and boxes of a part."""
        return self._parts[which]

    def train_loader(self, *, batch_size: int, seed: int, divisor: int = DIVISOR) -> DetectionLoader:
        """Shuffled, augmented batches; the last short one is dropped.

        Args:
            batch_size: Of the global batch, which the processes share.
            seed: Of the order and the augmentation.
            divisor: Height and width of a batch are multiples of it.

        Raises:
            UserError: The batch is larger than the set.
        """
        augmented = self._spec.augmentation != "none"
        usual = WIDE_SCALES if self._spec.longest is None else NARROW_SCALES
        plan = Plan(
            self._parts["train"],
            self.frame,
            batch_size,
            divisor=divisor,
            seed=seed,
            training=True,
            scales=(self._spec.scales or usual) if augmented else None,
            flip=augmented and self._spec.flip,
            workers=threads(self._spec.workers),
        )
        return detection_loader(plan, self._skips)

    def val_loader(self, *, batch_size: int, divisor: int = DIVISOR) -> DetectionLoader:
        """All validation images in their order, not augmented; the last batch may be short."""
        return self._as_they_are(self._parts["val"], batch_size, divisor)

    def sample(self, which: Literal["train", "val"], count: int, *, divisor: int = DIVISOR) -> DetectionBatch:
        """A fixed choice of images, the same in every run over these data, as they are: not augmented."""
        count = min(count, len(self._parts[which]))
        chosen = np.sort(np.random.default_rng(0).permutation(len(self._parts[which]))[:count])
        return self.images(which, chosen.tolist(), divisor=divisor)

    def images(
        self, which: Literal["train", "val"], chosen: Sequence[int], *, divisor: int = DIVISOR
    ) -> DetectionBatch:
        """The images of these numbers as one batch, as they are; ``index`` says which of ``chosen`` each one is."""
        part = self._parts[which].take(np.asarray(chosen, np.int64))
        return next(iter(self._as_they_are(part, len(chosen), divisor)))

    def _as_they_are(self, part: BoxIndex, batch_size: int, divisor: int) -> DetectionLoader:
        plan = Plan(part, self.frame, batch_size, divisor=divisor, workers=threads(self._spec.workers))
        return detection_loader(plan, self._skips)


@paths_explained()
def open_for_scoring(spec: DetectionSpec, classes: tuple[str, ...], *, bits: int | None = None) -> "DetectionData":
    """Images to score a trained detector on: the source's validation part, or all of it if it has none.

    Args:
        spec: What to open; its ``val`` and what chooses training images are not read.
        classes: Of the detector. Boxes get their numbers by the names of their classes.
        bits: How many bits the values of 16-bit greyscale images use. None: found by a sample of them.

    Returns:
        The data, with all images in the validation part.

    Raises:
        UserError: The source does not exist, is in no known format, has faults, or no box of these classes.
    """
    problems = Problems()
    found = _find(spec.source)
    read = found.val or found.train
    assert read is not None  # a source has one of them
    part = _numbered(read(problems), classes)
    val = part.named(classes)
    notes = [*found.notes, *problems.settle(spec.source, spec.on_bad)]
    if missing := [name for name in classes if name not in part.classes]:
        notes.append(f"{len(missing)} classes of the detector are not named here ({_some(missing)})")
    if unknown := [name for name in part.classes if name not in classes]:
        lost = len(part.boxes) - len(val.boxes)
        what = f"{len(unknown)} classes are unknown to the detector"
        notes.append(f"{what} ({_some(unknown)}): their {lost} boxes are not scored")
    if not len(val.boxes):
        found_here = _some(part.classes) or "none"
        raise UserError(f'"{spec.source}" has no box of the classes {_some(classes)}; its classes are {found_here}')
    return DetectionData(spec, found.name, val.take(np.zeros(0, np.int64)), val, notes, bits=bits)


def _numbered(part: BoxIndex, classes: tuple[str, ...]) -> BoxIndex:
    """A part with class names: those of training, by their numbers, if its annotations have none (YOLO)."""
    unnamed = part.classes == tuple(str(number) for number in range(len(part.classes)))
    return replace(part, classes=classes) if unnamed and len(part.classes) <= len(classes) else part


def _matched(part: BoxIndex, train: BoxIndex, problems: Problems, notes: list[str]) -> BoxIndex:
    """A validation part with the class numbers of training, by names. A box of a class that is new is a fault."""
    part = _numbered(part, train.classes)
    if missing := [name for name in train.classes if name not in part.classes]:
        notes.append(f"{len(missing)} classes of training are not in the validation annotations ({_some(missing)})")
    is_new = np.array([name not in train.classes for name in part.classes], bool)[part.labels]
    images = np.repeat(np.arange(len(part)), part.counts)
    for row in np.flatnonzero(is_new):
        problems.add(
            Fault.CATEGORY, f'"{part.classes[part.labels[row]]}" in {part.names[images[row]]}, not in training'
        )
    for image in sorted(set(images[is_new].tolist())):
        problems.remark(Remark.LEFT_OUT, part.names[image])
    return part.take(np.setdiff1d(np.arange(len(part)), images[is_new])).named(train.classes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _paths(part: BoxIndex) -> set[str]:
    return {os.path.abspath(os.path.join(part.root, name)) for name in part.names}


def _find(source: str) -> _Source:
    kind, place = split_source(source)
    notes: tuple[str, ...] = ()
    if kind == "":
        kind, notes = _recognized(place)
    name = place.resolve().name.removesuffix(".json")
    match kind:
        case "coco":
            train, val = (None if file is None else partial(read_coco, file) for file in find_coco(place))
        case "yolo":
            layout = find_yolo(place)
            notes += layout.notes
            train, val = (
                partial(read_yolo, places, layout.classes, has_points=layout.has_points) if places else None
                for places in (layout.train, layout.val)
            )
        case _:
            sets = find_sets(place)
            train = partial(read_voc, place, sets[0])
            val = None if sets[1] is None else partial(read_voc, place, sets[1])
    return _Source(name, train, val, notes)


def split_source(source: str) -> tuple[str, Path]:
    """Format (empty where it is not said) and path of a source.

    Example:
        >>> split_source("coco:instances.json")
        ('coco', PosixPath('instances.json'))
    """
    kind, colon, place = source.partition(":")
    known = [form.partition(":")[0] for form in FORMATS]
    if colon and kind in known:
        return kind, Path(place).expanduser()
    if colon and "/" not in kind and not Path(source).exists() and len(kind) > 1:
        raise UserError(
            f'unknown format "{kind}" in "{source}"{did_you_mean(kind, known)}: one of {", ".join(FORMATS)}'
        )
    return "", Path(source).expanduser()


def _recognized(place: Path) -> tuple[str, tuple[str, ...]]:
    """The format that a path shows, and a note that says so."""
    if not place.exists():
        raise UserError(f'data "{place}" does not exist (detection reads {", ".join(FORMATS)}, or a path of these)')
    if place.is_file() and place.suffix.lower() == ".json":
        kind, why = "coco", "a JSON file"
    elif is_voc(place):
        kind, why = "voc", "it has annotations in XML and images"
    elif place.is_dir() and (files := annotation_files(place)) and not _is_beside_labels(files[0], place):
        kind, why = "coco", f"it has {files[0].relative_to(place)}"
    elif is_yolo(place):
        kind, why = "yolo", "a YAML file" if place.is_file() else "it has images and labels"
    else:
        raise UserError(f'"{place}" is in no format that detection knows: expected {", ".join(FORMATS)}')
    return kind, (f'"{place}" is read as {kind}: {why}',)


def _is_beside_labels(file: Path, place: Path) -> bool:
    """Whether a JSON file lies in the folder of a YOLO data set, where it can be anything."""
    return file.parent == place and not file.name.startswith("boxes-") and child(place, LABELS) is not None


def _usual_size(part: BoxIndex) -> int:
    """The median longer side, up to a multiple of 32, at most 640."""
    side = int(np.median(part.sizes.max(1)))
    return min(LARGEST_SIZE, max(DIVISOR, -(-side // DIVISOR) * DIVISOR))
