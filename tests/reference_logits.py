"""Slow twins of the losses of logits, and of the features that came with them, in plain loops over Python floats."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import reference
from limbeck.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def columns(table: reference.Rows) -> reference.Rows:
    return [list(column) for column in zip(*table, strict=True)]


def probabilities(y: Tensor, temperature: float) -> reference.Rows:
    return [reference.softmax([value / temperature for value in row]) for row in reference.rows(y)]


# Features


def l1(z_s: Tensor, z_t: Tensor) -> float:
    total = 0.0
    for row_s, row_t in zip(reference.rows(z_s), reference.rows(z_t), strict=True):
        for s, t in zip(row_s, row_t, strict=True):
            total += abs(s - t)
    return total / z_s.numel()


def gaussian(positions: reference.Rows, eps: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the positions of one sample."""
    means, deviations = [], []
    for channel in columns(positions):
        m = mean(channel)
        means.append(m)
        deviations.append(math.sqrt(sum((value - m) ** 2 for value in channel) / (len(channel) - 1) + eps))
    return means, deviations


def gaussian_wasserstein(z_s: Tensor, z_t: Tensor, *, mean_weight: float = 2.0, eps: float = 1e-5) -> float:
    total = 0.0
    for sample_s, sample_t in zip(z_s, z_t, strict=True):
        means_s, deviations_s = gaussian(reference.rows(sample_s), eps)
        means_t, deviations_t = gaussian(reference.rows(sample_t), eps)
        total += mean_weight * sum((s - t) ** 2 for s, t in zip(means_s, means_t, strict=True))
        total += sum((s - t) ** 2 for s, t in zip(deviations_s, deviations_t, strict=True))
    return total / len(z_s)


def correlation_power(c: list[float], *, power: float) -> float:
    return sum(abs(1 - value) ** power for value in c)


# Logits


def standardize(y: Tensor) -> Tensor:
    out: reference.Rows = []
    for row in reference.rows(y):
        m = mean(row)
        deviation = math.sqrt(sum((value - m) ** 2 for value in row) / (len(row) - 1))
        out.append([(value - m) / deviation for value in row])
    return reference.tensor(out, y)


def standardized_kl(y_s: Tensor, y_t: Tensor, *, temperature: float = 2.0) -> float:
    return reference.kl_divergence(standardize(y_s), standardize(y_t), temperature=temperature)


def normalized_kl(
    y_s: Tensor, y_t: Tensor, labels: list[int], *, temperature: float = 1.0, gamma: float = 1.5
) -> float:
    total = 0.0
    for row_s, row_t, label in zip(reference.rows(y_s), reference.rows(y_t), labels, strict=True):
        total -= reference.softmax(row_t)[label] * math.log(reference.softmax(row_s)[label])
        others_s = reference.softmax([value / temperature for k, value in enumerate(row_s) if k != label])
        others_t = reference.softmax([value / temperature for k, value in enumerate(row_t) if k != label])
        total += gamma * temperature**2 * reference.kl(others_t, others_s)
    return total / len(labels)


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = mean(a), mean(b)
    together = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return together / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def pearson_distance(
    y_s: Tensor, y_t: Tensor, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> float:
    p_s, p_t = probabilities(y_s, temperature), probabilities(y_t, temperature)
    inter = mean([1 - pearson(row_s, row_t) for row_s, row_t in zip(p_s, p_t, strict=True)])
    if gamma == 0:
        return temperature**2 * beta * inter
    intra = mean([1 - pearson(s, t) for s, t in zip(columns(p_s), columns(p_t), strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def gram(table: reference.Rows) -> reference.Rows:
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in table] for a in table]


def squared_distance(a: reference.Rows, b: reference.Rows) -> float:
    return sum((x - y) ** 2 for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True))


def multi_level_kl(
    y_s: Tensor,
    y_t: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance: float = 1.0,
    batch: float = 1.0,
    classes: float = 1.0,
) -> float:
    total = 0.0
    for temperature in temperatures:
        p_s, p_t = probabilities(y_s, temperature), probabilities(y_t, temperature)
        total += instance * reference.kl_divergence(y_s, y_t, temperature=temperature)
        total += batch * squared_distance(gram(p_s), gram(p_t)) / len(p_s)
        total += classes * squared_distance(gram(columns(p_s)), gram(columns(p_t))) / len(p_s[0])
    return total


# What the tests of these losses share


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_s = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return z_s.to(dtype), torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def finite_value_and_gradients(loss: Loss, z_s: Tensor, z_t: Tensor) -> None:
    z_s, z_t = z_s.clone().requires_grad_(), z_t.clone().requires_grad_()
    value = loss(z_s, z_t)
    value.backward()
    assert value.isfinite()
    assert z_s.grad is not None
    assert z_t.grad is not None
    assert z_s.grad.isfinite().all()
    assert z_t.grad.isfinite().all()


def gradient(loss: Loss, z_s: Tensor, z_t: Tensor) -> Tensor:
    """Of the student's side."""
    z_s = z_s.clone().requires_grad_()
    loss(z_s, z_t).backward()
    assert z_s.grad is not None
    return z_s.grad


def message(call: Callable[[], object]) -> str:
    """The one line that a user sees."""
    with reference.as_a_user(), pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
