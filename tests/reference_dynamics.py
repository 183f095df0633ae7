"""The dynamics of a projector that docs/maths.md states and no run computes, and slow twins of what runs do compute."""

import torch
from torch import Tensor

from limbeck.diagnostics import gradient_flow
from reference import Rows, rows


def relation(z_s: Tensor, z_t: Tensor, *, centered: bool = False) -> Rows:
    left, right = rows(z_s), rows(z_t)
    if centered:
        left, right = without_means(left), without_means(right)
    return [
        [sum(left[n][i] * right[n][j] for n in range(len(left))) for j in range(len(right[0]))]
        for i in range(len(left[0]))
    ]


def without_means(table: Rows) -> Rows:
    means = [sum(row[j] for row in table) / len(table) for j in range(len(table[0]))]
    return [[value - mean for value, mean in zip(row, means, strict=True)] for row in table]


def times(a: Rows, b: Rows) -> Rows:
    return [[sum(row[k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for row in a]


def kept(c_s: Rows, *, lr: float, decay: float) -> Rows:
    """A = (1 - decay) I - lr C_s."""
    return [[(1 - decay) * (i == j) - lr * value for j, value in enumerate(row)] for i, row in enumerate(c_s)]


def memory_shares(w_0: Tensor, c_s: Tensor, c_st: Tensor, *, lr: float, decay: float) -> list[float]:
    """Every part by itself, brought forward through all later batches."""
    parts: list[Rows] = []
    for start in range(len(c_s) + 1):
        part = rows(w_0) if start == 0 else [[lr * value for value in row] for row in rows(c_st[start - 1])]
        for k in range(start, len(c_s)):
            part = times(kept(rows(c_s[k]), lr=lr, decay=decay), part)
        parts.append(part)
    cells = [(i, j) for i in range(w_0.shape[0]) for j in range(w_0.shape[1])]
    whole = {(i, j): sum(part[i][j] for part in parts) for i, j in cells}
    square = sum(value**2 for value in whole.values())
    return [sum(part[i][j] * whole[i, j] for i, j in cells) / square for part in parts]


def momentum_step(
    w: Tensor, velocity: Tensor, c_s: Tensor, c_st: Tensor, *, lr: float, decay: float, momentum: float = 0.9
) -> tuple[Tensor, Tensor]:
    velocity = momentum * velocity + lr * gradient_flow(c_s, c_st, w) - decay * w
    return w + velocity, velocity


def memory_lengths(c_s: Tensor, *, lr: float, decay: float) -> Tensor:
    """Steps after which all but 1/e of a batch is forgotten, by eigendirection of C_s."""
    return -1 / (1 - decay - lr * torch.linalg.eigvalsh(c_s).clamp(min=0)).abs().log()


def column_norm_step(w: Tensor, g: Tensor, *, lr: float, decay: float) -> Tensor:
    """Squared column norms after a step of SGD behind a batch norm."""
    return (1 - decay) ** 2 * w.square().sum(0) + lr**2 * g.square().sum(0)


def equilibrium_column_norms(w: Tensor, g: Tensor, *, lr: float, decay: float) -> Tensor:
    """Where :func:`column_norm_step` rests."""
    return (lr**2 * w.square().sum(0) * g.square().sum(0) / (2 * decay - decay**2)) ** 0.25
