"""Where the random number generators stand, on this process and on all of them."""

import io
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from limbeck.distributed import collectives

REWINDING = threading.RLock()
"""Held by what moves the generators back and by the thread that draws from them for the next batches.

They belong to the whole process: numbers that the thread drew in between would be drawn again.
"""


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the random number generators of torch, Python and the device."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": _plain(random.getstate())}
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


def state_of_this(states: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, Any]:
    """The state of this process among those of all.

    If there were fewer processes, all generators of a new one are seeded by the first one's next numbers and the rank,
    so that no two processes draw the same.
    """
    rank = collectives.rank()
    if rank < len(states):
        return dict(states[rank])
    generator = torch.Generator()
    generator.set_state(states[0]["torch"])
    seed = int(torch.randint(2**62, (rank,), generator=generator)[-1])
    found: dict[str, Any] = {
        "torch": torch.Generator().manual_seed(seed).get_state(),
        "python": _plain(random.Random(seed).getstate()),
    }
    if "device" in states[0]:
        found["device"] = torch.Generator(device.type).manual_seed(seed).get_state()
    return found


def _plain(state: tuple[Any, ...]) -> list[Any]:
    """A state of Python's generator in lists, as it is kept."""
    version, internal, gauss = state
    return [version, list(internal), gauss]
