"""Every operation that crosses processes. On one process each of them is the identity."""

import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck.errors import LostProcessError

_alone: list[bool] = []
"""An entry for each :func:`alone` that is open. Of the process, not of the thread: layers that a backward pass runs
again (activation checkpointing) run in threads of autograd."""


@contextmanager
def alone() -> Generator[None, None, None]:
    """Inside it this process computes by itself, as if it were the only one.

    For work that every process does on the same batch, where gathering would only repeat the rows.
    """
    _alone.append(True)
    try:
        yield
    finally:
        _alone.pop()


@contextmanager
def losses_explained(advice: str) -> Generator[None, None, None]:
    """Inside it, the many errors of a message that does not arrive become one of a single line.

    Args:
        advice: What to do then.

    Raises:
        LostProcessError: Another process ended, or was silent for longer than the process group waits.
    """
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, dist.DistError) or "/gloo/" in str(error)  # gloo has no error type of its own
        if world_size() == 1 or not is_lost:
            raise
        reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]  # gloo says where in its code, too
        raise LostProcessError(
            f"process {rank()} cannot continue: another one of the {world_size()} has ended or does not answer "
            f"({reason}); {advice}"
        ) from error


def world_size() -> int:
    """Number of processes that train together; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Index of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(x: Shaped[Tensor, "n *rest"]) -> Shaped[Tensor, "m *rest"]:
    """The rows of all processes, in the order of their ranks; differentiable where they are floating point.

    Local batches may differ in length. Every process gets the same tensor and so computes the same global loss L. The
    backward pass sums the gradients of all processes for the rows that came from here, which is ``world_size * dL/dx``;
    ``DistributedDataParallel`` then divides by ``world_size``, and the parameters get exactly the gradient of L. So the
    loss of four processes with batch n is the loss of one process with batch 4n, batch norm statistics included.

    Args:
        x: The rows of this process.

    Returns:
        All rows, ``m`` being the sum of the local ``n``.

    Deviates from: the published code, which computes its loss on each process alone.

    References:
        lightly-ai/lightly, issue 1977: an all-reduce that autograd does not see scales the gradient silently.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _GatherRows.apply(x)  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    return gathered


class _GatherRows(torch.autograd.Function):
    """All-gather of blocks that may differ in length; its adjoint sums over processes and keeps the own block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        own = torch.full((1,), x.shape[0], dtype=torch.int64, device=x.device)
        counts = [torch.zeros_like(own) for _ in range(world_size())]
        dist.all_gather(counts, own)
        lengths: list[int] = torch.cat(counts).tolist()  # pyright: ignore  (the device is read once)
        longest = max(lengths)
        padded = x.new_zeros((longest, *x.shape[1:]))
        padded[: x.shape[0]] = x
        blocks = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(blocks, padded)
        ctx.start = sum(lengths[: rank()])
        ctx.length = x.shape[0]
        return torch.cat([block[:length] for block, length in zip(blocks, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.length]


def all_sum(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Sum of a tensor over all processes; differentiable, and ``x`` is not changed.

    For what is a sum over the rows of the global batch: a loss, or moments, of which each process adds up its own
    share. Nothing but the sum crosses, where :func:`gather_rows` would send the rows. As there, every process then
    computes the same global loss L, and the backward pass gives ``world_size * dL/dx``, out of which
    ``DistributedDataParallel`` makes the gradient of L.

    Args:
        x: The share of this process, of one shape on every process.

    Returns:
        The sum, the same on every process.
    """
    if world_size() == 1:
        return x
    total: Tensor = _AllSum.apply(x)  # pyright: ignore[reportUnknownMemberType, reportAssignmentType]
    return total


class _AllSum(torch.autograd.Function):
    """All-reduce, which is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return sum_across(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        return sum_across(grads[0].contiguous())


def max_across(x: Tensor) -> Tensor:
    """Elementwise maximum over all processes, without gradient; ``x`` is not changed."""
    if world_size() == 1:
        return x.detach()
    largest = x.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def sum_across(x: Tensor) -> Tensor:
    """Sum of a tensor over all processes, for counts and scores; without gradient, and ``x`` is not changed."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def mean_across(values: Sequence[float], device: torch.device) -> list[float]:
    """Mean of each number over all processes, for logs; ``device`` is one that the processes can talk through."""
    if world_size() == 1:
        return list(values)
    # MPS has no float64, and only one process anyway.
    total = sum_across(torch.tensor(values, dtype=torch.float64, device=device))
    return [float(value) / world_size() for value in total]


def from_first(text: str, device: torch.device) -> str:
    """The text of the first process, for decisions that all must share; ``device`` is one they can talk through."""
    return from_rank(text, 0, device)


def from_rank(text: str, source: int, device: torch.device) -> str:
    """The text of one process, on all of them; ``device`` is one that they can talk through."""
    if world_size() == 1:
        return text
    encoded = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    length = torch.tensor([encoded.shape[0]], device=device)
    dist.broadcast(length, src=source)
    if rank() != source:
        encoded = torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(encoded, src=source)
    return bytes(int(value) for value in encoded.cpu()).decode()


def from_all(data: bytes, device: torch.device) -> list[bytes]:
    """The bytes of every process, in the order of their ranks; ``device`` is one that they can talk through."""
    if world_size() == 1:
        return [data]
    own = torch.tensor(list(data), dtype=torch.uint8, device=device)
    lengths = [int(length) for length in gather_rows(torch.tensor([len(data)], device=device))]
    every = gather_rows(own).cpu().numpy().tobytes()
    return [every[end - length : end] for end, length in zip(itertools.accumulate(lengths), lengths, strict=True)]


def share_of_mean(
    mean: Float[Tensor, ""], count: int, device: torch.device
) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
    """A mean over the rows of this process, weighted such that the processes' mean of it is that over all rows.

    ``DistributedDataParallel`` averages gradients over processes, not over rows: where the shares of a batch differ,
    rows of a small one would count more.

    Args:
        mean: Over the rows of this process; without any, something finite.
        count: How many these are.
        device: One that the processes can talk through.

    Returns:
        The weighted mean, and the rows of all processes; None for these on one process, whose mean stays as it is.
    """
    if world_size() == 1:
        return mean, None
    # In float64, as the mean may be; MPS has none, and only one process anyway.
    rows = sum_across(torch.full((), count, dtype=torch.float64, device=device))
    return mean * (count * world_size() / rows).to(mean.dtype), rows


def share_by_objects(losses: Mapping[str, Tensor], objects: Tensor, rows: int) -> dict[str, Tensor]:
    """Sums that were divided by the objects of this process, as if they had been divided by those of all.

    A detector's loss is often a sum over the places that are matched with an object, divided by how many these are. The
    mean of such quotients is not the quotient of the sums. What this returns is, once :func:`share_of_mean` has
    weighted it by the images.

    Args:
        losses: Each a sum divided by ``max(objects, 1)``.
        objects: How many they are, a scalar.
        rows: Images of this process, 0 or more.
    """
    if world_size() == 1:
        return dict(losses)
    own = torch.stack([objects.detach().double(), objects.new_tensor(rows, dtype=torch.float64)])
    total = sum_across(own)
    factor = own[0].clamp_min(1) * total[1] / (total[0].clamp_min(1) * max(rows, 1))
    return {name: value * factor.to(value.dtype) for name, value in losses.items()}


def global_mean(mean: Float[Tensor, "*shape"], count: int) -> Float[Tensor, "*shape"]:
    """The mean over the rows of all processes, from each one's mean and count, which may be 0; differentiable.

    For what treats each row by itself: nothing but the sums and the counts cross, in one message.

    Args:
        mean: Over the rows of this process, of one shape on every process; without any rows, anything.
        count: How many these are.

    Returns:
        The mean, the same on every process, and with the gradient that :func:`all_sum` has.
    """
    if world_size() == 1:
        return mean
    finite = mean if count else torch.nan_to_num(mean)  # a mean over no rows
    counted = torch.full((1,), float(count), dtype=mean.dtype, device=mean.device)
    totals = all_sum(torch.cat([finite.flatten() * count, counted]))
    return (totals[:-1] / totals[-1]).view(mean.shape)


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, of one shape on every process, by those of the first process."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def row_count(z: Tensor) -> int:
    """Rows of a feature over all processes."""
    local = z.shape[:-1].numel()
    if world_size() == 1:
        return local
    return int(sum_across(torch.full((), local, dtype=torch.int64, device=z.device)))
