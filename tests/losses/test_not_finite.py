"""A feature that is not finite makes the loss not finite, and one that is only large is not taken for zero."""

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck import losses
from limbeck.losses.features import unit_rows

torch.set_num_threads(1)

Loss = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[int, ...]

LABELS = torch.arange(8) % 5
MAPS = (8, 5, 3, 3)


def of_correlation(loss: Callable[..., Tensor], **knobs: float) -> Loss:
    return lambda z_s, z_t: loss(losses.correlation(z_s, z_t), **knobs)


def standardized(y_s: Tensor, y_t: Tensor) -> Tensor:
    return losses.kl_divergence(losses.standardize(y_s), losses.standardize(y_t))


# Those that are not called with two features (n, d) and nothing else.
OTHERS: dict[str, tuple[Loss, Shape]] = {
    "attention_transfer": (losses.attention_transfer, MAPS),
    "correlation_power": (of_correlation(losses.correlation_power, power=2.0), (8, 5)),
    "decoupled_kl": (lambda y_s, y_t: losses.decoupled_kl(y_s, y_t, LABELS), (8, 5)),
    "feature_kl": (functools.partial(losses.feature_kl, temperature=1.0), (8, 5)),
    "gaussian_wasserstein": (losses.gaussian_wasserstein, (8, 4, 5)),
    "hierarchical_context": (losses.hierarchical_context, MAPS),
    "log_correlation": (of_correlation(losses.log_correlation), (8, 5)),
    "neuron_selectivity": (losses.neuron_selectivity, (8, 2, 3, 3)),  # by channels
    "normalized_kl": (lambda y_s, y_t: losses.normalized_kl(y_s, y_t, LABELS), (8, 5)),
    "standardize": (standardized, (8, 5)),
    "unit_rows": (lambda z_s, z_t: losses.mean_squared_error(unit_rows(z_s), unit_rows(z_t)), (8, 5)),
}
MORE: dict[str, tuple[Loss, Shape]] = {
    "neuron_selectivity, by positions": (losses.neuron_selectivity, (8, 30, 2, 2)),
    "attention_transfer 1": (functools.partial(losses.attention_transfer, power=1.0), MAPS),
    "decorrelation, covariances": (functools.partial(losses.decorrelation, standardized=False), (8, 5)),
    "log_sum 2.5": (functools.partial(losses.log_sum, alpha=2.5), (8, 5)),
}
EVERY = {name: OTHERS.get(name, (getattr(losses, name), (8, 5))) for name in losses.__all__} | MORE

# The power of a factor on both sides that the loss grows by.
POWERS = {
    "correlation": 2,
    "gaussian_wasserstein": 2,
    "hierarchical_context": 2,
    "l1": 1,
    "mean_squared_error": 2,
    "squared_error": 2,
}
SCALE_FREE = [
    "attention_transfer",
    "correlation_congruence",
    "cosine",
    "decorrelation",
    "neuron_selectivity",
    "probabilistic_transfer",
    "relational",
    "relational_angle",
    "relational_distance",
    "similarity_preserving",
    "standardize",
    "standardized_kl",
    "unit_rows",
]


def sides(shape: Shape) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", EVERY)
def test_one_row_that_is_not_finite_reaches_the_loss(name: str) -> None:
    loss, shape = EVERY[name]
    for side, spoiled, elements in itertools.product((0, 1), (math.nan, math.inf), (slice(None), slice(1, 2))):
        both = sides(shape)
        both[side][2].view(-1)[elements] = spoiled
        reads = side == 0 or "decorrelation" not in name  # the one loss that does not read the teacher
        assert loss(*both).isfinite().all() != reads, (side, spoiled, elements)


@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_scale_of_large_features_is_ignored_or_the_loss_is_not_finite(name: str) -> None:
    loss, shape = EVERY[name]
    z_s, z_t = sides(shape)
    expected = loss(z_s, z_t)
    for factor in (1e15, 1e30, 1e37):
        for value in (loss(z_s * factor, z_t * factor), loss(z_s * factor, z_t), loss(z_s, z_t * factor)):
            if value.isfinite() or name not in ("attention_transfer", "relational", "relational_angle"):
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", POWERS)
def test_a_loss_in_the_units_of_large_features_grows_with_them_or_is_not_finite(name: str) -> None:
    loss, shape = EVERY[name]
    z_s, z_t = sides(shape)
    value = loss(z_s * 1e15, z_t * 1e15)
    torch.testing.assert_close(value, loss(z_s, z_t) * 1e15 ** POWERS[name], rtol=1e-4, atol=0.0)
    value = loss(z_s * 1e30, z_t * 1e30)
    assert not value.isfinite().all() or value.abs().max() > 1e29


def test_large_rows_have_directions_and_gradients() -> None:
    z = torch.tensor([[3e30, 4e30], [3e-5, 4e-5], [3e-7, 4e-7], [3e37, -4e37]], requires_grad=True)
    directions = unit_rows(z)
    torch.testing.assert_close(directions, torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0], [0.6, -0.8]]))
    directions[:, 0].sum().backward()
    assert z.grad is not None
    lengths = torch.tensor([5e30, 5e-5, math.inf, 5e37])[:, None]
    expected = torch.tensor([[0.64, -0.48], [0.64, -0.48], [0.0, 0.0], [0.64, 0.48]]) / lengths
    torch.testing.assert_close(z.grad, expected, rtol=1e-5, atol=0.0)
