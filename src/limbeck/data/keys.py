"""Random numbers as a pure function of (seed, epoch, sample): no generator has a state that anything could advance.

A sequential generator would tie a sample's augmentation to the batch and the process that it happens to be in. Here
each sample has its own short stream, so its pixels are the same whatever the batch size and the number of processes, in
a worker or in the main process, and can be drawn again from the seed when the teacher's outputs are cached.
"""

from enum import IntEnum

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 0xFFFFFFFFFFFFFFFF


class Stream(IntEnum):
    """What the numbers are for: each use has its own stream, so that adding one does not change another."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    RAND_AUGMENT = 4
    ERASE = 5
    MIX = 6
    SKETCH = 7
    SCALE = 8
    COLOR = 9
    OWN = 10


def words(
    seed: int, epoch: int, stream: Stream, index: Int64[np.ndarray, " n"], count: int
) -> UInt64[np.ndarray, "n c"]:
    """`count` random 64-bit words for each sample.

    The words (seed, epoch, stream, index) are absorbed one by one, state <- mix(state + golden + word), and the outputs
    are mix(state + golden * k), k = 1..count: SplitMix64 started from a state of the sample's own.

    References:
        Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators. OOPSLA 2014.
    """
    state = np.zeros(1, np.uint64)  # arrays wrap around silently; numpy scalars would warn
    for word in (seed, epoch, int(stream)):
        state = _mix(state + _GOLDEN + np.uint64(word & _MASK))
    state = _mix(state + _GOLDEN + index.astype(np.uint64))
    return _mix(state[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def uniforms(
    seed: int, epoch: int, stream: Stream, index: Int64[np.ndarray, " n"], count: int
) -> Float64[np.ndarray, "n c"]:
    """`count` numbers in [0, 1) for each sample: the upper 53 bits of `words`."""
    return (words(seed, epoch, stream, index, count) >> np.uint64(11)) * 2.0**-53


def generator(seed: int, epoch: int, stream: Stream, step: int = 0) -> np.random.Generator:
    """A generator of its own for what belongs to a whole epoch or batch (the order, the mixing)."""
    return np.random.default_rng([seed & _MASK, epoch, int(stream), step])


def _mix(z: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
