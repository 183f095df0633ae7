"""From a spec to loaders: which annotations, which images of them, in what frame."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np

from limbeck.data.detection.coco import read_coco
from limbeck.data.detection.index import BoxIndex
from limbeck.data.detection.loader import DetectionLoader, Plan
from limbeck.data.detection.problems import Problems
from limbeck.data.detection.spec import FORMATS, DetectionSpec
from limbeck.data.detection.transforms import Frame
from limbeck.data.detection.voc import find_sets, read_voc
from limbeck.data.detection.yolo import find_yolo, read_yolo
from limbeck.data.fetch import Skips
from limbeck.detection import DetectionBatch
from limbeck.errors import UserError, did_you_mean

LARGEST_SIZE = 640
DIVISOR = 32
NARROW_SCALES, WIDE_SCALES = (0.8, 1.0), (0.8, 1.25)


class _Parts(NamedTuple):
    name: str
    train: BoxIndex
    val: BoxIndex | None
    notes: tuple[str, ...]


def open_detection(spec: DetectionSpec) -> "DetectionData":
    """Read the annotations of a spec, check them, and choose their train and val parts. No image is decoded.

    Args:
        spec: What to open.

    Returns:
        The data, with loaders for training and validation.

    Raises:
        UserError: The source does not exist, is in no known format, or has faults that are not to be skipped.
    """
    found = _find(spec)
    notes = list(found.notes)
    train, val = found.train, found.val
    if spec.classes:
        for name in spec.classes:
            if name not in train.classes:
                raise UserError(f'no class "{name}" in "{spec.source}"{did_you_mean(name, train.classes)}')
        train, val = train.of_classes(spec.classes), None if val is None else val.of_classes(spec.classes)
        notes.append(f"classes {', '.join(spec.classes)} alone, in the images that have one")
    if val is None:
        train, val = _held_back(train, spec.val_share)
        notes.append(f"{len(val)} images held back for validation, chosen by a hash of their names")
    train = _chosen(train, spec)
    for part, what in ((train, "training"), (val, "validation")):
        if not len(part.boxes):
            raise UserError(f'no boxes left for {what} in "{spec.source}"')
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
        notes: What was chosen and why, for the log.
    """

    def __init__(self, spec: DetectionSpec, name: str, train: BoxIndex, val: BoxIndex, notes: list[str]) -> None:
        """Use `open_detection`."""
        self.name = name
        self.classes = train.classes
        self.size = spec.size or _usual_size(train)
        self.frame = Frame(self.size, spec.longest)
        self.fingerprint = hashlib.blake2b((train.digest() + val.digest()).encode(), digest_size=8).hexdigest()
        self._spec = spec
        self._parts = {"train": train, "val": val}
        self._skips = Skips(spec.skip_bad_images)
        self.notes = (
            *notes,
            f"{len(train.boxes)} boxes in train, {len(val.boxes)} in val, {len(self.classes)} classes",
        )

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
            workers=_workers(self._spec),
        )
        return DetectionLoader(plan, self._skips)

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
        plan = Plan(part, self.frame, batch_size, divisor=divisor, workers=_workers(self._spec))
        return DetectionLoader(plan, self._skips)


def _find(spec: DetectionSpec) -> _Parts:
    kind, place = split_source(spec.source)
    problems = Problems()
    notes: tuple[str, ...] = ()
    if kind == "":
        kind, notes = _recognized(place)
    match kind:
        case "coco":
            train_file, val_file = _coco_files(place)
            train = read_coco(train_file, problems)
            val_file = _second(spec, "coco") or val_file
            val = None if val_file is None else read_coco(val_file, problems, classes=train.classes)
        case "yolo":
            layout = find_yolo(place)
            train = read_yolo(layout.train, layout.classes, problems)
            second = _second(spec, "yolo")
            val_folder = layout.val if second is None else find_yolo(second).train
            val = None if val_folder is None else read_yolo(val_folder, train.classes, problems)
        case _:
            train_set, val_set = find_sets(place)
            train = read_voc(place, train_set, problems)
            second = _second(spec, "voc")
            val = None if val_set is None else read_voc(place, val_set, problems, classes=train.classes)
            if second is not None:
                val = read_voc(second, None, problems, classes=train.classes)
    name = place.resolve().name.removesuffix(".json")
    return _Parts(name, train, val, (*notes, *problems.settle(spec.source, spec.on_bad)))


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


def _second(spec: DetectionSpec, kind: str) -> Path | None:
    if spec.val is None:
        return None
    other, place = split_source(spec.val)
    if other not in ("", kind):
        raise UserError(f'--val "{spec.val}" is in another format than the training images, which are {kind}')
    return place


def _recognized(place: Path) -> tuple[str, tuple[str, ...]]:
    """The format that a path shows, and a note that says so."""
    if not place.exists():
        raise UserError(f'data "{place}" does not exist (detection reads {", ".join(FORMATS)}, or a path of these)')
    if place.is_file() and place.suffix == ".json":
        kind, why = "coco", "a JSON file"
    elif (place / "Annotations").is_dir() and (place / "JPEGImages").is_dir():
        kind, why = "voc", "it has Annotations and JPEGImages"
    elif place.is_dir() and _annotation_files(place):
        kind, why = "coco", f"it has {_annotation_files(place)[0].relative_to(place)}"
    elif any((place / name).is_dir() for name in ("images", "train/images", "train2017/images")):
        kind, why = "yolo", "it has images and labels"
    else:
        raise UserError(f'"{place}" is in no format that detection knows: expected {", ".join(FORMATS)}')
    return kind, (f'"{place}" is read as {kind}: {why}',)


def _annotation_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("annotations/instances_*.json"), *folder.glob("boxes-*.json")])


def _coco_files(place: Path) -> tuple[Path, Path | None]:
    """The annotations of training and of validation."""
    if not place.is_dir():
        return place, None
    files = _annotation_files(place)
    train = [file for file in files if "train" in file.stem]
    val = [file for file in files if "val" in file.stem]
    if len(train) != 1 or len(val) > 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(f'which annotations of "{place}"? Found {names}: give coco:FILE.json, and --val coco:FILE.json')
    return train[0], val[0] if val else None


def _held_back(part: BoxIndex, share: float) -> tuple[BoxIndex, BoxIndex]:
    order = _by_hash(part, "val")
    count = max(1, round(len(part) * share))
    if count >= len(part):
        raise UserError(f"too few images ({len(part)}) to hold back some for validation: use --val")
    return part.take(np.sort(order[count:])), part.take(np.sort(order[:count]))


def _chosen(part: BoxIndex, spec: DetectionSpec) -> BoxIndex:
    count = max(1, round(len(part) * spec.subset))
    count = count if spec.train_limit is None else min(count, spec.train_limit)
    return part if count >= len(part) else part.take(np.sort(_by_hash(part, "train")[:count]))


def _by_hash(part: BoxIndex, salt: str) -> np.ndarray:
    digests = [hashlib.blake2b(f"{salt}/{name}".encode(), digest_size=8).digest() for name in part.names]
    return np.array(sorted(range(len(part)), key=lambda i: (digests[i], part.names[i])), np.int64)


def _usual_size(part: BoxIndex) -> int:
    """The median longer side, up to a multiple of 32, at most 640."""
    side = int(np.median(part.sizes.max(1)))
    return min(LARGEST_SIZE, max(DIVISOR, -(-side // DIVISOR) * DIVISOR))


def _workers(spec: DetectionSpec) -> int:
    if spec.workers is not None:
        return spec.workers
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, available)
