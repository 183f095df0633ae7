"""The next batches are made by a thread while the current one is computed."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

DEPTH = 2  # batches that wait, beside the one that is being made

T = TypeVar("T")


def in_background(batches: Iterable[T], *, depth: int = DEPTH) -> Iterator[T]:
    """The same batches in the same order, made ahead by one thread.

    The first batch is made by the caller's thread, so that worker processes are started from there. What is raised
    while a batch is made is raised here, in its place. The thread works on the device and the stream of the caller, so
    that what it sends to a GPU is there before it is used. It has ended when the last batch was taken, or when this
    iterator is closed: at the latest when nothing refers to it any more, so a ``break`` or an error in the loop is
    enough.

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
    stream = torch.accelerator.current_stream() if torch.accelerator.is_available() else None
    made: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
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
                made.put((batch,))
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
            yield item[0]
            del item
    finally:
        stopped.set()
        free.release()
        thread.join()
