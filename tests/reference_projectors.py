"""Slow twins of projectors and of the norms that whiten, in plain loops, as those in ``reference``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from reference import Rows, rows, tensor


def transposed(a: Rows) -> Rows:
    return [list(column) for column in zip(*a, strict=True)]


def product(a: Rows, b: Rows) -> Rows:
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in transposed(b)] for row in a]


def solved(a: Rows, b: Rows) -> Rows:
    """``A^-1 B`` by Gauss-Jordan elimination, the largest pivot first."""
    table = [[*row, *right] for row, right in zip(a, b, strict=True)]
    d = len(a)
    for j in range(d):
        pivot = max(range(j, d), key=lambda i: abs(table[i][j]))
        table[j], table[pivot] = table[pivot], table[j]
        table[j] = [value / table[j][j] for value in table[j]]
        for i in range(d):
            if i != j:
                factor = table[i][j]
                table[i] = [value - factor * other for value, other in zip(table[i], table[j], strict=True)]
    return [row[d:] for row in table]


def of_eigenvalues(c: Rows, function: Callable[[float], float]) -> Rows:
    """``V f(l) V^T`` for symmetric ``C = V diag(l) V^T``, by Jacobi's rotations."""
    d = len(c)
    a = [list(row) for row in c]
    v = [[float(i == j) for j in range(d)] for i in range(d)]
    for _ in range(60):
        for p in range(d):
            for q in range(p + 1, d):
                if a[p][q] == 0:
                    continue
                angle = 0.5 * math.atan2(2 * a[p][q], a[q][q] - a[p][p])
                cos, sin = math.cos(angle), math.sin(angle)
                for table in (a, v):  # columns
                    for row in table:
                        row[p], row[q] = cos * row[p] - sin * row[q], sin * row[p] + cos * row[q]
                a[p], a[q] = (
                    [cos * x - sin * y for x, y in zip(a[p], a[q], strict=True)],
                    [sin * x + cos * y for x, y in zip(a[p], a[q], strict=True)],
                )
    values = [function(a[i][i]) for i in range(d)]
    return [[sum(v[i][k] * values[k] * v[j][k] for k in range(d)) for j in range(d)] for i in range(d)]


def polar(v: Tensor) -> Tensor:
    """``V (V^T V)^(-1/2)`` of the tall one of V and its transpose."""
    tall = rows(v) if v.shape[0] >= v.shape[1] else transposed(rows(v))
    found = product(tall, of_eigenvalues(product(transposed(tall), tall), lambda value: 1 / math.sqrt(value)))
    return tensor(found if v.shape[0] >= v.shape[1] else transposed(found), v)


def weights(batches: int, momentum: float) -> list[float]:
    """What each batch counts, the last one most."""
    plain = [momentum * (1 - momentum) ** (batches - 1 - i) for i in range(batches)]
    return [weight / sum(plain) for weight in plain]


def moments(batches: list[Tensor], momentum: float) -> tuple[list[float], Rows]:
    """Mean and covariance of all rows of all batches, each row with its share of its batch's weight."""
    weighted = [
        (weight / len(rows(batch)), row)
        for weight, batch in zip(weights(len(batches), momentum), batches, strict=True)
        for row in rows(batch)
    ]
    d = batches[0].shape[-1]
    mean = [sum(weight * row[j] for weight, row in weighted) for j in range(d)]
    covariance = [
        [sum(weight * (row[i] - mean[i]) * (row[j] - mean[j]) for weight, row in weighted) for j in range(d)]
        for i in range(d)
    ]
    return mean, covariance


def with_ridge(covariance: Rows, eps: float) -> Rows:
    d = len(covariance)
    ridge = eps * sum(covariance[j][j] for j in range(d)) / d + 1e-6
    return [[covariance[i][j] + ridge * (i == j) for j in range(d)] for i in range(d)]


def _mapped(x: Tensor, mean: list[float], columns: Rows) -> Tensor:
    centered = [[value - m for value, m in zip(row, mean, strict=True)] for row in rows(x)]
    return tensor(product(centered, columns), x)


def zca(x: Tensor, *, eps: float = 1e-4, before: tuple[Tensor, ...] = (), momentum: float = 1.0) -> Tensor:
    """``before`` are the batches before this one."""
    mean, covariance = moments([*before, x], momentum)
    return _mapped(x, mean, of_eigenvalues(with_ridge(covariance, eps), lambda value: 1 / math.sqrt(value)))


def cholesky_factor(c: Rows) -> Rows:
    d = len(c)
    factor = [[0.0] * d for _ in range(d)]
    for i in range(d):
        for j in range(i + 1):
            rest = c[i][j] - sum(factor[i][k] * factor[j][k] for k in range(j))
            factor[i][j] = math.sqrt(rest) if i == j else rest / factor[j][j]
    return factor


def cholesky(x: Tensor, *, eps: float = 1e-4, before: tuple[Tensor, ...] = (), momentum: float = 1.0) -> Tensor:
    mean, covariance = moments([*before, x], momentum)
    factor = cholesky_factor(with_ridge(covariance, eps))
    unit = [[float(i == j) for j in range(len(factor))] for i in range(len(factor))]
    return _mapped(x, mean, transposed(solved(factor, unit)))


def ridge(batches: list[tuple[Tensor, Tensor]], *, ridge: float, momentum: float) -> Tensor:
    """W of the closed form, ``d_s x d_t``."""
    d_s = batches[0][0].shape[-1]
    both = [torch.cat([z_s.double(), z_t.double()], dim=-1) for z_s, z_t in batches]
    _, covariance = moments(both, momentum)
    c_s = [row[:d_s] for row in covariance[:d_s]]
    c_st = [row[d_s:] for row in covariance[:d_s]]
    r = ridge * sum(c_s[j][j] for j in range(d_s)) / d_s
    return torch.tensor(
        solved([[c_s[i][j] + r * (i == j) for j in range(d_s)] for i in range(d_s)], c_st), dtype=torch.float64
    )
