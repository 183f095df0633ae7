"""Losses: functions of what the student and what the teacher computed, in this order, that give one number.

Of features: ``squared_error``, ``mean_squared_error``, ``l1``, ``smooth_l1``, ``cosine``, ``log_sum``, ``feature_kl``,
``gaussian_wasserstein``. Of the per-channel ``correlation`` of batch-normalized features: ``log_correlation``,
``correlation_power``. Of relations, where the widths may differ: ``similarity_preserving``, ``relational_distance``,
``relational_angle``, ``relational``, ``probabilistic_transfer``, ``correlation_congruence``; and ``decorrelation``, of
the student alone. Of maps: ``attention_transfer``, ``neuron_selectivity``, ``hierarchical_context``. Of logits:
``kl_divergence``, ``standardized_kl``, ``pearson_distance``, ``multi_level_kl``, and with labels ``decoupled_kl``,
``normalized_kl``; ``standardize`` goes in front of any of these.

All of them compute in at least float32, whatever comes in, also under autocast: it lowers nothing but matrix products,
and the losses that have one switch it off for them. All are finite in value and gradient where both sides are equal.
The gradient goes to both arguments, and to the teacher's only if it asks for one.
"""

from limbeck.losses.batch_logits import multi_level_kl, pearson_distance
from limbeck.losses.correlations import correlation, correlation_power, log_correlation
from limbeck.losses.decorrelations import decorrelation
from limbeck.losses.distributions import feature_kl, gaussian_wasserstein
from limbeck.losses.features import (
    cosine,
    l1,
    log_sum,
    mean_squared_error,
    smooth_l1,
    squared_error,
    unit_rows,
)
from limbeck.losses.kernels import correlation_congruence, probabilistic_transfer
from limbeck.losses.logits import decoupled_kl, kl_divergence, normalized_kl, standardize, standardized_kl
from limbeck.losses.maps import attention_transfer, hierarchical_context, neuron_selectivity
from limbeck.losses.relations import relational, relational_angle, relational_distance, similarity_preserving

__all__ = [
    "attention_transfer",
    "correlation",
    "correlation_congruence",
    "correlation_power",
    "cosine",
    "decorrelation",
    "decoupled_kl",
    "feature_kl",
    "gaussian_wasserstein",
    "hierarchical_context",
    "kl_divergence",
    "l1",
    "log_correlation",
    "log_sum",
    "mean_squared_error",
    "multi_level_kl",
    "neuron_selectivity",
    "normalized_kl",
    "pearson_distance",
    "probabilistic_transfer",
    "relational",
    "relational_angle",
    "relational_distance",
    "similarity_preserving",
    "smooth_l1",
    "squared_error",
    "standardize",
    "standardized_kl",
    "unit_rows",
]
