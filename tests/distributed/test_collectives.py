"""On one process; ``test_distributed`` has the rest."""

import threading

import pytest
import torch

from limbeck.distributed import collectives
from limbeck.errors import LostProcessError


def test_on_one_process_everything_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert collectives.world_size() == 1
    assert collectives.rank() == 0
    assert collectives.gather_rows(x) is x
    assert collectives.sum_across(x) is x
    assert collectives.mean_across([1.0, 2.5], torch.device("cpu")) == [1.0, 2.5]
    assert collectives.from_first("x", torch.device("cpu")) == "x"
    mean = torch.tensor(2.0)
    assert collectives.share_of_mean(mean, 3, torch.device("cpu")) == (mean, None)
    collectives.copy_from_first([x])
    collectives.barrier()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("[/x/gloo/transport/tcp/pair.cc:3] Read error [::1]:7: Connection reset by peer. Look."),
            "peer)",
        ),
        (RuntimeError("[/x/gloo/unbound_buffer.cc:78] Timed out waiting 4000ms for recv"), "(Timed out waiting 4000ms"),
        (torch.distributed.DistNetworkError("The client socket has timed out"), "(The client socket has timed out)"),
    ],
)
def test_a_lost_process_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    with pytest.raises(type(error)), collectives.losses_explained("try again"):
        raise error  # on one process nobody can be lost
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 3)
    with pytest.raises(LostProcessError) as raised, collectives.losses_explained("try again"):
        raise error
    line = str(raised.value)
    assert line.startswith("process 3 cannot continue: another one of the 4 has ended or does not answer (")
    assert line.endswith("; try again")
    assert said in line
    assert "\n" not in line
    with pytest.raises(RuntimeError, match="out of memory"), collectives.losses_explained("try again"):
        raise RuntimeError("out of memory")


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


def test_alone_holds_in_the_threads_of_a_backward_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd runs layers that are checkpointed again in threads of its own, one for each GPU."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    seen: list[int] = []
    with collectives.alone():
        with collectives.alone():
            pass
        thread = threading.Thread(target=lambda: seen.append(collectives.world_size()))
        thread.start()
        thread.join()
    assert seen == [1]
    assert collectives.world_size() == 4
