"""l1, feature_kl, gaussian_wasserstein and correlation_power."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
import reference_logits as twins
from limbeck import losses, norms
from reference_logits import Loss, finite_value_and_gradients, gradient, message, pair

torch.set_num_threads(1)

# Of rows of channels, each with its twin.
PAIRS: dict[str, tuple[Loss, Callable[[Tensor, Tensor], float]]] = {
    "l1": (losses.l1, twins.l1),
    "feature_kl": (
        functools.partial(losses.feature_kl, temperature=1.0),
        functools.partial(reference.kl_divergence, temperature=1.0),
    ),
    "feature_kl 3": (
        functools.partial(losses.feature_kl, temperature=3.0),
        functools.partial(reference.kl_divergence, temperature=3.0),
    ),
    "correlation_power 1": (
        lambda a, t: losses.correlation_power(losses.correlation(a, t), power=1),
        lambda a, t: twins.correlation_power(reference.correlation(a, t), power=1),
    ),
    "correlation_power 2.5": (
        lambda a, t: losses.correlation_power(losses.correlation(a, t), power=2.5),
        lambda a, t: twins.correlation_power(reference.correlation(a, t), power=2.5),
    ),
    "correlation_power 4": (
        lambda a, t: losses.correlation_power(losses.correlation(a, t), power=4),
        lambda a, t: twins.correlation_power(reference.correlation(a, t), power=4),
    ),
}
every_pair = pytest.mark.parametrize("name", PAIRS)


def in_positions(loss: Loss) -> Loss:
    """A loss of dense features as one of rows: two positions of half the channels."""
    return lambda z_s, z_t: loss(z_s.unflatten(-1, (2, -1)), z_t.unflatten(-1, (2, -1)))


ALL: dict[str, Loss] = {name: loss for name, (loss, _) in PAIRS.items()} | {
    "gaussian_wasserstein": in_positions(losses.gaussian_wasserstein)
}
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)


# Values and gradients


@every_pair
@pytest.mark.parametrize("shape", [(7, 5), (1, 3), (2, 1), (3, 4, 5)], ids=str)
def test_equals_its_loop_twin(name: str, shape: tuple[int, ...]) -> None:
    loss, twin = PAIRS[name]
    z_s, z_t = pair(*shape)
    assert loss(z_s, z_t).item() == pytest.approx(twin(z_s, z_t), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("mean_weight", "eps"), [(2.0, 1e-5), (0.0, 0.5), (4.0, 1e-9)])
@pytest.mark.parametrize("shape", [(4, 6, 5), (1, 2, 3), (3, 9, 1)], ids=str)
def test_gaussian_wasserstein_equals_its_loop_twin(mean_weight: float, eps: float, shape: tuple[int, ...]) -> None:
    z_s, z_t = pair(*shape)
    value = losses.gaussian_wasserstein(z_s, z_t, mean_weight=mean_weight, eps=eps)
    twin = twins.gaussian_wasserstein(z_s, z_t, mean_weight=mean_weight, eps=eps)
    assert value.item() == pytest.approx(twin, rel=1e-12)


@every_loss
def test_gradcheck(loss: Loss) -> None:
    z_s, z_t = pair(4, 6)
    assert torch.autograd.gradcheck(loss, (z_s.requires_grad_(), z_t.requires_grad_()))


# Invariances

floats = st.floats(-5, 5, allow_subnormal=False)


@st.composite
def feature_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    n, d = draw(st.integers(1, 6)), 2 * draw(st.integers(1, 3))
    values = draw(st.lists(floats, min_size=2 * n * d, max_size=2 * n * d))
    both = torch.tensor(values, dtype=torch.float64).reshape(2, n, d)
    return both[0], both[1]


@every_loss
@settings(max_examples=15, deadline=None)
@given(both=feature_pairs(), seed=st.integers(0, 99))
def test_the_order_of_the_batch_does_not_matter(loss: Loss, both: tuple[Tensor, Tensor], seed: int) -> None:
    z_s, z_t = both
    order = torch.randperm(z_s.shape[0], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(z_s[order], z_t[order]), loss(z_s, z_t))


@every_loss
@settings(max_examples=15, deadline=None)
@given(both=feature_pairs())
def test_a_batch_twice_changes_nothing(loss: Loss, both: tuple[Tensor, Tensor]) -> None:
    z_s, z_t = both
    torch.testing.assert_close(loss(torch.cat([z_s, z_s]), torch.cat([z_t, z_t])), loss(z_s, z_t))


@every_pair
def test_leading_dimensions_are_all_rows(name: str) -> None:
    loss = PAIRS[name][0]
    z_s, z_t = pair(3, 4, 5)
    torch.testing.assert_close(loss(z_s, z_t), loss(z_s.flatten(0, 1), z_t.flatten(0, 1)))


@settings(max_examples=20, deadline=None)
@given(both=feature_pairs(), shift=floats)
def test_feature_kl_ignores_a_constant(both: tuple[Tensor, Tensor], shift: float) -> None:
    z_s, z_t = both
    loss = functools.partial(losses.feature_kl, temperature=2.0)
    torch.testing.assert_close(loss(z_s + shift, z_t - shift), loss(z_s, z_t))
    assert loss(z_s, z_t).item() >= -1e-12


def test_feature_kl_at_a_high_temperature_is_half_the_squared_error_of_centered_features() -> None:
    z_s, z_t = pair(6, 5)
    centered = (z_s - z_s.mean(-1, keepdim=True)) - (z_t - z_t.mean(-1, keepdim=True))
    value = losses.feature_kl(z_s, z_t, temperature=1e4)
    assert value.item() == pytest.approx(centered.square().mean().item() / 2, rel=1e-3)


def test_l1_pulls_every_element_equally() -> None:
    z_s, z_t = pair(6, 4)
    torch.testing.assert_close(gradient(losses.l1, z_s, z_t), (z_s - z_t).sign() / 24)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), positions=st.integers(2, 6))
def test_gaussian_wasserstein_ignores_where_things_are(seed: int, positions: int) -> None:
    z_s, z_t = pair(3, positions, 4, seed=seed)
    order = torch.randperm(positions, generator=torch.Generator().manual_seed(seed))
    value = losses.gaussian_wasserstein(z_s, z_t)
    torch.testing.assert_close(losses.gaussian_wasserstein(z_s[:, order], z_t), value)
    torch.testing.assert_close(losses.gaussian_wasserstein(z_s, z_t[:, order]), value)


def test_gaussian_wasserstein_is_the_squared_distance_of_two_gaussians() -> None:
    # In one dimension the distance is the mean squared difference of the quantiles: a check by transport itself.
    quantiles = torch.special.ndtri((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)
    z_s, z_t = (3.0 + 2.0 * quantiles).reshape(1, -1, 1), (1.0 + 0.5 * quantiles).reshape(1, -1, 1)
    transported = (z_s - z_t).square().mean()
    value = losses.gaussian_wasserstein(z_s, z_t, mean_weight=1.0, eps=1e-12)
    assert value.item() == pytest.approx(transported.item(), rel=1e-3)
    assert value.item() == pytest.approx(2.0**2 + 1.5**2, rel=1e-3)


def test_gaussian_wasserstein_weighs_the_means_alone() -> None:
    z_s, z_t = pair(3, 5, 4)
    shifted = z_t + (z_s - z_t).mean(1, keepdim=True)  # the means differ, the deviations do not
    once = losses.gaussian_wasserstein(shifted, z_t, mean_weight=1.0)
    torch.testing.assert_close(losses.gaussian_wasserstein(shifted, z_t, mean_weight=3.0), 3 * once)
    centered = z_s - (z_s - z_t).mean(1, keepdim=True)  # the other way round
    spreads = losses.gaussian_wasserstein(centered, z_t, mean_weight=3.0)
    torch.testing.assert_close(losses.gaussian_wasserstein(centered, z_t, mean_weight=0.0), spreads)
    torch.testing.assert_close(losses.gaussian_wasserstein(z_s, z_t, mean_weight=3.0), 3 * once + spreads)


def test_correlation_power_is_the_inside_of_log_correlation() -> None:
    c = torch.linspace(-1, 1, 7, dtype=torch.float64)
    value = losses.correlation_power(c, power=4)
    assert math.log(value.item() + 1e-5) == pytest.approx(losses.log_correlation(c, alpha=4).item(), rel=1e-12)


def test_correlation_power_1_is_half_of_d_times_the_mean_squared_error() -> None:
    z_s, z_t = pair(9, 5)
    norm = norms.BatchNorm(5, eps=1e-12)
    a, t = norm(z_s), norm(z_t)
    value = losses.correlation_power(losses.correlation(a, t), power=1)
    torch.testing.assert_close(value, 5 / 2 * losses.mean_squared_error(a, t))


# Precision and edges


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    z_s, z_t = pair(16, 8, dtype=dtype)
    value = loss(z_s.requires_grad_(), z_t)
    value.backward()
    assert value.dtype == torch.float32
    assert z_s.grad is not None
    assert z_s.grad.dtype == dtype
    assert value.item() == loss(z_s.detach().float(), z_t.float()).item()
    assert loss(z_s.detach(), z_t.double()).dtype == torch.float64


@every_loss
def test_autocast_changes_nothing(loss: Loss) -> None:
    z_s, z_t = pair(16, 8, dtype=torch.float32)
    plain, slope = loss(z_s, z_t), gradient(loss, z_s, z_t)
    z_s.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z_s, z_t)
    value.backward()
    assert torch.equal(value, plain)
    assert z_s.grad is not None
    assert torch.equal(z_s.grad, slope)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_finite_at_equality(loss: Loss, dtype: torch.dtype, rows: int) -> None:
    z_s, _ = pair(rows, 4, dtype=dtype)
    finite_value_and_gradients(loss, z_s, z_s)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e4])
def test_finite_at_constant_features(name: str, dtype: torch.dtype, constant: float) -> None:
    norm = norms.BatchNorm(4) if "correlation" in name else torch.nn.Identity()  # without it c is no correlation

    def loss(z_s: Tensor, z_t: Tensor) -> Tensor:
        return ALL[name](norm(z_s), norm(z_t))

    _, z_t = pair(5, 4, dtype=dtype)
    flat = torch.full_like(z_t, constant)
    finite_value_and_gradients(loss, flat, z_t)
    finite_value_and_gradients(loss, z_t, flat)
    finite_value_and_gradients(loss, flat, flat)


@pytest.mark.parametrize("loss", [loss for name, loss in ALL.items() if "correlation" not in name])
def test_zero_at_equality(loss: Loss) -> None:  # of c = 1, in the next test
    z_t, _ = pair(5, 4)
    assert loss(z_t, z_t).item() == 0
    torch.testing.assert_close(gradient(loss, z_t, z_t), torch.zeros_like(z_t), atol=1e-12, rtol=0)


@pytest.mark.parametrize("power", [1, 1.5, 2, 4])
def test_correlation_power_is_zero_at_one(power: float) -> None:
    ones = torch.ones(5, requires_grad=True)
    value = losses.correlation_power(ones, power=power)
    value.backward()
    assert value.item() == 0
    assert ones.grad is not None
    assert not ones.grad.any()


@pytest.mark.parametrize("loss", [loss for name, loss in ALL.items() if "correlation" not in name])
def test_finite_at_huge_features(loss: Loss) -> None:  # c is no correlation there
    z_s, z_t = pair(5, 4, dtype=torch.float32)
    finite_value_and_gradients(loss, z_s + 1e6, z_t - 1e6)
    finite_value_and_gradients(loss, z_s * 1e6, z_t * 1e6)


@every_loss
def test_a_teacher_that_asks_for_no_gradient_gets_none(loss: Loss) -> None:
    z_s, z_t = pair(6, 4)
    before = z_t.clone()
    assert gradient(loss, z_s, z_t).abs().sum() > 0
    assert z_t.grad is None
    assert torch.equal(z_t, before)


# Misuse


@pytest.mark.parametrize("name", PAIRS)
def test_shapes_and_types_are_checked_before_the_maths(name: str) -> None:
    loss = PAIRS[name][0]
    x = torch.randn(6, 4)
    assert "student is (6, 1) and teacher (6, 4); expected equal shapes" in message(lambda: loss(x[:, :1], x))
    assert "expected (n, d) with at least one row" in message(lambda: loss(x[:0], x[:0]))
    assert "student is torch.int64 and teacher torch.float32" in message(lambda: loss(x.long(), x))
    assert "both sides are (4,)" in message(lambda: loss(x[0], x[0]))


def test_gaussian_wasserstein_wants_positions() -> None:
    flat, dense = torch.randn(6, 4), torch.randn(6, 3, 4)
    expected = "gaussian_wasserstein: both sides are (6, 4); expected (n, positions, d), 2 positions or more"
    assert message(lambda: losses.gaussian_wasserstein(flat, flat)) == expected
    assert "both sides are (6, 1, 4)" in message(lambda: losses.gaussian_wasserstein(dense[:, :1], dense[:, :1]))
    assert "student is (6, 2, 4) and teacher" in message(lambda: losses.gaussian_wasserstein(dense[:, :2], dense))
    assert "eps is 0.0; expected" in message(lambda: losses.gaussian_wasserstein(dense, dense, eps=0.0))


def test_knobs_out_of_range() -> None:
    x = torch.randn(6, 4)
    assert "feature_kl: temperature is 0.0" in message(lambda: losses.feature_kl(x, x, temperature=0.0))
    expected = "correlation_power: power is 0.5; expected at least 1"
    assert message(lambda: losses.correlation_power(x[0], power=0.5)) == expected
    assert "power is nan" in message(lambda: losses.correlation_power(x[0], power=math.nan))
    for wrong in (x, x[0][:0], torch.ones(3, dtype=torch.int64)):
        text = message(lambda wrong=wrong: losses.correlation_power(wrong, power=2))
        assert text == f"correlation_power: c is {tuple(wrong.shape)}, {wrong.dtype}; expected (d,), floating point"
