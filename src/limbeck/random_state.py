"""Where the random number generators stand, on this process and on all of them."""

import io
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from limbeck import collectives


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the random number generators of torch, Python and the device."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the random number generators to states that were taken before."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])


def states_of_all(state: Mapping[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """The states of all processes, in the order of their ranks; every process calls it with its own."""
    if collectives.world_size() == 1:
        return [dict(state)]
    packed = io.BytesIO()
    torch.save(dict(state), packed)
    blobs = collectives.from_all(packed.getvalue(), device)
    return [torch.load(io.BytesIO(blob), weights_only=True) for blob in blobs]


def state_of_this(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of this process among those of all.

    Where there were fewer processes, a new one begins with the first one's state moved on by its rank, so that no two
    of them draw the same numbers.
    """
    rank = collectives.rank()
    if rank < len(states):
        return dict(states[rank])
    generator = torch.Generator()
    generator.set_state(states[0]["torch"])
    generator.manual_seed(generator.initial_seed() + rank)
    return {**states[0], "torch": generator.get_state()}
