"""What a projector has learned: measurements of features and projectors, apart from any training.

Of its dynamics, from :mod:`limbeck.diagnostics.dynamics`: the relations ``self_relation`` and ``cross_relation``;
``gradient_flow``, ``discrete_step`` and ``momentum_step``; where they end, ``fixed_point``; what of the past is in a
projector, ``memory_shares``, ``memory_lengths`` and ``agreement``; its scale behind a batch norm, ``column_norm_step``
and ``equilibrium_column_norms``. The derivations are in ``docs/maths.md``.
"""

from limbeck.diagnostics.dynamics import (
    agreement,
    column_norm_step,
    cross_relation,
    discrete_step,
    equilibrium_column_norms,
    fixed_point,
    gradient_flow,
    memory_lengths,
    memory_shares,
    momentum_step,
    self_relation,
)

__all__ = [
    "agreement",
    "column_norm_step",
    "cross_relation",
    "discrete_step",
    "equilibrium_column_norms",
    "fixed_point",
    "gradient_flow",
    "memory_lengths",
    "memory_shares",
    "momentum_step",
    "self_relation",
]
