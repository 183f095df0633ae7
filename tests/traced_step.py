"""Print which functions of Limbeck run in one plain training step, file by file: ``python tests/traced_step.py``.

The step is the one that most runs take: a feature term and a logit term, clipped gradients, SGD, float32, one process
on the CPU. It is traced from the batch that the loader gives to the request for the next one; every named function is
counted once, models, task and terms included.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import limbeck
import tiny

PACKAGE = Path(limbeck.__file__).parent
TRACED = 2  # the step, from 0: the first one also looks for parameters without gradient


class Traced(tiny.Loader):
    """A loader that has one step traced."""

    def __init__(self) -> None:
        super().__init__(32, 8)
        self.functions: dict[str, set[str]] = defaultdict(set)

    def __iter__(self) -> Iterator[tiny.Batch]:
        for step, batch in enumerate(super().__iter__()):
            sys.setprofile(self._note if step == TRACED else None)
            yield batch
            sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        del argument
        path = Path(frame.f_code.co_filename)
        if event in ("call", "return") and PACKAGE in path.parents:
            own = [part for part in frame.f_code.co_qualname.split(".") if part != "<locals>" and part[0] != "<"]
            self.functions[str(path.relative_to(PACKAGE))].add(".".join(own))


def functions_of_a_step() -> dict[str, set[str]]:
    """File to the names of the functions that run in one step; comprehensions and lambdas belong to theirs."""
    distiller = tiny.distiller(correlation=False)
    loader = Traced()
    limbeck.fit(distiller, loader, epochs=1, clip=1.0, cpu=True)
    return loader.functions


if __name__ == "__main__":
    found = functions_of_a_step()
    for path, names in sorted(found.items()):
        print(f"{path}: {', '.join(sorted(names))}")
    print(f"{sum(map(len, found.values()))} functions in {len(found)} files")
