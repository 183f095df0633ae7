"""The random numbers of a process that joins a training: no other one draws the same."""

import random
from typing import Any

import pytest
import torch

from limbeck.distributed import collectives
from limbeck.storage.random_state import random_state, set_random_state, state_of_this

CPU = torch.device("cpu")


def test_each_new_process_draws_its_own_numbers_from_every_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of one process is read by four; the state of the CPU stands for that of a device."""
    states = [random_state(CPU)]
    states[0]["device"] = states[0]["torch"]
    drawn: dict[str, list[Any]] = {"torch": [], "python": [], "device": []}
    for rank in range(4):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        state = state_of_this(states, CPU)
        set_random_state(state, CPU)
        drawn["torch"].append(int(torch.randint(2**62, ())))
        drawn["python"].append(random.getrandbits(62))
        generator = torch.Generator()
        generator.set_state(state["device"])
        drawn["device"].append(int(torch.randint(2**62, (), generator=generator)))
    for name, numbers in drawn.items():
        assert len(set(numbers)) == 4, name
    monkeypatch.setattr(collectives, "rank", lambda: 3)
    again = state_of_this(states, CPU)
    assert torch.equal(again["torch"], state["torch"])
    assert again["python"] == state["python"]
