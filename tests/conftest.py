"""One thread a test process, so that runs in parallel do not fight, and nothing that reaches for the network."""

# ruff: noqa: E402 (the environment comes before torch)
import os
import signal
import tempfile
from collections.abc import Iterator

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # processes that tests start inherit it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NO_COLOR", "1")
_cache = tempfile.TemporaryDirectory(prefix="limbeck-tests-")
os.environ["LIMBECK_CACHE"] = _cache.name  # never the user's own

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, alone or in any order."""
    torch.manual_seed(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell has what it starts in the background ignore it, and so would our children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
