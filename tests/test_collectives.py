"""On one process; ``test_distributed`` has the rest."""

import pytest
import torch

from limbeck import collectives


def test_on_one_process_everything_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert collectives.world_size() == 1
    assert collectives.rank() == 0
    assert collectives.gather_rows(x) is x
    assert collectives.sum_across(x) is x
    assert collectives.mean_across([1.0, 2.5], torch.device("cpu")) == [1.0, 2.5]
    assert collectives.from_first("x", torch.device("cpu")) == "x"
    collectives.barrier()


def test_alone_ends_also_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 3)

    def fail() -> None:
        with collectives.alone():
            assert (collectives.world_size(), collectives.rank()) == (1, 0)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert (collectives.world_size(), collectives.rank()) == (4, 3)
