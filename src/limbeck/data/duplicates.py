"""Images that are there twice: in the parts to train and to validate on, or to train on under two labels."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from limbeck.data.fetch import digest
from limbeck.data.parts import Part

EXAMPLES = 10


@dataclass(frozen=True)
class Duplicates:
    """What was found, by exact comparison.

    Attributes:
        train: Training images that were compared.
        val: Validation images that were compared.
        leaked: Validation images that are also trained on.
        leaked_examples: Names of some, each with that of a training image.
        conflicting: Training images that are there under two labels or more.
        train_duplicates: Training images that are there before.
    """

    train: int
    val: int
    leaked: int
    leaked_examples: tuple[tuple[str, str], ...]
    conflicting: int
    train_duplicates: int


def find_duplicates(train: Sequence[bytes], val: Sequence[bytes], train_part: Part, val_part: Part) -> Duplicates:
    """Compare the digests of all images.

    Args:
        train: Of the training images.
        val: Of the validation images.
        train_part: Names and labels of the training images.
        val_part: Names of the validation images.
    """
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, value in enumerate(train):
        rows[value].append(row)
    pairs = [(row, rows[value][0]) for row, value in enumerate(val) if value in rows]
    labels = train_part.labels
    several = [same for same in rows.values() if len(same) > 1]
    conflicting = [same for same in several if labels is not None and len(np.unique(labels[same])) > 1]
    return Duplicates(
        train=len(train),
        val=len(val),
        leaked=len(pairs),
        leaked_examples=tuple((val_part.names[mine], train_part.names[theirs]) for mine, theirs in pairs[:EXAMPLES]),
        conflicting=sum(len(same) for same in conflicting),
        train_duplicates=sum(len(same) - 1 for same in several),
    )


def digests_of(pixels: UInt8[Tensor, "n 3 t t"]) -> list[bytes]:
    """One of each image's pixels; images of a gigabyte take about a second."""
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in pixels.numpy()]


def digests_of_files(part: Part) -> list[bytes]:
    """One of each image as it is stored; of a file that cannot be read any more, of its name."""
    return [_of_file(part, row) for row in range(len(part))]


def _of_file(part: Part, row: int) -> bytes:
    try:
        return digest(part.read(row))
    except OSError:
        return digest(part.names[row].encode())
