"""What a probe has to remember of earlier looks, in memory and, for a run that goes on after a kill, on disk."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.storage.files import load_weights, save_weights

_STEP, _EPOCH = "step", "epoch"


class Look(NamedTuple):
    """What was seen at one step, by name."""

    step: int
    epoch: float
    tensors: dict[str, Tensor]

    def get(self, name: str, shape: torch.Size) -> Tensor | None:
        """One of the tensors; None where it was not seen, or was of another shape."""
        found = self.tensors.get(name)
        return found if found is not None and found.shape == shape else None


@final
class Recall:
    """The first look and the last one.

    In the folder are ``first.safetensors``, ``last.safetensors`` and ``before.safetensors``, the last one of an earlier
    epoch: checkpoints are of the ends of epochs, and what was seen behind one is not seen by the run that goes on
    from it. Each file is either whole or not there.

    Args:
        folder: Where the files are; None keeps nothing on disk.

    Attributes:
        first: The first look; None before it.
        last: The one before the look that is next; None where there is none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.first: Look | None = None
        self.last: Look | None = None

    def find(self, step: int) -> None:
        """Take up what a run that was stopped has left, as far as it is from before a step."""
        looks = {name: self._read(name) for name in ("first", "last", "before")}
        past = {name: look for name, look in looks.items() if look is not None and look.step < step}
        for name in looks.keys() - past.keys():  # of steps that are taken again
            if self._folder is not None:
                self._path(name).unlink(missing_ok=True)
        if "before" in past and "last" not in past:
            self._path("before").replace(self._path("last"))
        self.first = past.get("first")
        self.last = past.get("last", past.get("before"))

    def keep(self, first: Look, last: Look) -> None:
        """Remember a look: what is needed of it if it is the first one, and what the next one needs."""
        known = self.first.tensors if self.first is not None else {}
        if (
            self.first is None or first.tensors.keys() - known.keys()
        ):  # a term may be there from the first batch on only
            self.first = (self.first or first)._replace(tensors={**first.tensors, **known})
            self._write("first", self.first)
        previous, self.last = self.last, last
        if self._folder is None:
            return
        if previous is not None and math.ceil(previous.epoch) < math.ceil(last.epoch) and self._path("last").is_file():
            self._path("last").replace(self._path("before"))
        self._write("last", last)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.safetensors"

    def _write(self, name: str, look: Look) -> None:
        if self._folder is not None:
            numbers = {_STEP: torch.tensor(look.step), _EPOCH: torch.tensor(look.epoch, dtype=torch.float64)}
            save_weights({**look.tensors, **numbers}, self._path(name))

    def _read(self, name: str) -> Look | None:
        """A look out of its file; None where there is no such file, or it is damaged: no reason to stop a run."""
        if self._folder is None or not self._path(name).is_file():
            return None
        try:
            tensors = load_weights(self._path(name))
            return Look(int(tensors.pop(_STEP)), float(tensors.pop(_EPOCH)), tensors)
        except (UserError, KeyError):
            return None


def on(device: torch.device, look: Look | None) -> Look | None:
    """A look with its tensors on a device."""
    if look is None:
        return None
    return look._replace(tensors={name: tensor.to(device) for name, tensor in look.tensors.items()})


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that training does not change."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
