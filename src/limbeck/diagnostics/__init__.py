"""What a projector has learned: measurements of features and projectors, apart from any training.

All are functions of tensors, the student's first, and change nothing. A projector W is in the paper's layout, ``d_s x
d_t``: ``layer.weight.T``.

- Spectrum (:mod:`limbeck.diagnostics.spectrum`): ``singular_values``, of W, of ``column_normalized`` W, or of the
  ``local_jacobians`` of a projector with more layers; and what they come to: ``stable_rank``, ``effective_rank``,
  ``participation_ratio``, ``condition``, ``share_below``, ``share_small``.
- Dynamics: the relations ``self_relation`` and ``cross_relation``; ``gradient_flow`` and ``discrete_step``; ``pull``,
  the loss against the weight decay; where they end, ``fixed_point``, and how far from there, ``fixed_point_distances``
  and ``relative_distance``; what of the past is in a projector, ``agreement`` and ``initial_share``.
- Similarity (:mod:`limbeck.diagnostics.similarity`): ``cka``; ``correlation_matrix`` and ``off_diagonal_energy``;
  ``input_output_correlation``; ``channel_correlations`` and ``gradient_shares``; ``dead_channels``.
- Fit (:mod:`limbeck.diagnostics.fit`): ``top1_agreement``, ``expected_calibration_error``, ``mean_confidence``.
- Balance (:mod:`limbeck.diagnostics.balance`): ``gradient_balance`` of the parts of a loss.
- Equivariance (:mod:`limbeck.diagnostics.equivariance`): ``translation_error`` and ``block_equivariance``.
- Inputs (:mod:`limbeck.diagnostics.statistics`): ``first_norm_shift`` and ``confidence_under``.

:class:`Probe` computes them from time to time while a distiller trains, and changes nothing of the training.

The formulas, what each rewards and ignores, and the tests of them are in ``docs/maths.md``.
"""

from limbeck.diagnostics.balance import Balance, gradient_balance
from limbeck.diagnostics.dynamics import (
    agreement,
    cross_relation,
    discrete_step,
    gradient_flow,
    initial_share,
    pull,
    self_relation,
)
from limbeck.diagnostics.equivariance import block_equivariance, translation_error
from limbeck.diagnostics.fit import expected_calibration_error, mean_confidence, top1_agreement
from limbeck.diagnostics.fixed_points import (
    Distance,
    FixedPointDistances,
    fixed_point,
    fixed_point_distances,
    relative_distance,
)
from limbeck.diagnostics.probe import Probe
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
    local_jacobians,
    participation_ratio,
    share_below,
    share_small,
    singular_values,
    stable_rank,
)
from limbeck.diagnostics.statistics import NormShift, confidence_under, first_norm_shift

__all__ = [
    "Balance", "Distance", "FixedPointDistances", "NormShift", "Probe", "agreement", "block_equivariance",
    "channel_correlations", "cka", "column_normalized", "condition", "confidence_under", "correlation_matrix",
    "cross_relation", "dead_channels", "discrete_step", "effective_rank", "expected_calibration_error",
    "first_norm_shift", "fixed_point", "fixed_point_distances", "gradient_balance", "gradient_flow",
    "gradient_shares", "initial_share", "input_output_correlation", "local_jacobians", "mean_confidence",
    "off_diagonal_energy", "participation_ratio", "pull", "relative_distance", "self_relation", "share_below",
    "share_small", "singular_values", "stable_rank", "top1_agreement", "translation_error",
]  # fmt: skip
