"""Start several processes of one test, and have what each of them found."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

LIMIT = 240.0  # seconds; a collective that one process does not reach would wait for ever


def found_by(work: Callable[[int, int, Path], None], count: int, folder: Path) -> list[dict[str, Any]]:
    """``work(rank, count, folder)`` in spawned processes, each of which saves ``rank{rank}.pt`` in the folder."""
    context = mp.spawn(work, args=(count, folder), nprocs=count, join=False)
    assert context is not None
    deadline = time.monotonic() + LIMIT
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(count)]
