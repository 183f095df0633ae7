import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from limbeck import losses, norms
from limbeck.errors import UserError

torch.set_num_threads(1)

Loss = Callable[[Tensor, Tensor], Tensor]

# Each with its twin; the correlation losses as functions of the two features.
PAIRS: dict[str, tuple[Loss, Callable[[Tensor, Tensor], float]]] = {
    "squared_error": (losses.squared_error, reference.squared_error),
    "mean_squared_error": (losses.mean_squared_error, reference.mean_squared_error),
    "smooth_l1": (losses.smooth_l1, reference.smooth_l1),
    "smooth_l1 0.3": (functools.partial(losses.smooth_l1, beta=0.3), functools.partial(reference.smooth_l1, beta=0.3)),
    "cosine": (losses.cosine, reference.cosine),
    "log_sum": (losses.log_sum, reference.log_sum),
    "log_sum 2.5": (
        functools.partial(losses.log_sum, alpha=2.5, eps=1e-3),
        functools.partial(reference.log_sum, alpha=2.5, eps=1e-3),
    ),
    "log_sum 1": (functools.partial(losses.log_sum, alpha=1.0), functools.partial(reference.log_sum, alpha=1.0)),
    "log_correlation": (
        lambda a, t: losses.log_correlation(losses.correlation(a, t)),
        lambda a, t: reference.log_correlation(torch.tensor(reference.correlation(a, t), dtype=torch.float64)),
    ),
    "log_correlation 1.5": (
        lambda a, t: losses.log_correlation(losses.correlation(a, t), alpha=1.5, eps=1e-2),
        lambda a, t: reference.log_correlation(
            torch.tensor(reference.correlation(a, t), dtype=torch.float64), alpha=1.5, eps=1e-2
        ),
    ),
    "kl_divergence": (losses.kl_divergence, reference.kl_divergence),
    "kl_divergence 1": (
        functools.partial(losses.kl_divergence, temperature=1.0),
        functools.partial(reference.kl_divergence, temperature=1.0),
    ),
}
LABELS = [0, 4, 2, 2, 1, 3, 0]
every_pair = pytest.mark.parametrize("name", PAIRS)


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_s = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return z_s.to(dtype), torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def decoupled(y_s: Tensor, y_t: Tensor) -> Tensor:
    return losses.decoupled_kl(y_s, y_t, torch.arange(y_s.shape[0]) % y_s.shape[1])


ALL: dict[str, Loss] = {name: loss for name, (loss, _) in PAIRS.items()} | {"decoupled_kl": decoupled}
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)


def finite_value_and_gradients(loss: Loss, z_s: Tensor, z_t: Tensor) -> None:
    z_s, z_t = z_s.clone().requires_grad_(), z_t.clone().requires_grad_()
    value = loss(z_s, z_t)
    value.backward()
    assert value.isfinite()
    assert z_s.grad is not None
    assert z_t.grad is not None
    assert z_s.grad.isfinite().all()
    assert z_t.grad.isfinite().all()


# Values and gradients


@every_pair
@pytest.mark.parametrize("shape", [(7, 5), (1, 3), (2, 1), (3, 4, 5)], ids=str)
def test_equals_its_loop_twin(name: str, shape: tuple[int, ...]) -> None:
    loss, twin = PAIRS[name]
    z_s, z_t = pair(*shape)
    assert loss(z_s, z_t).item() == pytest.approx(twin(z_s, z_t), rel=1e-12, abs=1e-12)


def test_correlation_equals_its_loop_twin() -> None:
    for shape in [(7, 5), (1, 3), (3, 4, 5)]:
        z_s, z_t = pair(*shape)
        torch.testing.assert_close(losses.correlation(z_s, z_t).tolist(), reference.correlation(z_s, z_t))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_decoupled_kl_equals_its_loop_twin(temperature: float, alpha: float, beta: float) -> None:
    y_s, y_t = pair(7, 5)
    value = losses.decoupled_kl(y_s, y_t, torch.tensor(LABELS), temperature=temperature, alpha=alpha, beta=beta)
    twin = reference.decoupled_kl(y_s, y_t, LABELS, temperature=temperature, alpha=alpha, beta=beta)
    assert value.item() == pytest.approx(twin, rel=1e-12)


@every_loss
def test_gradcheck(loss: Loss) -> None:
    z_s, z_t = pair(4, 3)
    assert torch.autograd.gradcheck(loss, (z_s.requires_grad_(), z_t.requires_grad_()))


def test_gradcheck_at_large_differences() -> None:
    z_s, z_t = pair(4, 3)
    assert torch.autograd.gradcheck(losses.log_sum, ((z_s * 30).requires_grad_(), (z_t * 30).requires_grad_()))


def test_squared_error_has_the_gradient_flow_of_the_paper() -> None:
    z_s, z_t = pair(9, 4)[0], pair(9, 6, seed=1)[1]
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    losses.squared_error(z_s @ weight, z_t).backward()
    assert weight.grad is not None
    torch.testing.assert_close(-weight.grad, z_s.T @ z_t - z_s.T @ z_s @ weight.detach())


# Invariances

floats = st.floats(-5, 5, allow_subnormal=False)


@st.composite
def feature_pairs(draw: st.DrawFn, rows: int = 2) -> tuple[Tensor, Tensor]:
    n, d = draw(st.integers(rows, 6)), draw(st.integers(2, 5))
    values = draw(st.lists(floats, min_size=2 * n * d, max_size=2 * n * d))
    both = torch.tensor(values, dtype=torch.float64).reshape(2, n, d)
    return both[0], both[1]


@every_pair
@settings(max_examples=15, deadline=None)
@given(both=feature_pairs(), seed=st.integers(0, 99))
def test_the_order_of_the_batch_does_not_matter(name: str, both: tuple[Tensor, Tensor], seed: int) -> None:
    loss, (z_s, z_t) = PAIRS[name][0], both
    order = torch.randperm(z_s.shape[0], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(z_s[order], z_t[order]), loss(z_s, z_t))


@every_pair
def test_leading_dimensions_are_all_rows(name: str) -> None:
    loss = PAIRS[name][0]
    z_s, z_t = pair(3, 4, 5)
    torch.testing.assert_close(loss(z_s, z_t), loss(z_s.flatten(0, 1), z_t.flatten(0, 1)))


@pytest.mark.parametrize("name", [name for name in PAIRS if "sum" not in name and name != "squared_error"])
@settings(max_examples=15, deadline=None)
@given(both=feature_pairs())
def test_a_batch_twice_does_not_change_a_mean(name: str, both: tuple[Tensor, Tensor]) -> None:
    loss, (z_s, z_t) = PAIRS[name][0], both
    torch.testing.assert_close(loss(torch.cat([z_s, z_s]), torch.cat([z_t, z_t])), loss(z_s, z_t))


@settings(max_examples=30, deadline=None)
@given(both=feature_pairs(), alpha=st.floats(1, 6))
def test_log_sum_of_a_batch_twice_is_shifted_by_log_2(both: tuple[Tensor, Tensor], alpha: float) -> None:
    z_s, z_t = both
    loss = functools.partial(losses.log_sum, alpha=alpha)
    once, twice = loss(z_s, z_t), loss(torch.cat([z_s, z_s]), torch.cat([z_t, z_t]))
    torch.testing.assert_close(twice, once + math.log(2))
    wide = loss(torch.cat([z_s, z_s], 1), torch.cat([z_t, z_t], 1))
    torch.testing.assert_close(wide, twice)


def test_log_sum_ignores_the_scale_of_the_differences() -> None:
    z_s, z_t = pair(6, 4)
    near = z_t + (z_s - z_t) / 8
    torch.testing.assert_close(
        losses.log_sum(near, z_t, eps=1e-30), losses.log_sum(z_s, z_t, eps=1e-30) - 4 * math.log(8)
    )
    for start, factor in ((z_s, 1.0), (near, 8.0)):
        start.requires_grad_()
        losses.log_sum(start, z_t, eps=1e-30).backward()
        assert start.grad is not None
        assert z_s.grad is not None
        torch.testing.assert_close(start.grad, factor * z_s.grad)


def test_log_sum_weighs_elements_as_a_soft_maximum() -> None:
    z_s, z_t = pair(6, 4)
    losses.log_sum(z_s.requires_grad_(), z_t, alpha=3.0, eps=1e-30).backward()
    d = (z_s - z_t).detach()
    assert z_s.grad is not None
    torch.testing.assert_close(z_s.grad, 3 * d.sign() * d.abs() ** 2 / (d.abs() ** 3).sum())


@settings(max_examples=30, deadline=None)
@given(both=feature_pairs(), scale=st.floats(0.1, 10))
def test_cosine_ignores_lengths(both: tuple[Tensor, Tensor], scale: float) -> None:
    z_s, z_t = both[0] + 0.1, both[1] + 0.1  # no row shorter than eps
    lengths = scale * torch.arange(1, z_s.shape[0] + 1, dtype=torch.float64).unsqueeze(1)
    usable = (z_s.norm(dim=-1) > 1e-4).all() and (z_t.norm(dim=-1) > 1e-4).all()
    if usable:
        torch.testing.assert_close(losses.cosine(z_s * lengths, z_t), losses.cosine(z_s, z_t))
        assert -1e-12 <= losses.cosine(z_s, z_t).item() <= 2 + 1e-12


@settings(max_examples=30, deadline=None)
@given(both=feature_pairs())
def test_cosine_is_half_the_squared_error_of_unit_vectors(both: tuple[Tensor, Tensor]) -> None:
    z_s, z_t = both[0] + 6, both[1] + 6  # away from zero
    unit = norms.L2()
    half = losses.squared_error(unit(z_s), unit(z_t)) / z_s.shape[0]
    torch.testing.assert_close(losses.cosine(z_s, z_t), half)


def test_mean_squared_error_of_batch_normed_sides_is_twice_one_minus_correlation() -> None:
    z_s, z_t = pair(9, 5)
    norm = norms.BatchNorm(5, eps=1e-12)
    a, t = norm(z_s * 3 + 7), norm(z_t)
    c = losses.correlation(a, t)
    torch.testing.assert_close((a - t).square().mean(0), 2 * (1 - c))
    torch.testing.assert_close(losses.mean_squared_error(a, t), 2 * (1 - c).mean())
    # With an eps the variances are v / (v + eps), and the identity is exact again with those in the place of 1.
    norm = norms.BatchNorm(5, eps=0.5)
    a, t = norm(z_s), norm(z_t)
    kept = (a.square() + t.square()).mean(0)
    torch.testing.assert_close((a - t).square().mean(0), kept - 2 * losses.correlation(a, t))


def test_the_two_forms_of_log_sum_agree_where_they_should() -> None:
    z_s, z_t = pair(9, 5)
    norm = norms.BatchNorm(5, eps=1e-12)
    a, t = norm(z_s), norm(z_t)
    elements = losses.log_sum(a, t, alpha=2.0, eps=1e-14)
    channels = losses.log_correlation(losses.correlation(a, t), alpha=1.0, eps=1e-14)
    torch.testing.assert_close(elements, channels + math.log(2 * 9))


def test_correlation_of_batch_normed_sides_is_pearsons() -> None:
    z_s, z_t = pair(9, 5)
    norm = norms.BatchNorm(5, eps=1e-14)
    c = losses.correlation(norm(z_s), norm(z_t))
    for j in range(5):
        assert c[j].item() == pytest.approx(torch.corrcoef(torch.stack([z_s[:, j], z_t[:, j]]))[0, 1].item())


@settings(max_examples=30, deadline=None)
@given(both=feature_pairs(rows=1), shift=floats, temperature=st.floats(0.5, 8))
def test_kl_is_positive_and_ignores_a_constant(both: tuple[Tensor, Tensor], shift: float, temperature: float) -> None:
    y_s, y_t = both
    loss = functools.partial(losses.kl_divergence, temperature=temperature)
    value = loss(y_s, y_t)
    assert value.item() >= -1e-12
    torch.testing.assert_close(loss(y_s + shift, y_t - 2 * shift), value)
    assert loss(y_t + shift, y_t).item() == pytest.approx(0, abs=1e-11)


@settings(max_examples=30, deadline=None)
@given(both=feature_pairs(rows=1), label=st.integers(0, 1), temperature=st.floats(0.5, 8))
def test_kl_is_its_decoupled_parts(both: tuple[Tensor, Tensor], label: int, temperature: float) -> None:
    y_s, y_t = both[0][:1], both[1][:1]
    parts = functools.partial(losses.decoupled_kl, y_s, y_t, torch.tensor([label]), temperature=temperature)
    p_t = F.softmax(y_t / temperature, -1)[0, label]
    whole = parts(alpha=1.0, beta=0.0) + (1 - p_t) * parts(alpha=0.0, beta=1.0)
    torch.testing.assert_close(whole, losses.kl_divergence(y_s, y_t, temperature=temperature))


def test_the_gradient_of_soft_targets_keeps_its_size_over_temperatures() -> None:
    sizes: list[float] = []
    for temperature in (20.0, 40.0):
        y_s, y_t = pair(6, 5)
        losses.kl_divergence(y_s.requires_grad_(), y_t, temperature=temperature).backward()
        assert y_s.grad is not None
        sizes.append(y_s.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_decoupled_kl_reads_soft_targets_by_their_largest_class() -> None:
    y_s, y_t = pair(7, 5)
    hard = torch.tensor(LABELS)
    soft = 0.9 * F.one_hot(hard, 5).float() + 0.02
    assert losses.decoupled_kl(y_s, y_t, soft).item() == losses.decoupled_kl(y_s, y_t, hard).item()
    assert losses.decoupled_kl(y_s, y_t, hard.int()).item() == losses.decoupled_kl(y_s, y_t, hard).item()


def test_decoupled_kl_of_two_classes_has_no_other_part() -> None:
    y_s, y_t = pair(4, 2)
    labels = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(losses.decoupled_kl(y_s, y_t, labels), losses.kl_divergence(y_s, y_t))


# Precision


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


@every_loss
def test_the_wider_of_two_precisions_is_kept(loss: Loss) -> None:
    z_s, z_t = pair(6, 4)
    assert loss(z_s, z_t.float()).dtype == torch.float64
    assert loss(z_s.bfloat16(), z_t.float()).dtype == torch.float32


@every_loss
def test_autocast_changes_nothing(loss: Loss) -> None:
    z_s, z_t = pair(16, 8, dtype=torch.float32)
    values: list[float] = []
    gradients: list[Tensor] = []
    for enabled in (False, True):
        start = z_s.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = loss(start, z_t)
        value.backward()
        assert start.grad is not None
        values.append(value.item())
        gradients.append(start.grad)
    assert values[0] == values[1]
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.gpu
@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_on_a_gpu(loss: Loss, dtype: torch.dtype) -> None:
    z_s, z_t = (z.cuda() for z in pair(16, 8, dtype=torch.float32))
    with torch.device("cuda"):  # decoupled() makes its labels here
        plain = loss(z_s, z_t)
        with torch.autocast("cuda", dtype=dtype):
            assert torch.equal(loss(z_s, z_t), plain)


def test_powers_do_not_overflow() -> None:
    z_s, z_t = pair(6, 4, dtype=torch.float32)
    value = losses.log_sum(z_s * 1e15, z_t)
    assert value.item() == pytest.approx(losses.log_sum(z_s.double() * 1e15, z_t.double()).item(), rel=1e-6)
    finite_value_and_gradients(losses.log_sum, z_s * 1e15, z_t)


# Edges


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_finite_at_equality(loss: Loss, dtype: torch.dtype, rows: int) -> None:
    z_s, _ = pair(rows, 4, dtype=dtype)
    finite_value_and_gradients(loss, z_s, z_s)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e4])
def test_finite_at_constant_features(loss: Loss, dtype: torch.dtype, constant: float) -> None:
    _, z_t = pair(5, 4, dtype=dtype)
    flat = torch.full_like(z_t, constant)
    finite_value_and_gradients(loss, flat, z_t)
    finite_value_and_gradients(loss, z_t, flat)
    finite_value_and_gradients(loss, flat, flat)


@every_loss
def test_finite_at_huge_features(loss: Loss) -> None:
    z_s, z_t = pair(5, 4, dtype=torch.float32)
    finite_value_and_gradients(loss, z_s + 1e6, z_t - 1e6)
    finite_value_and_gradients(loss, z_s * 1e6, z_t * 1e6)


@pytest.mark.parametrize("loss", [loss for name, loss in ALL.items() if "correlation" not in name])
def test_gradient_at_equality_is_zero(loss: Loss) -> None:  # of c = 1, in the next test
    z_t, _ = pair(5, 4)
    z_s = z_t.clone().requires_grad_()
    loss(z_s, z_t).backward()
    assert z_s.grad is not None
    torch.testing.assert_close(z_s.grad, torch.zeros_like(z_s), atol=1e-12, rtol=0)


def test_log_forms_have_a_floor() -> None:
    ones = torch.ones(5, requires_grad=True)
    value = losses.log_correlation(ones)
    value.backward()
    assert value.item() == pytest.approx(math.log(1e-5))
    assert ones.grad is not None
    assert not ones.grad.any()
    z, _ = pair(6, 4)
    assert losses.log_sum(z, z).item() == pytest.approx(math.log(1e-8 * 24))


def test_kl_is_zero_at_equality() -> None:
    y, _ = pair(6, 4, dtype=torch.float32)
    assert losses.kl_divergence(y, y).item() == 0
    assert decoupled(y, y).item() == 0


def test_confident_logits_stay_finite() -> None:
    y = torch.tensor([[1e4, 0.0, -1e4], [0.0, 3e4, 0.0]])
    for y_s, y_t in ((y, -y), (y, torch.zeros_like(y)), (torch.zeros_like(y), y)):
        finite_value_and_gradients(losses.kl_divergence, y_s, y_t)
        finite_value_and_gradients(decoupled, y_s, y_t)
    # The published code takes log(1 - p) as the logarithm of a probability, and is minus infinity here.
    y_s, y_t = torch.tensor([[300.0, 0.0, 1.0]]), torch.tensor([[200.0, 1.0, 0.0]])
    value = losses.decoupled_kl(y_s, y_t, torch.tensor([0]), temperature=1.0, alpha=0.0, beta=1.0)
    torch.testing.assert_close(value, losses.kl_divergence(y_s[:, 1:], y_t[:, 1:], temperature=1.0))


def test_a_row_without_direction_is_orthogonal_and_gets_no_gradient() -> None:
    z_s, z_t = pair(3, 4)
    z_s[1] = 0
    z_s[2] *= 1e-9
    value = losses.cosine(z_s.requires_grad_(), z_t)
    value.backward()
    assert value.item() == pytest.approx((reference.cosine(z_s[:1], z_t[:1]) + 1 + 1) / 3)
    assert z_s.grad is not None
    assert z_s.grad[0].any()
    assert not z_s.grad[1:].any()


# Gradient


@every_loss
def test_a_teacher_that_asks_for_no_gradient_gets_none(loss: Loss) -> None:
    z_s, z_t = pair(6, 4)
    before = z_t.clone()
    loss(z_s.requires_grad_(), z_t).backward()
    assert z_s.grad is not None
    assert z_s.grad.abs().sum() > 0
    assert z_t.grad is None
    assert torch.equal(z_t, before)
    assert not loss(z_s.detach(), z_t).requires_grad


# Misuse


def message(call: Callable[[], object]) -> str:
    with reference.as_a_user(), pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_loss
def test_shapes_and_types_are_checked_before_the_maths(loss: Loss) -> None:
    x = torch.randn(6, 4)
    assert "student is (6, 1) and teacher (6, 4); expected equal shapes" in message(lambda: loss(x[:, :1], x))
    assert "student is (5, 4) and teacher (6, 4)" in message(lambda: loss(x[:5], x))
    assert "expected (n, d) with at least one row" in message(lambda: loss(x[:0], x[:0]))
    assert "student is torch.int64 and teacher torch.float32" in message(lambda: loss(x.long(), x))


@pytest.mark.parametrize("name", [name for name in PAIRS if " " not in name])
def test_vectors_are_refused(name: str) -> None:
    assert "both sides are (4,)" in message(lambda: PAIRS[name][0](torch.randn(4), torch.randn(4)))


def test_knobs_out_of_range() -> None:
    x = torch.randn(6, 4)
    labels = torch.zeros(6, dtype=torch.int64)
    assert message(lambda: losses.log_sum(x, x, alpha=0.5)) == "log_sum: alpha is 0.5; expected at least 1"
    assert message(lambda: losses.log_sum(x, x, eps=0.0)) == "log_sum: eps is 0.0; expected a number above 0"
    assert "log_correlation: alpha is nan" in message(lambda: losses.log_correlation(x[0], alpha=math.nan))
    assert "log_correlation: eps is -1.0" in message(lambda: losses.log_correlation(x[0], eps=-1.0))
    assert "smooth_l1: beta is 0.0" in message(lambda: losses.smooth_l1(x, x, beta=0.0))
    assert "cosine: eps is 0.0" in message(lambda: losses.cosine(x, x, eps=0.0))
    assert "kl_divergence: temperature is 0.0" in message(lambda: losses.kl_divergence(x, x, temperature=0.0))
    assert "decoupled_kl: temperature is -1.0" in message(lambda: losses.decoupled_kl(x, x, labels, temperature=-1.0))


def test_correlation_vector_is_checked() -> None:
    expected = "log_correlation: c is (6, 4), torch.float32; expected (d,), floating point"
    assert message(lambda: losses.log_correlation(torch.randn(6, 4))) == expected
    assert "c is (0,)" in message(lambda: losses.log_correlation(torch.randn(0)))
    assert "torch.int64" in message(lambda: losses.log_correlation(torch.ones(3, dtype=torch.int64)))


def test_targets_are_checked() -> None:
    y = torch.randn(6, 4)
    wrong = {
        "too few": torch.zeros(5, dtype=torch.int64),
        "other classes": torch.zeros(6, 3),
        "floating labels": torch.zeros(6),
        "booleans": torch.zeros(6, dtype=torch.bool),
        "one-hot integers": torch.zeros(6, 4, dtype=torch.int64),
    }
    for target in wrong.values():
        text = message(lambda target=target: losses.decoupled_kl(y, y, target))
        assert f"target is {tuple(target.shape)}, {target.dtype}; expected integer labels (6,)" in text
    one = torch.randn(6, 1)
    assert "logits of 1 class" in message(lambda: losses.decoupled_kl(one, one, torch.zeros(6, dtype=torch.int64)))
