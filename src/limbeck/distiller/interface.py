"""What a distiller is given, a task and weights, and what a step of it gives and takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from limbeck.features.taps import Captured

Weight = float | Callable[[float], float]
"""A weight is a number, or a function of the share of training that is done (0 to 1)."""

TASK = "task"


@runtime_checkable
class Task(Protocol):
    """What a batch, a task loss and a metric are for one kind of model.

    A task with buffers (input statistics) is an ``nn.Module``; the distiller then moves it with the models.
    """

    def student_input(self, batch: Any) -> Tensor:
        """What the student reads of a batch: resized and normalized as the student expects."""
        ...

    def teacher_input(self, batch: Any) -> Tensor:
        """The same pixels, resized and normalized as the teacher expects."""
        ...

    def target(self, batch: Any) -> Tensor | None:
        """Labels of a batch, or None where there are none."""
        ...

    def index(self, batch: Any) -> Tensor | None:
        """Which images of the training set these are, ``(n,)``, or None where the batch does not say."""
        ...

    def teacher_output(self, batch: Any) -> Captured | None:
        """What the teacher computed on the batch before and the batch brings along; None: it has to be run."""
        ...

    def loss(self, output: Tensor, batch: Any) -> Tensor | None:
        """Task loss of the student's output, a scalar; None for label-free distillation."""
        ...

    def score(self, output: Tensor, batch: Any) -> dict[str, Tensor]:
        """Metric name to one value a sample, each of shape ``(n,)``; empty where nothing can be scored."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one step gave.

    Attributes:
        loss: Weighted sum of the parts; call ``backward`` on it.
        parts: Every part, unweighted and detached, so that runs with different weights can be compared.
        output: The student's output.
        readings: Further measurements of the terms, ``"term/name"``, free of batch size and width.
        rows: Rows of the batch that all processes share, where there are several; still on the device.
        unsound: Which rows of the teacher's output have a NaN, ``(n,)``, whether or not a loss reads that output; None
            without a teacher.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    output: Tensor
    readings: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    rows: Tensor | None = None
    unsound: Tensor | None = None


class UpstreamGradients(NamedTuple):
    """Gradients of a loss that was computed before, for the forward pass that takes them to the student.

    Attributes:
        output: Of the student's output, of its shape; None where the loss does not depend on it.
        features: Tap name to the gradient of that feature, for those that the loss depends on.
        terms: Name to the gradient of a parameter of the terms, as ``term_modules`` spells it.
    """

    output: Tensor | None
    features: dict[str, Tensor]
    terms: dict[str, Tensor]
