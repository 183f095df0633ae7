"""From a data spec to loaders: split, choose, and decide whether the pixels are kept in memory or read when needed."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

import numpy as np
import psutil
import torch

from limbeck.data import augment, decode, kept, parts, sources
from limbeck.data.duplicates import Duplicates, digests_of, digests_of_files, find_duplicates
from limbeck.data.fetch import Disk, Frame, Memory, Skips
from limbeck.data.folders import some
from limbeck.data.loader import Augment, Batch, Loader, Plan
from limbeck.data.own import own_augmentation
from limbeck.data.parts import Part
from limbeck.data.spec import DataSpec
from limbeck.errors import UserError, paths_explained

LARGEST_IN_MEMORY = 2 << 30
_SMALL_SIDE = 64  # up to here CIFAR's protocol (whole image, pad and crop), above ImageNet's (resized crop, 0.875)
_CENTER = 0.875


@paths_explained()
def open_data(spec: DataSpec, *, memory: int | None = None) -> "Data":
    """Find the images of a spec, check them, and choose their train and val parts.

    Nothing is decoded yet: that happens when a loader, or a count under `skip_bad_images`, is first asked for; or it
    happened in an earlier run, whose pixels are kept (`kept`) in `~/.cache/limbeck/pixels`.

    Args:
        spec: What to open.
        memory: Keep the decoded pixels if they need at most this many bytes, else decode in worker processes at each
            pass. None: the smaller of 2 GiB and a quarter of the free memory.

    Returns:
        The data, with loaders for training and validation.

    Raises:
        UserError: The source does not exist or cannot be used; one line that says why.

    Example:
        >>> data = open_data(DataSpec(source="digits"))
        >>> data.size, data.train_count, data.val_count
        (8, 1297, 500)
        >>> next(iter(data.train_loader(batch_size=32, seed=0))).images.shape
        torch.Size([32, 3, 8, 8])
    """
    source = sources.find(spec)
    notes = list(source.notes)
    train, val = source.train, source.val
    bits, told = decode.used_bits(train.read, len(train))
    notes += told
    train, val = replace(train, bits=bits), None if val is None else replace(val, bits=bits)
    if val is None:
        train, val = parts.hold_back(train, spec.val_share, keep_single=spec.on_missing_classes == "skip")
        if not len(train) or not len(val):
            raise UserError(f'too few images in "{spec.source}" to hold back some for validation: use --val FOLDER')
        notes.append(f"{len(val)} images held back for validation, chosen by a hash of their names")
    if val.labels is not None and (lacking := sorted(set(range(len(source.classes))) - set(val.labels.tolist()))):
        notes.append(f"no validation images of {some([source.classes[number] for number in lacking])}")
    if train.labels is not None:
        missing = sorted(set(range(len(source.classes))) - set(train.labels.tolist()))
        if missing:
            raise UserError(
                f'class "{source.classes[missing[0]]}" of "{spec.source}" has no image left to train on; '
                "--on-missing-classes skip trains on the only image of a class"
            )
        if spec.train_limit is not None and spec.train_limit < len(source.classes):
            raise UserError(f"train limit {spec.train_limit} is less than the {len(source.classes)} classes")
    train = parts.subset(train, spec.subset)
    if spec.train_limit is not None:
        train = parts.limit(train, spec.train_limit)
    size = spec.size or source.size or sources.usual_size(train)
    flip = source.flip if spec.flip is None else spec.flip
    return Data(
        spec, source.name, source.classes, size, train, val, flip, _allowed() if memory is None else memory, notes
    )


@paths_explained()
def open_for_scoring(spec: DataSpec, classes: tuple[str, ...], *, bits: int = 16) -> "Data":
    """Open all labelled images of a source to score a model on them: they are the validation part, the other is empty.

    Args:
        spec: What to open, with the side of the images that the model was validated on.
        classes: Names of the model's classes in the order of its outputs; those of the images are matched by name.
        bits: How many bits the values of 16-bit greyscale images use, as in the data that the model was trained on.

    Raises:
        UserError: The source cannot be used, or has images of classes that the model does not know.
    """
    source = sources.find_for_scoring(spec, classes)
    assert source.val is not None
    source = replace(source, train=replace(source.train, bits=bits), val=replace(source.val, bits=bits))
    assert source.val is not None
    size = spec.size or source.size or sources.usual_size(source.val)
    data = Data(spec, source.name, classes, size, source.train, source.val, False, _allowed(), [])
    data.notes = source.notes  # how the pixels are read is of no interest for one pass
    return data


@final
class Data:
    """Opened data.

    Attributes:
        name: A short name for tables.
        classes: Names of the classes in the order of their numbers; empty without labels.
        size: Side of the images in pixels.
        fingerprint: Equal if another run had the same images in the same parts, and the same source of an augmentation
            of the user's own.
        flip: Whether mirror images are used in augmentation.
        in_memory: Whether decoded pixels are kept in memory.
        notes: What was chosen and why, for the log. Decoding adds where the pixels are kept for the next run.

    How an image becomes square. Up to 64 pixels: the shorter side is resized to `size`, the centre is taken; `standard`
    pads size/8 black pixels (at least one) and cuts out a random window, then mirrors half of the images. Above 64
    pixels: the shorter side is resized to size/0.875 and the centre taken; `standard` takes a random resized crop (area
    0.08 to 1, aspect 3/4 to 4/3) and mirrors half. Of a set whose squares of side size/0.875 need at most 2 GiB that
    crop is taken out of these squares, so the ends of oblong images are not seen; of a larger set out of the whole
    image. Free memory decides only whether such squares are kept or decoded at each pass, with the same pixels.
    `randaugment` adds RandAugment to `standard`, and `strong` RandAugment, random erasing, mixup and cutmix. With a
    function of one's own nothing else is done: it gets the square that validation would get.
    """

    def __init__(
        self,
        spec: DataSpec,
        name: str,
        classes: tuple[str, ...],
        size: int,
        train: Part,
        val: Part,
        flip: bool,
        memory: int,
        notes: list[str],
    ) -> None:
        """Use `open_data`."""
        self.name = name
        self.classes = classes
        self.size = size
        self.flip = flip
        self._spec = spec
        own = own_augmentation(spec.augmentation, size) if ":" in spec.augmentation else None
        self._own = own
        self._crops = spec.augmentation != "none" and own is None and size > _SMALL_SIDE
        self.fingerprint = parts.fingerprint(classes, (train, val)) + (f"-{own.source}" if own else "")
        self._parts = {"train": train, "val": val}
        self._frames = {"train": self._train_frame(), "val": self._eval_frame()}
        self._memories: dict[str, Memory] = {}
        self._contents: dict[str, str] = {}
        self._skips = Skips(spec.skip_bad_images)
        needed = sum(3 * self._frames[which].side ** 2 * len(part) for which, part in self._parts.items())
        self.in_memory = needed <= memory
        self._squares = self.in_memory or needed <= LARGEST_IN_MEMORY
        how = "decoded once and kept in memory" if self.in_memory else "decoded at each pass by worker processes"
        verb = "fits into" if self.in_memory else "is more than"
        megabytes = math.ceil(needed / 2**20)
        if self.cropped == "whole images":
            limit = LARGEST_IN_MEMORY >> 30
            notes = [
                *notes,
                f"random crops are taken out of whole images, since their squares need more than {limit} GiB",
            ]
        self.notes = (*notes, f"images are {how}: {megabytes} MiB {verb} the {memory / 2**20:.0f} MiB allowed for it")

    @property
    def bits(self) -> int:
        """How many bits the values of 16-bit greyscale images use."""
        return self._parts["val"].bits

    @property
    def cropped(self) -> str | None:
        """What random resized crops are taken out of: "squares" or "whole images"; None where none are taken."""
        if not self._crops:
            return None
        return "squares" if self._squares else "whole images"

    @property
    def train_count(self) -> int:
        """Training images, without those skipped (from disk: those skipped so far are still counted)."""
        return len(self._counted("train"))

    @property
    def val_count(self) -> int:
        """Validation images, as `train_count`."""
        return len(self._counted("val"))

    @property
    def train_labels(self) -> torch.Tensor | None:
        """Class number of every training image, as a batch's ``index`` counts them; None without labels."""
        labels = self._counted("train").labels
        return None if labels is None else torch.from_numpy(labels)

    def content(self) -> str | None:
        """A digest of the bytes of all images, which are read for it; None where pixels are not kept in memory.

        It sees what the fingerprint does not: an image that was replaced by one of the same length.
        """
        if not self.in_memory:
            return None
        for which in self._parts:
            if len(self._parts[which]):
                self._memory(which)
        return "-".join(self._contents[which][:16] for which in self._parts if which in self._contents)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Unreadable images met so far, each with the reason."""
        return tuple(f"{name}: {why}" for name, why in self._skips.found.items())

    def train_loader(
        self, *, batch_size: int, seed: int, views: int | None = None, view_seed: int | None = None
    ) -> Loader:
        """Shuffled, augmented batches; the last short one is dropped.

        Args:
            batch_size: Of the global batch, which the processes share.
            seed: Of the order and the augmentation.
            views: Go through so many augmented views of each image again and again; None: a new one each epoch.
            view_seed: Of the augmentation, where it is not `seed`.

        Raises:
            UserError: The batch is larger than the set, or more images than allowed cannot be read.
        """
        augmented = self._spec.augmentation != "none" and self._own is None
        todo = Augment(
            resized_crop=self._crops,
            pad=max(1, self.size // 8) if augmented and not self._crops else 0,
            flip=augmented and self.flip,
            randaugment=self._spec.augmentation == "randaugment",
            strong=self._spec.augmentation == "strong",
        )
        return self._loader("train", batch_size, todo, seed=seed, views=views, view_seed=view_seed)

    def val_loader(self, *, batch_size: int) -> Loader:
        """All validation images in their order, not augmented; the last batch may be short.

        Raises:
            UserError: More images than allowed cannot be read.
        """
        return self._loader("val", batch_size, None)

    def train_in_order(self, *, batch_size: int) -> Loader:
        """All training images in their order, not augmented, as `val_loader` gives the others.

        Raises:
            UserError: More images than allowed cannot be read.
        """
        return self._loader("train", batch_size, None)

    def sample(self, which: Literal["train", "val"], count: int) -> Batch:
        """A fixed choice of images, the same in every run over these data, as they are: not augmented.

        Args:
            which: The part.
            count: How many; all where there are fewer. Those that cannot be read are missing.

        Raises:
            UserError: More images than allowed cannot be read.
        """
        part = self._counted(which)
        chosen = np.sort(np.random.default_rng(0).permutation(len(part))[:count])
        # Few images: worker processes would take longer to start than to decode them.
        source = self._memory(which) if self.in_memory else Disk(part, self._frames[which], 0, self._skips)
        part = self._parts[which]
        images, rows = next(iter(source.fetch([chosen], None, torch.device("cpu"))))
        target = None if part.labels is None else torch.from_numpy(part.labels[rows])
        return Batch(augment.to_float(images), target, torch.from_numpy(rows))

    def duplicates(self) -> Duplicates | None:
        """Images that are there twice, by their decoded pixels; None where pixels are not in memory.

        Where the stored squares of the two parts differ (`standard` augmentation above 64 pixels), the files' bytes are
        compared in their place.
        """
        if not self.in_memory:
            return None
        pixels = {which: self._memory(which).pixels for which in ("train", "val")}
        by_pixels = self._frames["train"] == self._frames["val"]
        train, val = (
            digests_of(pixels[which]) if by_pixels else digests_of_files(self._parts[which]) for which in pixels
        )
        return find_duplicates(train, val, self._parts["train"], self._parts["val"])

    def _loader(
        self,
        which: str,
        batch_size: int,
        todo: Augment | None,
        *,
        seed: int = 0,
        views: int | None = None,
        view_seed: int | None = None,
    ) -> Loader:
        source = self._memory(which) if self.in_memory else self._disk(which)
        part = self._parts[which]
        plan = Plan(
            labels=part.labels,
            classes=len(self.classes),
            count=len(part),
            batch_size=batch_size,
            seed=seed,
            views=views,
            view_seed=view_seed,
            augment=todo,
            own=None if todo is None else self._own,
            shards=part.shards,
        )
        return Loader(source, plan)

    def _counted(self, which: str) -> Part:
        if self._spec.skip_bad_images and self.in_memory:
            self._memory(which)  # only decoding shows how many are left
        return self._parts[which]

    def _memory(self, which: str) -> Memory:
        if which not in self._memories:
            frame = self._frames[which]
            found = kept.pixels(
                self._parts[which],
                frame,
                channels_last=frame.side > self.size,  # random crops are then cut and resized at twice the speed
                workers=_workers(self._spec),
                skips=self._skips,
                what=f"{self.name}, {which}",
                folder=sources.pixels_folder(),
            )
            self.notes = (*self.notes, *(f"{which}: {note}" for note in found.notes))
            if not len(found.part):
                raise UserError(f'no image of the {which} part of "{self._spec.source}" can be read')
            self._parts[which] = found.part
            self._contents[which] = found.content
            self._memories[which] = Memory(found.pixels, self.size)
        return self._memories[which]

    def _disk(self, which: str) -> Disk:
        frame, side = self._frames[which], None
        if which == "train" and self.cropped is not None:
            frame, side = (frame, self.size) if self._squares else (Frame(self.size, 1.0), None)
        return Disk(self._parts[which], frame, _workers(self._spec), self._skips, side)

    def _train_frame(self) -> Frame:
        """Of stored training images: with random resized crops somewhat larger than a batch's."""
        if not self._crops:
            return self._eval_frame()
        return Frame(round(self.size / _CENTER), 1.0)

    def _eval_frame(self) -> Frame:
        return Frame(self.size, _CENTER if self.size > _SMALL_SIDE else 1.0)


def _workers(spec: DataSpec) -> int:
    return (
        min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        if (spec.workers is None)
        else spec.workers
    )


def _allowed() -> int:
    """2 GiB or a quarter of the free memory; in a container its own limit counts (control groups, version 2)."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return min(LARGEST_IN_MEMORY, free // 4)
