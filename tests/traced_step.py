"""Print which functions of Limbeck run in one plain training step, file by file: ``python tests/traced_step.py``.

The step is the one that most runs take: a feature term and a logit term, clipped gradients, SGD, float32, one process
on the CPU. What counts is what runs from the batch in hand to the end of the optimizer's step: every named function
once, task, terms, norms and losses included, and the loop itself. What takes the batch, and what counts and records
the step afterwards, is printed below.
"""

import inspect
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import limbeck
import tiny
from limbeck.training import optim

PACKAGE = Path(limbeck.__file__).parent
TRACED = 2  # the step, from 0: the first one also looks for parameters without gradient
TAKING, STEP, AFTER = "taking the batch", "the step", "afterwards"


class Traced(tiny.Loader):
    """A loader that has one step traced."""

    def __init__(self) -> None:
        super().__init__(32, 8)
        self.is_over = False
        self.functions: dict[str, dict[str, set[str]]] = {part: defaultdict(set) for part in (TAKING, STEP, AFTER)}

    def __iter__(self) -> Iterator[tiny.Batch]:
        for step, batch in enumerate(super().__iter__()):
            if step == TRACED:
                self.is_over = False
                sys.setprofile(self._note)
            yield batch
            sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        del argument
        if event != "call" or PACKAGE not in Path(frame.f_code.co_filename).parents:
            return
        above: list[FrameType] = []  # the function, and those of the package that called it
        found: FrameType | None = frame
        while found is not None:
            if PACKAGE in Path(found.f_code.co_filename).parents:
                above.append(found)
            found = found.f_back
        # A loader is a chain of generators; in the step none is running.
        is_taking = any(one.f_code.co_flags & inspect.CO_GENERATOR for one in above[1:])
        part = TAKING if is_taking else AFTER if self.is_over else STEP
        callers = [one for one in above[1:] if one.f_code.co_name == "run_epoch"]  # the loop
        for one in (frame, *(callers if part == STEP else ())):
            names = [name for name in one.f_code.co_qualname.split(".") if name[0] != "<"]  # a lambda is its function's
            self.functions[part][str(Path(one.f_code.co_filename).relative_to(PACKAGE))].add(".".join(names))


def functions_of_a_step() -> dict[str, dict[str, set[str]]]:
    """Part of the step to file to the names of the functions that run in it."""
    loader = Traced()

    def optimizer(distiller: limbeck.Distiller) -> Any:
        made = optim.sgd(distiller)
        made.register_step_post_hook(lambda *_: setattr(loader, "is_over", True))
        return made

    limbeck.fit(tiny.distiller(correlation=False), loader, epochs=1, optimizer=optimizer, clip=1.0, cpu=True)
    return loader.functions


if __name__ == "__main__":
    for part, files in functions_of_a_step().items():
        print(f"{part}: {sum(map(len, files.values()))} functions in {len(files)} files")
        for path, names in sorted(files.items()):
            print(f"  {path}: {', '.join(sorted(names))}")
