"""Projectors: modules that map the last dimension from the student's width to the teacher's.

Any ``nn.Module`` that does so is a projector; these are the ones of the literature. A projector is trained with the
student and thrown away after. It keeps all leading dimensions, so it projects vectors and the positions of a map alike,
and it follows autocast, being matrix products.

The inverted projection, from the teacher to the student, needs no module of its own: ``linear(d_t, d_s)``, or any other
projector here with the two widths swapped, applied to the teacher's feature. The student then has to reach, with no
projector of its own, what of the teacher's feature a projection picks out; the projector learns to drop what only the
teacher's task needs, for which it was proposed: distillation across tasks (R. Miles, I. Elezi, J. Deng, "Learning to
Project for Cross-Task Knowledge Distillation", BMVC 2024). A projector that is free to be zero makes the match trivial
where no norm follows that fixes its output's scale.

Each projector says under *Cost* its multiply-adds a row and its parameters, under *Init* its first values, under
*Weight decay* what ``optim.sgd`` (all parameters) and ``optim.adamw`` (all but vectors, such as biases) do to it.
"""

from limbeck.projectors.ensembles import Ensemble, ensemble
from limbeck.projectors.layers import identity, linear, low_rank, mlp
from limbeck.projectors.polar import orthogonal
from limbeck.projectors.ridge import Ridge

__all__ = [
    "Ensemble",
    "Ridge",
    "ensemble",
    "identity",
    "linear",
    "low_rank",
    "mlp",
    "orthogonal",
]
