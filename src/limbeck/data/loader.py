"""Batches in a fixed order, the same pixels for the same (seed, epoch, image) whatever the batch and the process."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from limbeck.data import augment, keys, on_device, randaugment
from limbeck.data.fetch import Disk, Key, Memory
from limbeck.data.own import Own, augmented
from limbeck.errors import UserError

_CPU = torch.device("cpu")
_WINDOW = 8192  # images among which those of shards are shuffled, after the shards themselves


class Batch(NamedTuple):
    """What the loop gets.

    Attributes:
        images: In [0, 1], not normalised: each model normalises for itself.
        target: Class numbers, or shares of each class when images were mixed, or None without labels.
        index: Which images of the part these are.
    """

    images: Float32[Tensor, "n 3 s s"]
    target: Int64[Tensor, " n"] | Float32[Tensor, "n k"] | None
    index: Int64[Tensor, " n"]  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index)


@dataclass(frozen=True)
class Augment:
    """What is done to a batch of training images.

    Attributes:
        resized_crop: A random resized crop, when the pixels are fetched. For images above 64 pixels.
        pad: Else: a random window after padding with this many black pixels. 0: none.
        flip: Mirror half of the images.
        randaugment: Also RandAugment.
        strong: Also RandAugment, random erasing, mixup and cutmix. No color jitter: DeiT's code asks for 0.4, but timm
            leaves it out wherever RandAugment is on, so the published results never had it.
    """

    resized_crop: bool = False
    pad: int = 0
    flip: bool = False
    randaugment: bool = False
    strong: bool = False


@dataclass(frozen=True)
class Plan:
    """What a loader goes through.

    Attributes:
        labels: Class number of each image, or None.
        classes: How many classes there are.
        batch_size: Of the global batch, which the processes share.
        seed: Of the order.
        views: After so many epochs the augmentation begins again with that of the first one: epoch e has the pixels of
            view e % views. None: a new view each epoch. Where images are mixed an image's partners belong to its view,
            so that the order begins again, too.
        view_seed: Of the augmentation; None: as `seed`.
        augment: What is done to the images; None for validation, which is neither shuffled nor cut short.
        own: The user's own augmentation, in place of that of `augment`.
        shards: Which shard each image lies in, or None.
        count: Number of images.
    """

    labels: Int64[np.ndarray, " n"] | None
    classes: int
    count: int
    batch_size: int
    seed: int = 0
    views: int | None = None
    view_seed: int | None = None
    augment: Augment | None = None
    own: Own | None = None
    shards: Int64[np.ndarray, " n"] | None = None


@final
class Loader:
    """Iterates over the batches of one epoch.

    Everything is a function of (seed, epoch, image): an epoch can be gone through again, from any step on, in another
    number of processes, with the same pixels. Only the partners of mixup and cutmix depend on the number of processes:
    an image is mixed with one of its own process's slice (one ratio and box for the global batch).

    Training drops the last short batch; validation keeps it and never shuffles. Where an image cannot be read while
    training runs (sets that do not fit into memory, `skip_bad_images`), its batch is shorter by one.
    """

    def __init__(
        self,
        source: Memory | Disk,
        plan: Plan,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
    ) -> None:
        """Make a loader; use `Data.train_loader` and `Data.val_loader`.

        Raises:
            UserError: The batch is larger than the set, or cannot be split evenly over the processes.
        """
        if plan.batch_size < 1:
            raise UserError(f"batch size {plan.batch_size}: expected 1 or more")
        if plan.augment is not None and plan.batch_size > plan.count:
            raise UserError(
                f"batch size {plan.batch_size} is larger than the training set of {plan.count} images:"
                f" use --batch-size {plan.count} or less"
            )
        if plan.augment is not None and plan.batch_size % world_size:
            raise UserError(f"batch size {plan.batch_size} cannot be split evenly over {world_size} processes")
        self._source = source
        self._plan = plan
        self._rank = rank
        self._world_size = world_size
        self._device = device
        self._epoch = 0

    @property
    def images_per_epoch(self) -> int:
        """Images that one pass gives, over all processes."""
        plan = self._plan
        return plan.count if plan.augment is None else plan.count // plan.batch_size * plan.batch_size

    @property
    def plan(self) -> Plan:
        """What is gone through."""
        return self._plan

    @property
    def source(self) -> Memory | Disk:
        """Where the pixels come from."""
        return self._source

    @property
    def crops_squares(self) -> bool:
        """Whether random resized crops are taken out of squares, and not out of whole images."""
        return isinstance(self._source, Memory) or self._source.side is not None

    @property
    def view_seed(self) -> int:
        """Of the augmentation."""
        return self._plan.seed if self._plan.view_seed is None else self._plan.view_seed

    @property
    def view(self) -> int:
        """The view whose pixels the passes that follow have."""
        return self._view(self._epoch)

    @property
    def mixes(self) -> bool:
        """Whether an image's pixels depend on the others of its batch (mixup and cutmix)."""
        return self._plan.augment is not None and self._plan.augment.strong

    @property
    def steps_of_view(self) -> int:
        """Batches of a view: as many as a pass has, and the short one that training drops, unless images are mixed."""
        plan = self._plan
        return plan.count // plan.batch_size if self.mixes else -(-plan.count // plan.batch_size)

    def __len__(self) -> int:
        """Steps of one pass of this process."""
        return len(self._slices(np.arange(self.images_per_epoch)))

    def changed(self, *, batch_size: int, seed: int) -> "Loader":
        """A loader with another batch size and order, and the same pixels of each image where images are not mixed.

        Processes that decode are its own, and end with it.
        """
        return Loader(self._renewed(), replace(self._plan, batch_size=batch_size, seed=seed, view_seed=self.view_seed))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the passes that follow."""
        self._epoch = epoch

    def shard(self, rank: int, world_size: int) -> "Loader":
        """The loader of one process of many: its contiguous slice of each global batch.

        In the last validation batch slices may differ by one image, and a process whose slice is empty has one step
        fewer: add up counts at the end of the pass, not at each step.

        Raises:
            UserError: The training batch cannot be split evenly.
            ValueError: The rank is out of range.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        loader = Loader(self._renewed(), self._plan, rank=rank, world_size=world_size, device=self._device)
        loader.set_epoch(self._epoch)
        return loader

    def to(self, device: torch.device) -> "Loader":
        """This loader with its batches on a device: bytes are sent there, a quarter of the floats, and augmented there.

        The pixels are those of a CPU; but RandAugment's geometric operations, and random resized crops where float32 is
        multiplied as TF32, may differ by one level of 255.
        """
        self._device = device
        return self

    def __iter__(self) -> Iterator[Batch]:
        """One pass over the epoch."""
        return self.iterate()

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """One pass from step `start` on; the steps before are not decoded (for resuming in the middle of an epoch)."""
        slices = self._slices(self._order(self._epoch)[: self.images_per_epoch])
        return self._fetch(list(enumerate(slices))[start:], self.view)

    def stretch(self, view: int, steps: range, *, parts: int = 1) -> Iterator[Batch]:
        """Some batches of a view, as the epoch of that number has them, and the short one behind them.

        For what is computed once for each view (:mod:`limbeck.cache`).

        Args:
            view: Which one.
            steps: Which batches, below `steps_of_view`.
            parts: Cut each batch into the slices that so many processes would get, and give them one by one.
        """
        order, size = self._order(view), self._plan.batch_size
        batches = ((step, order[step * size : (step + 1) * size]) for step in steps)
        slices = [(step, _share(batch, part, parts)) for step, batch in batches for part in range(parts)]
        return self._fetch([(step, mine) for step, mine in slices if len(mine)], view)

    def _fetch(self, slices: list[tuple[int, Int64[np.ndarray, " _"]]], view: int) -> Iterator[Batch]:
        augment_ = self._plan.augment
        key = Key(self.view_seed, view) if augment_ is not None and augment_.resized_crop else None
        device = self._device if self._plan.own is None else _CPU  # where the user's function expects images
        fetched = self._source.fetch([index for _, index in slices], key, device)
        for (step, _), (images, index) in zip(slices, fetched, strict=True):
            if len(index):  # every image of the batch may have been unreadable
                yield self._finish(images, index, view, step)
            elif augment_ is not None and self._world_size > 1:  # the others would wait for this process
                raise UserError(
                    f"no image can be read of those that process {self._rank} has of batch {step + 1}; "
                    "several processes need one each: remove the unreadable ones"
                )

    def _renewed(self) -> Memory | Disk:
        return self._source.renew() if isinstance(self._source, Disk) else self._source

    def _view(self, epoch: int) -> int:
        return epoch if self._plan.views is None else epoch % self._plan.views

    def _order(self, epoch: int) -> Int64[np.ndarray, " n"]:
        """All images in the order of an epoch."""
        plan = self._plan
        if plan.augment is None:
            return np.arange(plan.count)
        seed, epoch = (self.view_seed, self._view(epoch)) if self.mixes else (plan.seed, epoch)
        random = keys.generator(seed, epoch, keys.Stream.ORDER)
        if plan.shards is None:
            order = random.permutation(plan.count)
        else:  # whole shards in random order, images shuffled within a window: reads stay close together
            number = random.permutation(int(plan.shards.max()) + 1)
            order = np.argsort(number[plan.shards], kind="stable")
            for window in range(0, plan.count, _WINDOW):
                random.shuffle(order[window : window + _WINDOW])
        return order

    def _slices(self, order: Int64[np.ndarray, " n"]) -> list[Int64[np.ndarray, " _"]]:
        size, rank, world = self._plan.batch_size, self._rank, self._world_size
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        mine = [_share(batch, rank, world) for batch in batches]
        return [b for b in mine if len(b)]

    def _finish(self, images: UInt8[Tensor, "n 3 s s"], index: Int64[np.ndarray, " n"], view: int, step: int) -> Batch:
        plan, todo, seed = self._plan, self._plan.augment or Augment(), self.view_seed

        def numbers(stream: keys.Stream, count: int) -> np.ndarray:
            return keys.uniforms(seed, view, stream, index, count)

        if todo.pad:
            images = augment.pad_crop(images, numbers(keys.Stream.CROP, 2), todo.pad)
        if todo.flip:
            images = augment.flip(images, numbers(keys.Stream.FLIP, 1))
        if todo.strong or todo.randaugment:
            images = randaugment.rand_augment(images, numbers(keys.Stream.RAND_AUGMENT, randaugment.NUMBERS))
        if plan.own is None:
            pixels = augment.to_float(images)
        else:
            words = keys.words(seed, view, keys.Stream.OWN, index, 1)[:, 0]
            pixels = on_device.send(augmented(plan.own, images, words), self._device)
        target = None if plan.labels is None else on_device.send(torch.from_numpy(plan.labels[index]), self._device)
        if todo.strong:
            boxes = numbers(keys.Stream.ERASE, 1 + augment.BOX_NUMBERS)
            noise = keys.words(seed, view, keys.Stream.ERASE, index, augment.BOX_NUMBERS + 2)[:, -1:]
            pixels = augment.erase(pixels, boxes, noise)
            random = keys.generator(seed, view, keys.Stream.MIX, step)
            pixels, target = augment.mix(pixels, target, plan.classes, random)
        return Batch(pixels, target, on_device.send(torch.from_numpy(index), self._device))


def _share(batch: Int64[np.ndarray, " n"], rank: int, world: int) -> Int64[np.ndarray, " _"]:
    """The slice of one process of many."""
    return batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]
