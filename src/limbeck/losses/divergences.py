"""The Kullback-Leibler divergence of two softmaxes: what all losses of that name have in common."""

import torch.nn.functional as F
from torch import Tensor

from limbeck.losses.inputs import pair, positive


def softmax_kl(name: str, y_s: Tensor, y_t: Tensor, *, temperature: float) -> Tensor:
    """``T^2 mean_n KL( softmax(y_t[n] / T) || softmax(y_s[n] / T) )``, checks included."""
    positive(name, "temperature", temperature)
    y_s, y_t = pair(name, y_s, y_t)
    rows = kl_per_row(F.log_softmax(y_s / temperature, -1), F.log_softmax(y_t / temperature, -1))
    return rows.mean() * temperature**2


def kl_per_row(log_p_s: Tensor, log_p_t: Tensor) -> Tensor:
    """``KL(p_t || p_s)`` over the last dimension, from log-probabilities."""
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)
