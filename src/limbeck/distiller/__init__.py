"""The distiller: student, frozen teacher, terms and their weights in one trainable module.

:class:`Distiller` reads a batch by a :class:`Task` and gives a :class:`StepResult`. :func:`evaluating` looks at a
module as evaluation does; a :class:`Clock` times a part of every step.
"""

from limbeck.distiller.clock import Clock
from limbeck.distiller.frozen import FrozenTeacher, evaluating
from limbeck.distiller.interface import TASK, Pull, StepResult, Task, Weight
from limbeck.distiller.module import Distiller

__all__ = [
    "TASK",
    "Clock",
    "Distiller",
    "FrozenTeacher",
    "Pull",
    "StepResult",
    "Task",
    "Weight",
    "evaluating",
]
