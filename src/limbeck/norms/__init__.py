"""Norms of features: modules that keep the shape and act on the last dimension; ``nn.Identity`` is no norm at all.

None has a parameter: what a norm of a distillation term could learn, its projector learns, and the teacher's side must
not learn. None has a running statistic, and all compute the same in training and in evaluation, but for the two that
whiten, where a momentum below 1 asks for one. All compute in, and return, at least float32, under autocast too; all are
finite in value and gradient for constant and for zero features.
"""

from limbeck.norms.scaling import L2, BatchNorm, GroupNorm, LayerNorm
from limbeck.norms.whitening import ZCA, Cholesky

__all__ = [
    "L2",
    "ZCA",
    "BatchNorm",
    "Cholesky",
    "GroupNorm",
    "LayerNorm",
]
