"""What the processes of a training send each other in a step, how long that takes, and what failures cost: arithmetic.

`benchmarks/scale.py` prints tables of it. Bytes are those that a process hands to a collective; a test counts them in a
training of two processes. Times are of the alpha-beta model: a latency for each hop and a rate for the bytes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["all_reduce", "all_gather", "broadcast"]
BUCKET = 25 << 20  # bytes of gradients that DDP sends at once
FLOAT, INTEGER = 4, 8


@dataclass(frozen=True)
class Message:
    """One collective.

    Attributes:
        kind: Which one.
        size: Bytes that each process hands over; of a broadcast, what it gets.
        hides: Whether it runs beside the backward pass.
    """

    kind: Kind
    size: int
    hides: bool = False


def bytes_of(messages: Iterable[Message]) -> dict[str, int]:
    """Bytes by kind."""
    found: dict[str, int] = {"all_reduce": 0, "all_gather": 0, "broadcast": 0}
    for message in messages:
        found[message.kind] += message.size
    return found


def gradients(parameters: int) -> list[Message]:
    """Of all that trains, by DistributedDataParallel, while the backward pass runs."""
    total = FLOAT * parameters
    return [Message("all_reduce", min(BUCKET, total - at), hides=True) for at in range(0, total, BUCKET)]


def task_loss() -> list[Message]:
    """How many rows all processes have."""
    return [Message("all_reduce", INTEGER)]


def guard() -> list[Message]:
    """Whether the step may be taken: on a CPU, and where steps may be left out."""
    return [Message("all_reduce", INTEGER)]


def by_moments(d_s: int, d_t: int, *, cross: bool = True) -> list[Message]:
    """A feature term by moments: the count; two means and the centered sums; the gradient of each of the three."""
    sizes = [FLOAT * d_s, FLOAT * d_t, FLOAT * (d_s * d_s + (d_s * d_t if cross else 0) + d_t)]
    return [Message("all_reduce", size) for size in (INTEGER, *sizes, *sizes)]


def in_blocks(d_s: int, d_t: int, *, log_sum: bool = True) -> list[Message]:
    """A feature term in blocks, with batch norm: moments without the cross-covariance, the value, and its gradient."""
    scalars = [FLOAT] * (4 if log_sum else 3)
    return [*by_moments(d_s, d_t, cross=False), *(Message("all_reduce", size) for size in scalars)]


def gathered(rows: int, width: int, processes: int, *, trains: bool) -> list[Message]:
    """Rows of all processes, on all of them: each hands over its own; the gradient is summed over *all* rows."""
    own = FLOAT * rows * width
    there = [Message("all_gather", INTEGER), Message("all_gather", own)]
    return [*there, Message("all_reduce", own * processes)] if trains else there


def logits() -> list[Message]:
    """A term of the logits whose loss is a mean over rows: value, agreement and rows, and their gradient."""
    return [Message("all_reduce", 3 * FLOAT)] * 2


def gathered_logits(rows: int, classes: int, processes: int) -> list[Message]:
    """A term of the logits whose loss is none (DIST): both sides are gathered."""
    return [*gathered(rows, classes, processes, trains=True), *gathered(rows, classes, processes, trains=False)]


def relation(rows: int, d_s: int, d_t: int, processes: int) -> list[Message]:
    """A term of relations; also a feature term with a norm in front of its projector, or with a ridge projector.

    A feature term in the direct form gathers behind its projector: ``d_s`` is then the width of the other side, too.
    """
    return [*gathered(rows, d_s, processes, trains=True), *gathered(rows, d_t, processes, trains=False)]


@dataclass(frozen=True)
class Network:
    """What lies between processes.

    Attributes:
        processes: How many.
        rate: Bytes a second that each sends, and gets at the same time.
        latency: Seconds of a hop.
    """

    processes: int
    rate: float
    latency: float

    def ring(self, size: int) -> float:
        """Seconds of an all-reduce around a ring: 2 (p - 1) hops of a p-th of the bytes."""
        hops = 2 * (self.processes - 1)
        return hops * (self.latency + size / self.processes / self.rate)

    def tree(self, size: int) -> float:
        """Seconds of an all-reduce up and down a binary tree, through which the bytes stream."""
        return 2 * (self.depth * self.latency + size / self.rate) if self.processes > 1 else 0.0

    @property
    def depth(self) -> int:
        """Hops from the last process to the root."""
        return int(math.log2(self.processes))

    def seconds(self, message: Message) -> float:
        """Of one collective, by the quicker way."""
        if message.kind == "all_reduce":
            return min(self.ring(message.size), self.tree(message.size))
        if message.kind == "all_gather":
            return (self.processes - 1) * (self.latency + message.size / self.rate)
        return self.depth * self.latency + message.size / self.rate if self.processes > 1 else 0.0


def seconds_of(messages: Iterable[Message], network: Network) -> float:
    """Of messages one behind the other."""
    return sum(network.seconds(message) for message in messages)


def waiting(messages: Sequence[Message], network: Network, *, backward: float) -> float:
    """Seconds that a step waits, where gradients are sent while the rest of the backward pass runs.

    The last bucket is full only when the backward pass ends, and never hides.
    """
    hidden = [message for message in messages if message.hides]
    shown = seconds_of((message for message in messages if not message.hides), network)
    if not hidden:
        return shown
    return shown + max(network.seconds(hidden[-1]), seconds_of(hidden, network) - backward)


def ring_ends(starts: np.ndarray, size: int, network: Network) -> np.ndarray:
    """When each process has the sum, hop by hop: a hop needs the own last one and the left neighbor's."""
    hop = network.latency + size / network.processes / network.rate
    now = starts.astype(np.float64)
    for _ in range(2 * (network.processes - 1)):
        now = np.maximum(now, np.roll(now, 1)) + hop
    return now


def tree_ends(starts: np.ndarray, size: int, network: Network) -> np.ndarray:
    """When each process has the sum by the tree: process i hangs below process (i + 1) // 2 - 1."""
    up = starts.astype(np.float64)
    count = network.processes
    for child in range(count - 1, 0, -1):
        parent = (child + 1) // 2 - 1
        up[parent] = max(up[parent], up[child] + network.latency)
    down = np.empty_like(up)
    down[0] = up[0] + (2 * size / network.rate if count > 1 else 0.0)
    for child in range(1, count):
        down[child] = down[(child + 1) // 2 - 1] + network.latency
    return down


def simulate(
    messages: Sequence[Message],
    network: Network,
    *,
    compute: float,
    spread: float,
    steps: int,
    random: np.random.Generator,
) -> float:
    """Mean seconds of a step, each process computing for a random time, and every message waiting for its senders.

    Nothing hides behind the backward pass: a process computes, and then sends one message behind the other.

    Args:
        messages: Of a step; those that are no all-reduce let everybody wait for the last one.
        network: Between the processes.
        compute: Mean seconds that a process computes.
        spread: Standard deviation of that, over its mean; gamma distributed, independent.
        steps: How many.
        random: Draws.
    """
    now = np.zeros(network.processes)
    for _ in range(steps):
        factor = random.gamma(spread**-2, spread**2, network.processes) if spread > 0 else 1.0
        now = now + compute * factor
        for message in messages:
            if message.kind != "all_reduce":
                now = np.full_like(now, now.max() + network.seconds(message))
            elif network.ring(message.size) < network.tree(message.size):
                now = ring_ends(now, message.size, network)
            else:
                now = tree_ends(now, message.size, network)
    return float(now.max()) / steps


@dataclass(frozen=True)
class Failures:
    """Of a training that begins again at its last checkpoint when any of its devices fails.

    Attributes:
        between: Mean seconds between two failures of the whole (exponential).
        checkpoint: Seconds that a checkpoint takes.
        restart: Seconds until it trains again; it can fail in them, too.
    """

    between: float
    checkpoint: float
    restart: float

    def young(self) -> float:
        """J. W. Young's interval, CACM 17(9), 1974."""
        return math.sqrt(2 * self.checkpoint * self.between)

    def daly(self) -> float:
        """J. T. Daly's higher-order interval, FGCS 22(3), 2006, equation 37."""
        half = self.checkpoint / (2 * self.between)
        if half >= 1:
            return self.between
        return self.young() * (1 + math.sqrt(half) / 3 + half / 9) - self.checkpoint

    def stretch(self, interval: float) -> float:
        """Expected seconds for each second of training (Daly 2006, equation 20)."""
        m = self.between
        return m * math.exp(self.restart / m) * math.expm1((interval + self.checkpoint) / m) / interval

    def simulate(self, interval: float, *, stretches: int, random: np.random.Generator) -> float:
        """The same, by playing so many intervals, with every failure in them."""
        clock = 0.0
        for _ in range(stretches):
            needed = interval + self.checkpoint
            while (until := random.exponential(self.between)) < needed:
                clock += until
                needed = self.restart + interval + self.checkpoint
            clock += needed
        return clock / (stretches * interval)
