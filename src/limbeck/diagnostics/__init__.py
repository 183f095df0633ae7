"""What a projector has learned: measurements of features and projectors, apart from any training.

All are functions of tensors, the student's first, and change nothing. A projector W is in the paper's layout, ``d_s x
d_t``: ``layer.weight.T``.

- Spectrum (:mod:`limbeck.diagnostics.spectrum`): ``singular_values``, of W or of ``column_normalized`` W, or
  ``local_spectrum`` of a projector with more layers, from its ``local_jacobians``
  (:mod:`limbeck.diagnostics.jacobians`); and what they come to:
  ``stable_rank``, ``effective_rank``, ``participation_ratio``, ``condition``, ``share_below``, ``share_small``.
- Dynamics: the relations ``self_relation`` and ``cross_relation``; ``gradient_flow``, ``discrete_step`` and
  ``momentum_step``; ``pull``, the loss against the weight decay; where they end, ``fixed_point``, and how far from
  there, ``fixed_point_distances`` and ``relative_distance``; what of the past is in a projector, ``memory_shares``,
  ``memory_lengths``, ``agreement`` and ``initial_share``; its scale behind a batch norm, ``column_norm_step`` and
  ``equilibrium_column_norms``.
- Similarity (:mod:`limbeck.diagnostics.similarity`): ``cka``; ``correlation_matrix`` and ``off_diagonal_energy``;
  ``input_output_correlation``; ``channel_correlations`` and ``gradient_shares``; ``dead_channels``.
- Fit (:mod:`limbeck.diagnostics.fit`): ``top1_agreement``, ``expected_calibration_error``, ``mean_confidence``.
- Balance (:mod:`limbeck.diagnostics.balance`): ``gradient_balance`` of the parts of a loss.
- Equivariance (:mod:`limbeck.diagnostics.equivariance`): ``translation_error`` and ``block_equivariance``.
- Inputs (:mod:`limbeck.diagnostics.statistics`): ``first_norm_shift`` and ``confidence_under``.

:class:`Probe` computes them from time to time while a distiller trains, and changes nothing of the training.

The names are loaded when they are first used, since they need PyTorch and :mod:`limbeck.diagnostics.verdict`, which
makes verdicts of a log, does not.

The formulas, what each rewards and ignores, and the tests of them are in ``docs/maths.md``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.diagnostics.balance import Balance, gradient_balance
    from limbeck.diagnostics.dynamics import discrete_step, gradient_flow, momentum_step, pull
    from limbeck.diagnostics.equivariance import block_equivariance, translation_error
    from limbeck.diagnostics.fit import expected_calibration_error, mean_confidence, top1_agreement
    from limbeck.diagnostics.fixed_points import (
        Distance,
        FixedPointDistances,
        fixed_point,
        fixed_point_distances,
        relative_distance,
    )
    from limbeck.diagnostics.jacobians import local_jacobians, local_spectrum
    from limbeck.diagnostics.memory import agreement, initial_share, memory_lengths, memory_shares
    from limbeck.diagnostics.probe import Probe
    from limbeck.diagnostics.relations import cross_relation, self_relation
    from limbeck.diagnostics.scale import column_norm_step, equilibrium_column_norms
    from limbeck.diagnostics.similarity import (
        channel_correlations,
        cka,
        correlation_matrix,
        dead_channels,
        gradient_shares,
        input_output_correlation,
        off_diagonal_energy,
    )
    from limbeck.diagnostics.spectrum import (
        column_normalized,
        condition,
        effective_rank,
        participation_ratio,
        share_below,
        share_small,
        singular_values,
        stable_rank,
    )
    from limbeck.diagnostics.statistics import NormShift, confidence_under, first_norm_shift

__all__ = [
    "Balance",
    "Distance",
    "FixedPointDistances",
    "NormShift",
    "Probe",
    "agreement",
    "block_equivariance",
    "channel_correlations",
    "cka",
    "column_norm_step",
    "column_normalized",
    "condition",
    "confidence_under",
    "correlation_matrix",
    "cross_relation",
    "dead_channels",
    "discrete_step",
    "effective_rank",
    "equilibrium_column_norms",
    "expected_calibration_error",
    "first_norm_shift",
    "fixed_point",
    "fixed_point_distances",
    "gradient_balance",
    "gradient_flow",
    "gradient_shares",
    "initial_share",
    "input_output_correlation",
    "local_jacobians",
    "local_spectrum",
    "mean_confidence",
    "memory_lengths",
    "memory_shares",
    "momentum_step",
    "off_diagonal_energy",
    "participation_ratio",
    "pull",
    "relative_distance",
    "self_relation",
    "share_below",
    "share_small",
    "singular_values",
    "stable_rank",
    "top1_agreement",
    "translation_error",
]

_HOMES = {
    "Balance": "balance",
    "Distance": "fixed_points",
    "FixedPointDistances": "fixed_points",
    "NormShift": "statistics",
    "Probe": "probe",
    "agreement": "memory",
    "block_equivariance": "equivariance",
    "channel_correlations": "similarity",
    "cka": "similarity",
    "column_norm_step": "scale",
    "column_normalized": "spectrum",
    "condition": "spectrum",
    "confidence_under": "statistics",
    "correlation_matrix": "similarity",
    "cross_relation": "relations",
    "dead_channels": "similarity",
    "discrete_step": "dynamics",
    "effective_rank": "spectrum",
    "equilibrium_column_norms": "scale",
    "expected_calibration_error": "fit",
    "first_norm_shift": "statistics",
    "fixed_point": "fixed_points",
    "fixed_point_distances": "fixed_points",
    "gradient_balance": "balance",
    "gradient_flow": "dynamics",
    "gradient_shares": "similarity",
    "initial_share": "memory",
    "input_output_correlation": "similarity",
    "local_jacobians": "jacobians",
    "local_spectrum": "jacobians",
    "mean_confidence": "fit",
    "memory_lengths": "memory",
    "memory_shares": "memory",
    "momentum_step": "dynamics",
    "off_diagonal_energy": "similarity",
    "participation_ratio": "spectrum",
    "pull": "dynamics",
    "relative_distance": "fixed_points",
    "self_relation": "relations",
    "share_below": "spectrum",
    "share_small": "spectrum",
    "singular_values": "spectrum",
    "stable_rank": "spectrum",
    "top1_agreement": "fit",
    "translation_error": "equivariance",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'limbeck.diagnostics' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"limbeck.diagnostics.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
