"""The next batches are made by a thread while the current one is computed."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

DEPTH = 2  # batches that wait, beside the one that is being made

T = TypeVar("T")


def in_background(batches: Iterable[T], *, depth: int = DEPTH) -> Iterator[T]:
    """The same batches in the same order, made ahead by one thread.

    The first batch is made by the caller's thread, so that worker processes are started from there. What is raised
    while a batch is made is raised here, in its place. On a GPU the thread has a stream of its own: what it sends does
    not wait for what the caller computes, and the caller's stream waits for each batch when it takes it. The thread has
    ended when the last batch was taken, or when this iterator is closed: at the latest when nothing refers to it any
    more, so a ``break`` or an error in the loop is enough.

    Args:
        batches: Gone through once.
        depth: How many batches may wait.

    Example:
        >>> list(in_background(range(5)))
        [0, 1, 2, 3, 4]
    """
    source = iter(batches)
    try:
        first = next(source)
    except StopIteration:
        return
    stream = None
    if torch.accelerator.is_available():
        current = torch.accelerator.current_stream()
        stream = torch.Stream(current.device)
        stream.wait_stream(current)  # what the first batch left on the device may be read for the others
    made: queue.SimpleQueue[tuple[T, Any] | BaseException | None] = queue.SimpleQueue()
    free = threading.Semaphore(depth)
    stopped = threading.Event()

    def make() -> None:
        try:
            if stream is not None:
                torch.accelerator.set_stream(stream)  # and its device; both belong to a thread
            for batch in source:
                free.acquire()
                if stopped.is_set():
                    return
                made.put((batch, stream.record_event() if stream is not None else None))
                del batch  # else it would be kept until the next one is there
            made.put(None)
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=make, name="limbeck-prefetch", daemon=True)
    thread.start()
    try:
        yield first
        del first
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            free.release()
            batch, event = item
            del item
            if event is not None:
                _arrive(batch, event)
            yield batch
            del batch
    finally:
        stopped.set()
        free.release()
        thread.join()


def _arrive(batch: object, event: Any) -> None:
    """Make the current stream wait for a batch, whose memory is then this stream's to give back."""
    current = torch.accelerator.current_stream()
    current.wait_event(event)
    for value in tree_leaves(batch):
        if isinstance(value, Tensor) and value.device.type != "cpu":
            value.record_stream(current)
