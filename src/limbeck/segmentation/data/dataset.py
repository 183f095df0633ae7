"""From a spec to loaders: which images with masks, in what frames."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, final

import numpy as np

from limbeck.data import decode
from limbeck.data.annotated import chosen, held_back, threads
from limbeck.data.fetch import Skips
from limbeck.data.folders import some
from limbeck.data.problems import Problems
from limbeck.errors import UserError, did_you_mean, paths_explained
from limbeck.segmentation.batch import MOST_CLASSES, VOID, SegmentationBatch
from limbeck.segmentation.data.index import MaskIndex, Surveyed, make_index, survey
from limbeck.segmentation.data.layouts import find_layout
from limbeck.segmentation.data.loader import Plan, SegmentationLoader, segmentation_loader
from limbeck.segmentation.data.masks import Values
from limbeck.segmentation.data.pairs import Layout, Pair
from limbeck.segmentation.data.spec import SegmentationSpec

LARGEST_SIZE = 512  # of a crop; the literature's on Pascal VOC and ADE20K
DIVISOR = 32  # the stride of the coarsest encoders
SCALES = (0.5, 2.0)


@paths_explained()
def open_segmentation(spec: SegmentationSpec) -> "SegmentationData":
    """Find the images and masks of a spec, read every mask once, and choose the train and val parts.

    Args:
        spec: What to open.

    Returns:
        The data, with loaders for training and validation.

    Raises:
        UserError: The source is no folder of images with masks, or has faults that are not to be skipped.
    """
    problems = Problems()
    layout = find_layout(spec.source, spec.void, problems)
    if not layout.train:
        raise UserError(f'"{spec.source}" has images for validation and none for training')
    second = layout
    if spec.val is not None:
        second = find_layout(spec.val, spec.void, problems)
    held = second.val if spec.val is None or second.val is not None else second.train
    found = _surveyed(layout, layout.train, spec, problems)
    seen = {} if held is None else _surveyed(second, held, spec, problems)
    values, notes = _values(layout, [*found.values(), *seen.values()], spec)
    if spec.val is not None and second.values is not None:
        values_there = _by_name(second.values, values.classes, str(spec.val))
    else:
        values_there = values
    train = make_index(layout.root, layout.train, found, values, problems)
    val = None if held is None else make_index(second.root, held, seen, values_there, problems)
    notes = [*layout.notes, *notes, *problems.settle(spec.source, spec.on_bad)]
    if val is None:
        train, val = held_back(train, spec.val_share)
        notes.append(f"{len(val)} images held back for validation, chosen by a hash of their names")
    train = chosen(train, spec.subset, spec.train_limit)
    for part, what in ((train, "training"), (val, "validation")):
        if not len(part):
            raise UserError("\n  ".join([f'no images left for {what} in "{spec.source}"', *problems.lines()]))
    absent = [name for name, count in zip(values.classes, train.counts.sum(0), strict=False) if not count]
    if absent:
        notes.append(f"{len(absent)} classes have no pixel to learn from ({some(absent)})")
    return SegmentationData(spec, layout.root.resolve().name, train, val, notes)


@paths_explained()
def open_for_scoring(
    spec: SegmentationSpec, classes: tuple[str, ...], *, bits: int | None = None
) -> "SegmentationData":
    """Images to score a trained model on: the source's validation part, or all of it if it has none.

    Args:
        spec: What to open; its ``val`` and what chooses training images are not read.
        classes: Of the model. Masks get their numbers by the names of their classes.
        bits: How many bits the values of 16-bit greyscale images use. None: found by a sample of them.

    Returns:
        The data, with all images in the validation part.

    Raises:
        UserError: The source is no folder of images with masks, has faults, or names none of these classes.
    """
    problems = Problems()
    layout = find_layout(spec.source, spec.void, problems)
    pairs = layout.train if layout.val is None else layout.val
    found = _surveyed(layout, pairs, spec, problems)
    told = layout.values
    values = _numbered(classes, spec.void) if told is None else _by_name(told, classes, spec.source)
    part = make_index(layout.root, pairs, found, values, problems)
    notes = [*layout.notes, *problems.settle(spec.source, spec.on_bad)]
    if not len(part):
        raise UserError("\n  ".join([f'no images left in "{spec.source}"', *problems.lines()]))
    none = part.take(np.zeros(0, np.int64))
    return SegmentationData(spec, layout.root.resolve().name, none, part, notes, bits=bits)


@final
class SegmentationData:
    """Opened images with masks.

    Attributes:
        name: A short name for tables.
        classes: Names of the classes in the order of their numbers.
        size: Side of the square crops of training.
        fingerprint: Equal if another run had the same images and masks in the same parts.
        bits: How many bits the values of 16-bit greyscale images use.
        notes: What was chosen and why, for the log.
    """

    def __init__(
        self,
        spec: SegmentationSpec,
        name: str,
        train: MaskIndex,
        val: MaskIndex,
        notes: Sequence[str],
        *,
        bits: int | None = None,
    ) -> None:
        """Use `open_segmentation`."""
        told: tuple[str, ...] = ()
        if bits is None:
            sampled = train if len(train) else val
            bits, told = decode.used_bits(sampled.read, len(sampled))
        self.bits = bits
        self.name = name
        self.classes = val.values.classes
        self.size = spec.size or _usual_size(train if len(train) else val, spec.shorter)
        if self.size % DIVISOR:
            raise UserError(f"size: expected a multiple of {DIVISOR} for segmentation, got {self.size}")
        self.fingerprint = hashlib.blake2b((train.digest() + val.digest()).encode(), digest_size=8).hexdigest()
        self._spec = spec
        self._parts = {"train": replace(train, bits=bits), "val": replace(val, bits=bits)}
        self._skips = Skips(spec.skip_bad_images)
        counts = (train if len(train) else val).counts.sum(0)
        share = f"{100 * counts[-1] / max(counts.sum(), 1):.1f}% of the pixels are void"
        self.notes = (*notes, *told, f"{len(self.classes)} classes; {share}")

    @property
    def cropped(self) -> None:
        """None: crops are taken of images as they are."""
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

    def part(self, which: Literal["train", "val"]) -> MaskIndex:
        """The images and masks of a part."""
        return self._parts[which]

    def train_loader(self, *, batch_size: int, seed: int) -> SegmentationLoader:
        """Shuffled, augmented square crops; the last short batch is dropped.

        Args:
            batch_size: Of the global batch, which the processes share.
            seed: Of the order and the augmentation.

        Raises:
            UserError: The batch is larger than the set.
        """
        augmented = self._spec.augmentation != "none"
        scales = (self._spec.scales or SCALES) if augmented else None
        plan = self._plan(self._parts["train"], batch_size)
        return segmentation_loader(
            replace(plan, seed=seed, training=True, scales=scales, flip=self._spec.flip), self._skips
        )

    def val_loader(self, *, batch_size: int) -> SegmentationLoader:
        """All validation images, whole and not augmented, those of one size together."""
        return segmentation_loader(self._plan(self._parts["val"], batch_size), self._skips)

    def images(self, which: Literal["train", "val"], chosen: Sequence[int]) -> list[SegmentationBatch]:
        """The images of these numbers, whole, one a batch; ``index`` says which of ``chosen`` each one is."""
        part = self._parts[which].take(np.asarray(chosen, np.int64))
        return list(segmentation_loader(self._plan(part, 1), self._skips))

    def _plan(self, part: MaskIndex, batch_size: int) -> Plan:
        return Plan(part, self.size, DIVISOR, self._spec.shorter, batch_size, workers=threads(self._spec.workers))


def _surveyed(
    layout: Layout, pairs: tuple[Pair, ...], spec: SegmentationSpec, problems: Problems
) -> dict[Pair, Surveyed]:
    colors = {} if layout.values is None else dict(layout.values.colors)
    return survey(layout.root, pairs, colors, problems, workers=threads(spec.workers))


def _values(layout: Layout, found: Sequence[Surveyed], spec: SegmentationSpec) -> tuple[Values, list[str]]:
    """What the numbers stand for: what a list of classes says, else a class for each number up to the largest."""
    values, notes = layout.values, list[str]()
    if values is None:
        numbers = {number for each in found for number in each.numbers} - {VOID, *spec.void}
        most = max(numbers, default=0) + 1
        if not 2 <= most <= MOST_CLASSES:
            raise UserError(
                f'"{spec.source}" has no classes.txt, and the numbers in its masks go up to {most - 1}: expected a '
                f"name a line, or numbers below {MOST_CLASSES}"
            )
        values = _numbered(tuple(f"class {number}" for number in range(most)), spec.void)
        notes.append(f"no classes.txt: {most} classes, by the numbers in the masks")
    if spec.classes:
        values = _by_name(values, spec.classes, spec.source)
        notes.append(f"classes {', '.join(spec.classes)} alone; the others are void")
    return values, notes


def _numbered(classes: tuple[str, ...], void: Sequence[int]) -> Values:
    """A class for each number from 0 on."""
    numbers = tuple(number for number in range(len(classes)) if number not in void)
    return Values(tuple(classes[number] for number in numbers), numbers, frozenset({VOID, *void}), {})


def _by_name(values: Values, classes: tuple[str, ...], source: str) -> Values:
    """The numbers of these classes by their names; UserError where one is not there."""
    for name in classes:
        if name not in values.classes:
            raise UserError(f'no class "{name}" in "{source}"{did_you_mean(name, values.classes)}')
    return values.only(classes)


def _usual_size(part: MaskIndex, shorter: int | None) -> int:
    """The median shorter side, up to a multiple of 32, at most 512."""
    side = shorter or int(np.median(part.sizes.min(1)))
    return min(LARGEST_SIZE, max(DIVISOR, -(-side // DIVISOR) * DIVISOR))
