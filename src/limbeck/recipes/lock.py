"""One run folder is written by one run at a time."""

import contextlib
from collections.abc import Generator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from limbeck import collectives
from limbeck.errors import UserError

LOCK = ".lock"
_HELD = "another process is writing"


class HeldError(UserError):
    """Another process holds a run folder."""


@contextlib.contextmanager
def only_run_in(folder: Path, device: torch.device) -> Generator[None, None, None]:
    """Hold a folder, which is made where it is missing.

    Of the processes of one run the first one holds it for all. The lock is one of the operating system's, which ends
    with the process, however that ends: the file alone means nothing.

    Args:
        folder: The run folder.
        device: One that the processes can talk through.

    Raises:
        UserError: If another run holds it, or if it cannot be made or locked.
    """
    lock = FileLock(folder / LOCK)
    problem = _take(lock, folder) if collectives.rank() == 0 else ""
    if problem := collectives.from_first(problem, device):
        raise HeldError(problem) if problem.startswith(_HELD) else UserError(problem)
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
        return f"{_HELD} {folder}; wait until it has ended, or stop it"
    except OSError as error:
        return f"cannot make or lock {folder}: {error.strerror or error}"
    return ""
