"""Whether ``torch.compile`` is won back within a run: what it costs and gives, measured on a copy of the run."""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.training.precision import PRECISIONS, Arithmetic, apply_arithmetic, step_of, timed, trial

ROUNDS = 5
GAIN = 0.1  # share of a step that it is taken to save, and
SECONDS = 60.0  # to cost, until both have been measured


@dataclass(frozen=True)
class Compiling:
    """What compiling was seen to cost and to give.

    Attributes:
        start: Seconds until everything is compiled: the first step.
        step: Seconds of a step afterwards.
        plain: Seconds of a step that is not compiled.
    """

    start: float
    step: float
    plain: float


def may_pay(step: float, steps: int) -> bool:
    """Whether compiling might be won back in so many steps of so many seconds, so that it is worth measuring."""
    return steps * step * GAIN > SECONDS


def pays(measured: Compiling, steps: int) -> bool:
    """Whether compiling is won back in so many steps.

    Example:
        >>> pays(Compiling(start=30.0, step=0.08, plain=0.1), steps=2000)
        True
    """
    return steps * (measured.plain - measured.step) > measured.start


def measure_compiling(distiller: Distiller, batch: Any, arithmetic: Arithmetic, device: torch.device) -> Compiling:
    """Time the step of a copy of the distiller, compile it, and time it again.

    Raises:
        UserError: If it cannot be compiled here.
    """
    with trial(distiller, device) as subject, explaining():
        apply_arithmetic(subject, arithmetic, device)
        step = step_of(subject, batch, PRECISIONS[arithmetic.precision], device)
        plain = min(timed(step, device) for _ in range(ROUNDS))
        subject.compile_parts(batch)
        start = timed(step, device)
        return Compiling(start, min(timed(step, device) for _ in range(ROUNDS)), plain)


@contextlib.contextmanager
def explaining() -> Generator[None, None, None]:
    """Make one line of what goes wrong in the compiler: no C++ compiler on the machine, or a model that it refuses.

    Raises:
        UserError: In place of the compiler's own error.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # takes a second, and most runs do not compile

        if not isinstance(error, TorchDynamoException):
            raise
        cause = error.__cause__ if error.__cause__ is not None else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise UserError(f"torch.compile: {lines[0] if lines else type(cause).__name__}; use --compile off") from error
