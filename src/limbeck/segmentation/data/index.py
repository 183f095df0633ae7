"""The images and masks of a part, checked."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from limbeck.data import decode
from limbeck.data.headers import read_header
from limbeck.data.problems import Problems
from limbeck.segmentation.batch import UNKNOWN, VOID
from limbeck.segmentation.data.faults import Fault, Remark
from limbeck.segmentation.data.masks import BadMaskError, Color, Values, read_numbers
from limbeck.segmentation.data.pairs import Pair
from limbeck.storage.untrusted import read_image_file


@dataclass(frozen=True)
class MaskIndex:
    """Images and their masks.

    Attributes:
        root: Folder that the names are relative to.
        pairs: Path of each image and its mask.
        sizes: Height and width of each image in pixels.
        counts: Pixels of each class, and last of void, in each mask.
        digests: Of each mask's file.
        values: What the numbers in the masks stand for.
        bits: How many bits the values of 16-bit greyscale images use.
    """

    root: str
    pairs: tuple[Pair, ...]
    sizes: Int64[np.ndarray, "n 2"]
    counts: Int64[np.ndarray, "n k"]
    digests: tuple[str, ...]
    values: Values
    bits: int = 16

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """Path of each image."""
        return tuple(pair.image for pair in self.pairs)

    def read(self, image: int) -> bytes:
        """The bytes of an image's file; raises OSError if it cannot be read."""
        return read_image_file(f"{self.root}/{self.pairs[image].image}")

    def mask(self, image: int) -> UInt8[np.ndarray, "h w"]:
        """The class of each pixel of an image.

        Raises:
            BadImageError: The mask's file has changed since it was checked.
        """
        try:
            data = read_image_file(f"{self.root}/{self.pairs[image].mask}")
            found = self.values.table()[read_numbers(data, self.values.colors)]
        except BadMaskError as error:
            raise decode.BadImageError(f"its mask: {error}") from None
        if (found == UNKNOWN).any():
            raise decode.BadImageError("its mask has a number that is no class")
        return found

    def take(self, keep: Int64[np.ndarray, " k"]) -> "MaskIndex":
        """These images alone, in this order."""
        return replace(
            self,
            pairs=tuple(self.pairs[int(i)] for i in keep),
            sizes=self.sizes[keep],
            counts=self.counts[keep],
            digests=tuple(self.digests[int(i)] for i in keep),
        )

    def digest(self) -> str:
        """Short digest of all that the index holds but for the root: equal if two runs had the same masks."""
        words = (self.values.classes, self.values.numbers, sorted(self.values.void), self.pairs, self.digests)
        return hashlib.blake2b(repr(words).encode(), digest_size=8).hexdigest()


class Surveyed(NamedTuple):
    """What the files of an image and its mask hold.

    Attributes:
        size: Height and width of the image.
        numbers: The numbers in the mask, and how many pixels have each.
        digest: Of the mask's file.
    """

    size: tuple[int, int]
    numbers: dict[int, int]
    digest: str


def survey(
    root: Path, pairs: Sequence[Pair], colors: dict[Color, int], problems: Problems, *, workers: int
) -> dict[Pair, Surveyed]:
    """Read every mask once, and the header of every image; those with faults are left out."""

    def one(pair: Pair) -> Surveyed | BadMaskError:
        image, mask = root / pair.image, root / pair.mask
        return _surveyed(image, _stamp(image), mask, _stamp(mask), tuple(sorted(colors.items())))

    with decode.quiet_pillow(), ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(pool.map(one, pairs))
    good: dict[Pair, Surveyed] = {}
    for pair, each in zip(pairs, found, strict=True):
        if isinstance(each, BadMaskError):
            problems.add(each.fault, f"{pair.mask}: {each}")
            problems.remark(Remark.LEFT_OUT, pair.image)
        else:
            good[pair] = each
    return good


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew."""
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=1 << 17)  # the runs of a comparison open the same masks
def _surveyed(
    image: Path,
    image_stamp: tuple[int, int],
    mask: Path,
    mask_stamp: tuple[int, int],
    colors: tuple[tuple[Color, int], ...],
) -> Surveyed | BadMaskError:
    del image_stamp, mask_stamp  # of the cache's key
    header = read_header(str(image))
    if isinstance(header, str):
        return BadMaskError(Fault.IMAGE_UNREADABLE, header)
    try:
        data = read_image_file(str(mask))
        numbers = read_numbers(data, dict(colors))
    except OSError as error:
        return BadMaskError(Fault.UNREADABLE, str(error))
    except BadMaskError as error:
        return error
    if numbers.shape != header.shown:
        fault = Fault.TURNED if numbers.shape == header.stored else Fault.SIZE
        (h, w), (height, width) = numbers.shape, header.shown
        return BadMaskError(fault, f"{w} x {h}, the image {width} x {height}")
    if header.orientation != 1:
        return BadMaskError(Fault.TURNED, f"orientation {header.orientation}")
    values, counts = np.unique(numbers, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return Surveyed(header.shown, found, hashlib.blake2b(data, digest_size=8).hexdigest())


def make_index(
    root: Path, pairs: Sequence[Pair], found: dict[Pair, Surveyed], values: Values, problems: Problems
) -> MaskIndex:
    """The pairs whose masks have classes, and no number that is none."""
    table = values.table()
    kept: list[Pair] = []
    rows: list[np.ndarray] = []
    for pair in pairs:
        if pair not in found:
            continue
        numbers = found[pair].numbers
        unknown = [number for number in numbers if table[number] == UNKNOWN]
        row = np.zeros(len(values.classes) + 1, np.int64)
        for number, count in numbers.items():
            if number not in unknown:
                row[-1 if table[number] == VOID else table[number]] += count
        if unknown:
            what = ", ".join(f"{number} in {numbers[number]} pixels" for number in unknown[:3])
            problems.add(Fault.UNKNOWN, f"{pair.mask}: {what}")
        elif not row[:-1].any():
            problems.add(Fault.ALL_VOID, pair.mask)
        else:
            kept.append(pair)
            rows.append(row)
            continue
        problems.remark(Remark.LEFT_OUT, pair.image)
    return MaskIndex(
        str(root),
        tuple(kept),
        np.array([found[pair].size for pair in kept], np.int64).reshape(-1, 2),
        np.array(rows, np.int64).reshape(-1, len(values.classes) + 1),
        tuple(found[pair].digest for pair in kept),
        values,
    )
