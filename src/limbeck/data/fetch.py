"""Two ways to the uint8 pixels of a batch: out of memory, or decoded by worker processes; with the same result.

Every worker process imports this file when it starts, so it does without torchvision (2 seconds).
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.data import augment, decode, keys, on_device
from limbeck.data.parts import Part
from limbeck.errors import UserError

_CHUNK = 64
_T = TypeVar("_T")


class Key(NamedTuple):
    """What random crops at fetch time are drawn from."""

    seed: int
    epoch: int


class Fetched(NamedTuple):
    """The pixels of a batch, and which images they are: without those that cannot be read."""

    images: UInt8[Tensor, "n 3 s s"]
    rows: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Skips:
    """The unreadable images met so far, and how many are tolerated."""

    limit: int
    found: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, name: str, why: str) -> None:
        """Note one unreadable image.

        Raises:
            UserError: It is one too many.
        """
        self.found[name] = why
        if len(self.found) > self.limit:
            if not self.limit:
                raise UserError(f'cannot read image "{name}": {why} (--skip-bad-images N tolerates up to N such files)')
            raise UserError(
                f"more than the {self.limit} unreadable images that --skip-bad-images tolerates;"
                f' the last one is "{name}": {why}'
            )


@dataclass(frozen=True)
class Frame:
    """How an image becomes square: the centred square that holds `share` of the shorter side, `side` pixels wide."""

    side: int
    share: float


@dataclass(frozen=True)
class Memory:
    """Pixels that were decoded once.

    Attributes:
        pixels: One square a row; where random crops are taken, with the channels last in memory.
        side: What a batch has; with random crops the stored squares are larger.
    """

    pixels: UInt8[Tensor, "n 3 t t"]
    side: int

    def fetch(
        self, batches: Sequence[Int64[np.ndarray, " _"]], key: Key | None, device: torch.device
    ) -> Iterator[Fetched]:
        """The batches in turn, on the device; with a key, under a random resized crop of the stored square."""
        for index in batches:
            if key is None:
                yield Fetched(on_device.send(self._rows(index), device), index)
            elif device.type == "cpu":
                edges = _edges(key, index, self.pixels.shape[-1])
                yield Fetched(augment.crop_resize(self.pixels, index, edges, self.side), index)
            else:
                yield Fetched(_crop_of_squares(self._rows(index), index, key, self.side, device), index)

    def _rows(self, index: Int64[np.ndarray, " n"]) -> UInt8[Tensor, "n 3 t t"]:
        return torch.from_numpy(np.ascontiguousarray(self.pixels.numpy()[index]))  # always a copy


def _edges(key: Key, index: Int64[np.ndarray, " n"], stored: int) -> Int64[np.ndarray, "n 4"]:
    """Where the random resized crops of stored squares lie."""
    numbers = keys.uniforms(key.seed, key.epoch, keys.Stream.CROP, index, augment.BOX_NUMBERS)
    return augment.whole_pixels(augment.random_boxes(float(stored), float(stored), numbers), stored)


def _crop_of_squares(
    squares: UInt8[Tensor, "n 3 t t"], index: Int64[np.ndarray, " n"], key: Key, side: int, device: torch.device
) -> UInt8[Tensor, "n 3 s s"]:
    """Random resized crops of the squares of a batch."""
    edges = _edges(key, index, squares.shape[-1])
    if device.type == "cpu":
        return augment.crop_resize(squares, np.arange(len(index)), edges, side)
    return on_device.crop_resize(on_device.send(squares, device), edges, side)


@dataclass(frozen=True)
class Disk:
    """Images that are decoded whenever they are needed, by processes that are started afresh ("spawn").

    With ``side`` a random resized crop is taken out of the centred square of ``frame``, as `Memory` does it, and has
    the same pixels; without, out of the whole image.

    A script that uses this needs the usual `if __name__ == "__main__":`. Several passes at once over one loader are not
    supported: the processes are kept between the passes.
    """

    part: Part
    frame: Frame
    workers: int
    skips: Skips
    side: int | None = None
    _kept: list[tuple["_Plan", "DataLoader[_Decoded]"]] = field(default_factory=list, compare=False)

    def fetch(
        self, batches: Sequence[Int64[np.ndarray, " _"]], key: Key | None, device: torch.device
    ) -> Iterator[Fetched]:
        """The batches in turn, on the device; with a key, under a random resized crop."""
        if not self._kept:
            plan = _Plan()
            self._kept.append((plan, self._loader(plan)))
        plan, loader = self._kept[0]
        in_worker = key if self.side is None else None
        plan.batches = [[(int(i), in_worker) for i in index] for index in batches]
        for decoded in loader:
            for name, why in decoded.bad:
                if name not in self.skips.found:
                    self.skips.add(name, why)
            rows = decoded.rows.numpy()
            if key is None or self.side is None or not len(rows):
                yield Fetched(on_device.send(decoded.images, device), rows)
                continue
            squares = decoded.images.contiguous(memory_format=torch.channels_last)  # as they lie in memory
            yield Fetched(_crop_of_squares(squares, rows, key, self.side, device), rows)

    def renew(self) -> "Disk":
        """The same images with processes of its own."""
        return Disk(self.part, self.frame, self.workers, self.skips, self.side)

    def _loader(self, plan: "_Plan") -> "DataLoader[_Decoded]":
        return DataLoader[_Decoded](
            cast("Dataset[_Decoded]", _Samples(self.part, self.frame)),  # the stubs know no collate_fn
            batch_sampler=plan,
            collate_fn=_collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            multiprocessing_context="spawn" if self.workers else None,
            worker_init_fn=_one_thread if self.workers else None,
            generator=torch.Generator().manual_seed(0),  # else each pass would draw from torch's global generator
        )


class Decoded(NamedTuple):
    """A whole part, decoded.

    Attributes:
        pixels: Of the images that can be read, in their order.
        bad: The row of each other image, and why it cannot be read.
        content: A digest of the bytes of all images.
    """

    pixels: UInt8[Tensor, "k 3 t t"]
    bad: dict[int, str]
    content: str


def decode_all(part: Part, frame: Frame, *, channels_last: bool, workers: int, skips: Skips, what: str) -> Decoded:
    """Decode a whole part with threads (decoding and resizing release Python's lock) into one tensor.

    Raises:
        UserError: More images than allowed cannot be read; which one is named does not depend on the threads.
    """
    shape = (len(part), frame.side, frame.side, 3) if channels_last else (len(part), 3, frame.side, frame.side)
    stored = np.empty(shape, np.uint8)
    pixels = stored.transpose(0, 3, 1, 2) if channels_last else stored
    digests = [b""] * len(part)

    def one(i: int) -> str | None:
        try:
            data = part.read(i)
            digests[i] = digest(data)
            pixels[i] = decode.square(decode.rgb(data, needed=_needed(frame), bits=part.bits), frame.side, frame.share)
        except (decode.BadImageError, OSError) as error:
            digests[i] = digests[i] or digest(str(error).encode())
            return str(error)
        return None

    bad: dict[int, str] = {}
    for i, why in enumerate(_each(one, len(part), workers, f"decoding {what}")):
        if why is not None:
            bad[i] = why
            skips.add(part.names[i], why)
    whole = torch.from_numpy(stored[sorted(set(range(len(part))) - bad.keys())] if bad else stored)
    return Decoded(whole.permute(0, 3, 1, 2) if channels_last else whole, bad, _joined(digests))


def content(part: Part, *, workers: int, what: str) -> str:
    """The digest of the bytes of all images that `decode_all` gives, without decoding."""

    def one(i: int) -> bytes:
        try:
            return digest(part.read(i))
        except OSError as error:
            return digest(str(error).encode())

    return _joined(list(_each(one, len(part), workers, f"checking {what}")))


def digest(data: bytes | decode.Pixels) -> bytes:
    """Of one image's bytes. Processors compute SHA-256 in hardware, at twice the speed of the quickest other one."""
    return hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).data).digest()


def _joined(digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def _each(one: Callable[[int], _T], count: int, workers: int, what: str) -> Iterator[_T]:
    """`one(i)` for each i in order, computed by threads; a bar on a terminal."""
    console = Console(stderr=True)
    with (
        decode.quiet_pillow(),
        Progress(console=console, disable=not console.is_terminal, transient=True) as progress,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        bar = progress.add_task(what, total=count)
        chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
        try:
            for done in pool.map(lambda chunk: [one(i) for i in chunk], chunks):
                progress.advance(bar, len(done))
                yield from done
        finally:  # where the caller stops early
            pool.shutdown(cancel_futures=True)


class _Decoded(NamedTuple):
    images: Tensor
    rows: Tensor
    bad: list[tuple[str, str]]


class _Plan:
    """The sampler of a pass: the main process fills it in, so that the workers need not know about epochs."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, Key | None]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, Key | None]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


Square = UInt8[np.ndarray, "3 s s"]
_Sample = tuple[int, Square | str, str]
"""Which image, its pixels or why it cannot be read, its name."""


class _Samples(Dataset[_Sample]):
    def __init__(self, part: Part, frame: Frame) -> None:
        self.part = part
        self.frame = frame

    def __getitem__(self, item: tuple[int, Key | None]) -> _Sample:
        i, key = item
        name = self.part.names[i]
        try:
            with decode.quiet_pillow():
                return i, self._pixels(i, key), name
        except (decode.BadImageError, OSError) as error:  # raising would reach the user as a worker's traceback
            return i, str(error), name

    def _pixels(self, i: int, key: Key | None) -> Square:
        data = self.part.read(i)
        side = self.frame.side
        if key is None:
            return decode.square(
                decode.rgb(data, needed=_needed(self.frame), bits=self.part.bits), side, self.frame.share
            )
        numbers = keys.uniforms(key.seed, key.epoch, keys.Stream.CROP, np.array([i]), augment.BOX_NUMBERS)
        # A box holds at least 8% of the area, so up to 3.5 times the side is needed to not enlarge a reduced JPEG.
        image = decode.rgb(data, needed=2 * side, bits=self.part.bits)
        box = augment.random_boxes(float(image.width), float(image.height), numbers)[0]
        return decode.crop(image, side, (float(box[0]), float(box[1]), float(box[2]), float(box[3])))


def _collate(samples: list[_Sample]) -> _Decoded:
    good = [(i, pixels) for i, pixels, _ in samples if not isinstance(pixels, str)]
    bad = [(name, pixels) for _, pixels, name in samples if isinstance(pixels, str)]
    squares = [pixels for _, pixels in good]
    images = torch.from_numpy(np.stack(squares)) if good else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return _Decoded(images, torch.tensor([i for i, _ in good], dtype=torch.int64), bad)


def _needed(frame: Frame) -> int:
    return math.ceil(frame.side / frame.share)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
