"""A part of a data set (train or val): names, labels and a way to read one image; and the choices made by hash."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64, UInt8

Pixels = UInt8[np.ndarray, "h w 3"]
Reader = Callable[[int], bytes | Pixels]


@dataclass(frozen=True)
class Part:
    """The images of a train or val part, in a fixed order.

    Attributes:
        names: The same on every machine: paths relative to the part's folder, or row names. Choices hash them.
        reader: `reader(row)` gives the encoded file or the decoded pixels. Picklable, as worker processes get it.
        rows: Which row of the reader each image is.
        sizes: Bytes of each image as stored; for the fingerprint.
        labels: Class numbers, or None.
        shards: Which shard each image lies in, where reading in another order is slow; else None.
        content: A digest of what names and sizes do not show (pixels of array sets).
        bits: How many bits the values of its 16-bit greyscale images use.
    """

    names: tuple[str, ...]
    reader: Reader
    rows: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"] | None
    shards: Int64[np.ndarray, " n"] | None = None
    content: str = ""
    bits: int = 16

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def read(self, i: int) -> bytes | Pixels:
        """The file's bytes or the pixels of image `i`."""
        return self.reader(int(self.rows[i]))

    def take(self, keep: Int64[np.ndarray, " k"]) -> "Part":
        """The part with these images only, in this order."""
        return replace(
            self,
            names=tuple(self.names[int(i)] for i in keep),
            rows=self.rows[keep],
            sizes=self.sizes[keep],
            labels=None if self.labels is None else self.labels[keep],
            shards=None if self.shards is None else self.shards[keep],
        )

    def unlabelled(self) -> "Part":
        """The part without its labels."""
        return replace(self, labels=None)


def _ranks(part: Part, salt: str) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(rank within the class, size of the class, rank overall), ordered by a hash of the name."""
    digests = [hashlib.blake2b(f"{salt}/{name}".encode(), digest_size=8).digest() for name in part.names]
    overall = np.empty(len(part), np.int64)
    by_hash = np.array(sorted(range(len(part)), key=lambda i: (digests[i], part.names[i])), np.int64)
    overall[by_hash] = np.arange(len(part))
    labels = np.zeros(len(part), np.int64) if part.labels is None else part.labels
    within = np.empty(len(part), np.int64)
    counts = np.empty(len(part), np.int64)
    for label in np.unique(labels):
        members = by_hash[labels[by_hash] == label]
        within[members] = np.arange(len(members))
        counts[members] = len(members)
    return within, counts, overall


def _share(part: Part, share: float, salt: str) -> Bool[np.ndarray, " n"]:
    within, counts, _ = _ranks(part, salt)
    return within < np.maximum(1, np.rint(counts * share))


def hold_back(part: Part, share: float, *, keep_single: bool = False) -> tuple[Part, Part]:
    """(train, val): `share` of each class, at least one image, is held back, chosen by a hash of the name.

    With ``keep_single`` the only image of a class is trained on.
    """
    held = _share(part, share, "val")
    if keep_single:
        held &= _ranks(part, "val")[1] > 1
    return part.take(np.flatnonzero(~held)), part.take(np.flatnonzero(held))


def subset(part: Part, share: float) -> Part:
    """`share` of each class, at least one image; a smaller share is a part of a larger one."""
    return part if share >= 1 else part.take(np.flatnonzero(_share(part, share, "train")))


def limit(part: Part, count: int) -> Part:
    """`count` images, as evenly over the classes as they allow; a smaller count is a part of a larger one."""
    if count >= len(part):
        return part
    within, _, overall = _ranks(part, "train")
    chosen = np.lexsort((overall, within))[:count]
    return part.take(np.sort(chosen))


def fingerprint(classes: tuple[str, ...], parts: tuple[Part, ...]) -> str:
    """A short digest of class names and of every image's name, size and label: equal if two runs had the same data.

    File contents are not read (array sets add a digest of their pixels), so it is cheap; an image that was replaced by
    one of the same length is not noticed.
    """
    digest = hashlib.blake2b(repr(classes).encode(), digest_size=8)
    for part in parts:
        labels = [-1] * len(part) if part.labels is None else part.labels.tolist()
        rows = sorted(zip(part.names, part.sizes.tolist(), labels, strict=True))
        digest.update(f"{part.content}{len(rows)}".encode())
        digest.update("\n".join(f"{name}\0{size}\0{label}" for name, size, label in rows).encode())
    return digest.hexdigest()
