"""Terms and detectors' own losses: two processes with unequal batches, one without a box, compute what one computes."""

from pathlib import Path

import pytest
import torch

import spawned
from detection import losses_worker, terms_worker

pytestmark = pytest.mark.processes


def test_values_and_gradients_are_those_of_the_whole_batch(tmp_path: Path):
    spawned.found_by(terms_worker.work, 2, tmp_path)
    expected = terms_worker.everything()
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
            assert value.abs().sum() > 0


def test_losses_of_detectors_are_those_of_all_images(tmp_path: Path):
    """Images with many boxes on one process and with few on the other; and one that has no image."""
    spawned.found_by(losses_worker.work, 2, tmp_path)
    expected = losses_worker.everything([4])
    for rank in range(2):
        for found in torch.load(tmp_path / f"rank{rank}.pt"):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                rtol, atol = (1e-7, 1e-9) if value.dtype == torch.float64 else (1e-5, 1e-7)
                torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)
                assert value.abs().sum() > 0
