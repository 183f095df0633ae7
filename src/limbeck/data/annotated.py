"""What parts of annotated images share, of boxes or of masks: choices by a hash of the name, and threads."""

import hashlib
import os
from typing import Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Int64

from limbeck.errors import UserError


class Named(Protocol):
    """A part whose images have names."""

    @property
    def names(self) -> tuple[str, ...]:
        """Path of each image."""
        ...

    def take(self, keep: Int64[np.ndarray, " k"]) -> Self:
        """These images alone, in this order."""
        ...


P = TypeVar("P", bound=Named)


def held_back(part: P, share: float) -> tuple[P, P]:
    """(train, val): a share of the images, at least one, is held back, chosen by a hash of the name.

    Raises:
        UserError: None would be left to train on.
    """
    order = _by_hash(part, "val")
    count = max(1, round(len(order) * share))
    if count >= len(order):
        raise UserError(f"too few images ({len(order)}) to hold back some for validation: use --val")
    return part.take(np.sort(order[count:])), part.take(np.sort(order[:count]))


def chosen(part: P, share: float, limit: int | None) -> P:
    """A share of the images, at least one and at most so many, chosen by a hash of the name."""
    count = max(1, round(len(part.names) * share))
    count = count if limit is None else min(count, limit)
    return part if count >= len(part.names) else part.take(np.sort(_by_hash(part, "train")[:count]))


def _by_hash(part: Named, salt: str) -> Int64[np.ndarray, " n"]:
    digests = [hashlib.blake2b(f"{salt}/{name}".encode(), digest_size=8).digest() for name in part.names]
    return np.array(sorted(range(len(digests)), key=lambda i: (digests[i], part.names[i])), np.int64)


def threads(workers: int | None) -> int:
    """Threads that decode: as many as asked for; None: one for each processor, at most 16."""
    if workers is not None:
        return workers
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, available)
