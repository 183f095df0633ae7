"""Slow twins of the terms: pooling, projection, norm and loss in loops, from the twins in ``reference``."""

import math

import torch
from torch import Tensor, nn

import reference as slow
from limbeck.features.taps import Captured


def pooled(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return slow.spatial_mean(x)
    if x.ndim == 3:
        return slow.token_mean(x, 0)
    return x.double()


def sides(z_s: Tensor, z_t: Tensor, projector: nn.Linear) -> tuple[Tensor, Tensor]:
    """Both features, pooled, the student's projected, and both batch-normalized."""
    a = pooled(z_s)
    projected = slow.linear(slow.rows(a), projector)
    a = torch.tensor(projected, dtype=torch.float64)
    return slow.batch_norm(a), slow.batch_norm(pooled(z_t))


def feature_log_sum(z_s: Tensor, z_t: Tensor, projector: nn.Linear) -> float:
    return slow.log_sum(*sides(z_s, z_t, projector))


def feature_log_correlation(z_s: Tensor, z_t: Tensor, projector: nn.Linear) -> float:
    return slow.log_correlation(torch.tensor(slow.correlation(*sides(z_s, z_t, projector)), dtype=torch.float64))


def log_mean(z_s: Tensor, z_t: Tensor, projector: nn.Linear) -> float:
    """LogSum with a mean in place of the sum."""
    a, t = sides(z_s, z_t, projector)
    powers = [
        abs(s - b) ** 4
        for row_s, row_t in zip(a.tolist(), t.tolist(), strict=True)
        for s, b in zip(row_s, row_t, strict=True)
    ]
    return math.log(sum(powers) / len(powers) + 1e-8)


def agreement(y_s: Tensor, y_t: Tensor) -> float:
    same = 0
    for row_s, row_t in zip(slow.rows(y_s), slow.rows(y_t), strict=True):
        same += row_s.index(max(row_s)) == row_t.index(max(row_t))
    return same / y_s.shape[0]


def captured(feature: Tensor, *, output: Tensor | None = None, target: Tensor | None = None) -> Captured:
    """What a model would have given, with the feature at tap "z"."""
    return Captured(output if output is not None else feature, {"z": feature}, target)
