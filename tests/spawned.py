"""Start several processes of one test, and have what each of them found."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

# The processes are forks of one that has imported what all of them need: each would take five seconds for it.
multiprocessing.set_forkserver_preload(["limbeck.runs.run", "limbeck.detection.task", "torch.distributed.fsdp"])
LIMIT = 240.0  # seconds; a collective that one process does not reach would wait for ever


def found_by(work: Callable[[int, int, Path], None], count: int, folder: Path) -> list[dict[str, Any]]:
    """``work(rank, count, folder)`` in processes of their own, each of which saves ``rank{rank}.pt`` in the folder."""
    context = mp.start_processes(work, args=(count, folder), nprocs=count, join=False, start_method="forkserver")
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
