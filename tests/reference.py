"""Slow twins: every formula once more, in plain loops over Python floats (which are float64), with no tensor operation.

They take tensors and read single numbers out of them, so that nothing of what they check is used to check it. The tests
of all parts may use them. At the end: the one switch that tests of error messages need.
"""

import contextlib
import math
from collections.abc import Iterator

import jaxtyping
import torch
from torch import Tensor, nn

Rows = list[list[float]]


def rows(x: Tensor) -> Rows:
    """All leading dimensions are rows, the last one columns."""
    table: Rows = x.detach().double().reshape(-1, x.shape[-1]).tolist()
    return table


def tensor(table: Rows, like: Tensor) -> Tensor:
    """The way back."""
    return torch.tensor(table, dtype=torch.float64).reshape(like.shape)


# Losses


def squared_error(z_s: Tensor, z_t: Tensor) -> float:
    total = 0.0
    for row_s, row_t in zip(rows(z_s), rows(z_t), strict=True):
        for s, t in zip(row_s, row_t, strict=True):
            total += 0.5 * (s - t) ** 2
    return total


def mean_squared_error(z_s: Tensor, z_t: Tensor) -> float:
    return 2 * squared_error(z_s, z_t) / z_s.numel()


def smooth_l1(z_s: Tensor, z_t: Tensor, *, beta: float = 1.0) -> float:
    total = 0.0
    for row_s, row_t in zip(rows(z_s), rows(z_t), strict=True):
        for s, t in zip(row_s, row_t, strict=True):
            d = abs(s - t)
            total += d * d / (2 * beta) if d < beta else d - beta / 2
    return total / z_s.numel()


def unit(row: list[float], eps: float) -> list[float]:
    length = math.sqrt(sum(value * value for value in row))
    return [value / length if length > eps else 0.0 for value in row]


def cosine(z_s: Tensor, z_t: Tensor, *, eps: float = 1e-6) -> float:
    values: list[float] = []
    for row_s, row_t in zip(rows(z_s), rows(z_t), strict=True):
        values.append(1 - sum(s * t for s, t in zip(unit(row_s, eps), unit(row_t, eps), strict=True)))
    return sum(values) / len(values)


def log_sum(z_s: Tensor, z_t: Tensor, *, alpha: float = 4.0, eps: float = 1e-8) -> float:
    total = 0.0
    for row_s, row_t in zip(rows(z_s), rows(z_t), strict=True):
        for s, t in zip(row_s, row_t, strict=True):
            total += abs(s - t) ** alpha + eps
    return math.log(total)


def correlation(z_s: Tensor, z_t: Tensor) -> list[float]:
    table_s, table_t = rows(z_s), rows(z_t)
    c: list[float] = []
    for j in range(z_s.shape[-1]):
        c.append(sum(table_s[n][j] * table_t[n][j] for n in range(len(table_s))) / len(table_s))
    return c


def log_correlation(c: Tensor, *, alpha: float = 4.0, eps: float = 1e-5) -> float:
    values: list[float] = c.detach().double().tolist()
    return math.log(sum(abs(1 - value) ** alpha for value in values) + eps)


def softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    powers = [math.exp(value - largest) for value in logits]
    return [power / sum(powers) for power in powers]


def kl(p_t: list[float], p_s: list[float]) -> float:
    """KL(p_t || p_s); a class that the teacher excludes adds nothing."""
    return sum(t * math.log(t / s) for t, s in zip(p_t, p_s, strict=True) if t > 0)


def kl_divergence(y_s: Tensor, y_t: Tensor, *, temperature: float = 4.0) -> float:
    total = 0.0
    for row_s, row_t in zip(rows(y_s), rows(y_t), strict=True):
        p_s = softmax([value / temperature for value in row_s])
        p_t = softmax([value / temperature for value in row_t])
        total += kl(p_t, p_s)
    return temperature**2 * total / len(rows(y_s))


def decoupled_kl(
    y_s: Tensor, y_t: Tensor, labels: list[int], *, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0
) -> float:
    total = 0.0
    for row_s, row_t, label in zip(rows(y_s), rows(y_t), labels, strict=True):
        p_s = softmax([value / temperature for value in row_s])
        p_t = softmax([value / temperature for value in row_t])
        others_s = [p / (1 - p_s[label]) for k, p in enumerate(p_s) if k != label]
        others_t = [p / (1 - p_t[label]) for k, p in enumerate(p_t) if k != label]
        labelled = kl([p_t[label], 1 - p_t[label]], [p_s[label], 1 - p_s[label]])
        total += alpha * labelled + beta * kl(others_t, others_s)
    return temperature**2 * total / len(labels)


# Norms


def standardize(values: list[float], eps: float) -> list[float]:
    """Zero mean, unit biased variance."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / math.sqrt(variance + eps) for value in values]


def batch_norm(x: Tensor, *, eps: float = 1e-4) -> Tensor:
    table = rows(x)
    for j in range(x.shape[-1]):
        column = standardize([row[j] for row in table], eps)
        for n, value in enumerate(column):
            table[n][j] = value
    return tensor(table, x)


def l2(x: Tensor, *, eps: float = 1e-6) -> Tensor:
    return tensor([unit(row, eps) for row in rows(x)], x)


def layer_norm(x: Tensor, *, eps: float = 1e-5) -> Tensor:
    return tensor([standardize(row, eps) for row in rows(x)], x)


def group_norm(x: Tensor, groups: int, *, eps: float = 1e-5) -> Tensor:
    width = x.shape[-1] // groups
    table: Rows = []
    for row in rows(x):
        out: list[float] = []
        for group in range(groups):
            out += standardize(row[group * width : (group + 1) * width], eps)
        table.append(out)
    return tensor(table, x)


# Projectors


def linear(x: Rows, layer: nn.Linear) -> Rows:
    weight: Rows = layer.weight.detach().double().tolist()
    bias: list[float] = [0.0] * len(weight) if layer.bias is None else layer.bias.detach().double().tolist()
    out: Rows = []
    for row in x:
        out.append([b + sum(w * v for w, v in zip(ws, row, strict=True)) for ws, b in zip(weight, bias, strict=True)])
    return out


def relu(x: Rows) -> Rows:
    return [[max(value, 0.0) for value in row] for row in x]


# Pools; x[n][c][h][w] or x[n][token][c]


def spatial_mean(x: Tensor) -> Tensor:
    n_, c_, h_, w_ = x.shape
    out = torch.zeros(n_, c_, dtype=torch.float64)
    for n in range(n_):
        for c in range(c_):
            out[n, c] = sum(float(x[n, c, h, w]) for h in range(h_) for w in range(w_)) / (h_ * w_)
    return out


def token_mean(x: Tensor, prefix: int) -> Tensor:
    n_, tokens, c_ = x.shape
    out = torch.zeros(n_, c_, dtype=torch.float64)
    for n in range(n_):
        for c in range(c_):
            out[n, c] = sum(float(x[n, token, c]) for token in range(prefix, tokens)) / (tokens - prefix)
    return out


def spatial_positions(x: Tensor) -> Tensor:
    n_, c_, h_, w_ = x.shape
    out = torch.zeros(n_, h_ * w_, c_, dtype=torch.float64)
    for n in range(n_):
        for c in range(c_):
            for h in range(h_):
                for w in range(w_):
                    out[n, h * w_ + w, c] = float(x[n, c, h, w])
    return out


def grid_positions(x: Tensor, height: int, width: int) -> Tensor:
    n_, c_, h_, w_ = x.shape
    out = torch.zeros(n_, height * width, c_, dtype=torch.float64)
    for n in range(n_):
        for c in range(c_):
            for i in range(height):
                for j in range(width):
                    rows = range(i * h_ // height, -(-(i + 1) * h_ // height))
                    columns = range(j * w_ // width, -(-(j + 1) * w_ // width))
                    cell = [float(x[n, c, row, column]) for row in rows for column in columns]
                    out[n, i * width + j, c] = sum(cell) / len(cell)
    return out


# What a user sees, who has no shape checker


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """Switch the tests' run-time check of annotations off: it would refuse bad shapes before our own messages do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
