"""One run folder is written by one run at a time."""

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from limbeck.distributed import collectives
from limbeck.errors import UserError

LOCK = ".lock"
_HELD = "another process is writing"
AGAIN = 1.0  # seconds between two tries of a run that waits


class HeldError(UserError):
    """Another process holds a run folder."""


@contextlib.contextmanager
def only_run_in(
    folder: Path, device: torch.device, *, waiting: Callable[[str], None] | None = None
) -> Generator[None, None, None]:
    """Hold a folder, which is made where it is missing.

    Of the processes of one run the first one holds it for all. The lock is one of the operating system's, which ends
    with the process, however that ends: the file alone means nothing.

    Args:
        folder: The run folder.
        device: One that the processes can talk through.
        waiting: Is told once, in one line, that another run holds it, which is then waited for. None: that is an error.

    Raises:
        UserError: If another run holds it and is not waited for, or if it cannot be made or locked.
    """
    lock = FileLock(folder / LOCK)
    said = False
    while problem := collectives.from_first(_take(lock, folder) if collectives.rank() == 0 else "", device):
        if problem != _HELD:
            raise UserError(problem)
        if waiting is None:
            raise HeldError(f"{_HELD} {folder}; wait until it has ended, or stop it")
        if not said:
            waiting(f"{_HELD} {folder}, and this one needs what comes of it: waiting until it has ended")
        said = True
        time.sleep(AGAIN)  # all processes: one that waited in a collective for hours would be given up
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process is writing a run folder just now."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _take(lock: FileLock, folder: Path) -> str:
    """What is in the way, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return _HELD
    except OSError as error:
        return f"cannot make or lock {folder}: {error.strerror or error}"
    return ""
