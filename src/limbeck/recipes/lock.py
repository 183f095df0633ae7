"""One run folder is written by one run at a time."""

import contextlib
from collections.abc import Generator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from limbeck import collectives
from limbeck.errors import UserError

LOCK = ".lock"


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
        raise UserError(problem)
    try:
        yield
    finally:
        lock.release()


def _take(lock: FileLock, folder: Path) -> str:
    """What is in the way, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return f"another process is writing {folder}; wait until it has ended, or stop it"
    except OSError as error:
        return f"cannot make or lock {folder}: {error.strerror or error}"
    return ""
