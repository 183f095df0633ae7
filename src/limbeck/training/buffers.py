"""Running statistics and memory banks, put back behind a step that is left out."""

from typing import final

import torch
from torch import Tensor, nn

from limbeck.distiller import Distiller


@final
class Buffers:
    """The buffers that belong to a checkpoint, of student and terms, as they were before a step.

    Args:
        distiller: Of the training.
    """

    def __init__(self, distiller: Distiller) -> None:
        self._places: list[tuple[nn.Module, str]] = []
        for root in (distiller.student, distiller.term_modules):
            for path, value in root.state_dict(keep_vars=True).items():
                if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                    module, _, name = path.rpartition(".")
                    self._places.append((root.get_submodule(module), name))
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Take a copy of them, in place of the last one."""
        self._kept = [module.get_buffer(name).clone() for module, name in self._places]

    def put_back(self) -> None:
        """Give them the values of that copy."""
        with torch.no_grad():
            for (module, name), kept in zip(self._places, self._kept, strict=True):
                module.get_buffer(name).copy_(kept)  # the module may have replaced it
