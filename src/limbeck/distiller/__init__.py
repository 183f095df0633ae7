"""The distiller: student, frozen teacher, terms and their weights in one trainable module.

:class:`Distiller` reads a batch by a :class:`Task` and gives a :class:`StepResult`. :func:`evaluating` looks at a
module as evaluation does; a :class:`Clock` times a part of every step. :func:`shard_distiller` cuts one up, so that
each process holds a share of it.
"""

from limbeck.distiller.frozen import FrozenTeacher, evaluating
from limbeck.distiller.interface import TASK, StepResult, Task, UpstreamGradients, Weight
from limbeck.distiller.module import Clock, Distiller
from limbeck.distiller.sharded import ShardedDistiller, beside, shard_distiller

__all__ = [
    "TASK",
    "Clock",
    "Distiller",
    "FrozenTeacher",
    "ShardedDistiller",
    "StepResult",
    "Task",
    "UpstreamGradients",
    "Weight",
    "beside",
    "evaluating",
    "shard_distiller",
]
