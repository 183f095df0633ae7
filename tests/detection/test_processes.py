"""Terms of boxes and heads: two processes with unequal batches, one without a box, compute what one computes."""

import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from detection import terms_worker

pytestmark = pytest.mark.processes

LIMIT = 120.0


def test_values_and_gradients_are_those_of_the_whole_batch(tmp_path: Path):
    context = mp.spawn(terms_worker.work, args=(2, tmp_path), nprocs=2, join=False)
    assert context is not None
    deadline = time.monotonic() + LIMIT
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    expected = terms_worker.everything()
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
            assert value.abs().sum() > 0
