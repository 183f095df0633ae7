import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
import reference_projectors as whitened
from limbeck import FeatureTerm, losses, norms, projectors
from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.norms.roots import inverse_square_root
from limbeck.storage.files import load_weights, save_weights

torch.set_num_threads(1)

D = 6
# Each with its twin, for features of width D.
PAIRS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
    "BatchNorm": (norms.BatchNorm(D), reference.batch_norm),
    "BatchNorm 0.1": (norms.BatchNorm(D, eps=0.1), functools.partial(reference.batch_norm, eps=0.1)),
    "L2": (norms.L2(), reference.l2),
    "L2 2.0": (norms.L2(eps=2.0), functools.partial(reference.l2, eps=2.0)),
    "LayerNorm": (norms.LayerNorm(D), reference.layer_norm),
    "LayerNorm 0.1": (norms.LayerNorm(D, eps=0.1), functools.partial(reference.layer_norm, eps=0.1)),
    "GroupNorm 3": (norms.GroupNorm(3, D), functools.partial(reference.group_norm, groups=3)),
    "GroupNorm 2": (norms.GroupNorm(2, D, eps=0.1), functools.partial(reference.group_norm, groups=2, eps=0.1)),
    "ZCA": (norms.ZCA(D), whitened.zca),
    "ZCA 0.1": (norms.ZCA(D, eps=0.1), functools.partial(whitened.zca, eps=0.1)),
    "Cholesky": (norms.Cholesky(D), whitened.cholesky),
    "Cholesky 0.1": (norms.Cholesky(D, eps=0.1), functools.partial(whitened.cholesky, eps=0.1)),
}
ALL = {name: module for name, (module, _) in PAIRS.items()}
every_pair = pytest.mark.parametrize(("norm", "twin"), PAIRS.values(), ids=PAIRS)
every_norm = pytest.mark.parametrize("norm", ALL.values(), ids=ALL)
of_rows = pytest.mark.parametrize(
    "norm", [n for n in ALL.values() if isinstance(n, norms.L2 | norms.LayerNorm | norms.GroupNorm)]
)

Whitening = type[norms.ZCA] | type[norms.Cholesky]
both_whitenings = pytest.mark.parametrize("whitening", [norms.ZCA, norms.Cholesky])


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def finite_value_and_gradient(norm: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y: Tensor = norm(x)
    (y * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    return y.detach()


# Values and gradients


@every_pair
@pytest.mark.parametrize("shape", [(7, D), (2, D), (3, 4, D), (2, 2, 3, D)], ids=str)
def test_equals_its_loop_twin(norm: nn.Module, twin: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    x = 3 * features(*shape) + 1
    torch.testing.assert_close(norm(x), twin(x))
    assert norm(x).shape == x.shape


@every_norm
def test_gradcheck(norm: nn.Module) -> None:
    assert torch.autograd.gradcheck(norm, (3 * features(4, D) + 1).requires_grad_())


def test_gradcheck_of_batch_norm_over_positions() -> None:
    assert torch.autograd.gradcheck(norms.BatchNorm(D), features(2, 3, D).requires_grad_())


@every_norm
def test_nothing_is_learned_or_remembered(norm: nn.Module) -> None:
    assert not list(norm.parameters())
    assert not norm.state_dict()
    x = features(7, D)
    training = norm.train()(x)
    assert torch.equal(norm.eval()(x), training)
    norm.train()


@every_norm
def test_input_is_not_changed(norm: nn.Module) -> None:
    x = features(7, D)
    norm(x)
    assert torch.equal(x, features(7, D))


# Invariances


@settings(max_examples=30, deadline=None)
@given(
    scales=st.lists(st.floats(0.1, 10), min_size=D, max_size=D),
    shifts=st.lists(st.floats(-100, 100), min_size=D, max_size=D),
    n=st.integers(2, 9),
    flip=st.booleans(),
)
def test_batch_norm_removes_scale_and_shift(scales: list[float], shifts: list[float], n: int, flip: bool) -> None:
    x = features(n, D)
    norm = norms.BatchNorm(D, eps=1e-14)
    scale = torch.tensor(scales, dtype=torch.float64) * (-1 if flip else 1)
    shifted = x * scale + torch.tensor(shifts, dtype=torch.float64)
    torch.testing.assert_close(norm(shifted), norm(x) * scale.sign(), rtol=1e-6, atol=1e-6)


def test_batch_norm_has_zero_mean_and_unit_biased_variance() -> None:
    y = norms.BatchNorm(D, eps=1e-14)(5 * features(9, D) + 2)
    torch.testing.assert_close(y.mean(0), torch.zeros(D, dtype=torch.float64))
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(D, dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 99))
def test_batch_norm_follows_the_order_of_the_batch(n: int, seed: int) -> None:
    x = features(n, D, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    norm = norms.BatchNorm(D)
    torch.testing.assert_close(norm(x[order]), norm(x)[order])


def test_batch_norm_counts_every_leading_dimension() -> None:
    x = features(3, 4, D)
    norm = norms.BatchNorm(D)
    torch.testing.assert_close(norm(x), norm(x.flatten(0, 1)).reshape(x.shape))
    torch.testing.assert_close(norm(x.transpose(0, 1)).transpose(0, 1), norm(x))


def test_batch_norm_cancels_a_bias_and_its_gradient_is_orthogonal_to_the_projector() -> None:
    z, layer = features(9, 4), nn.Linear(4, D).double()
    (norms.BatchNorm(D, eps=1e-14)(layer(z)) * features(9, D, seed=1)).sum().backward()
    assert layer.bias.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.zeros(D, dtype=torch.float64), atol=1e-10, rtol=0)
    along = (layer.weight * layer.weight.grad).sum(1).detach()
    torch.testing.assert_close(along, torch.zeros(D, dtype=torch.float64), atol=1e-10, rtol=0)


@of_rows
def test_rows_do_not_see_each_other(norm: nn.Module) -> None:
    x = features(5, D)
    torch.testing.assert_close(norm(x)[2:3], norm(x[2:3]))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 10), shift=st.floats(-10, 10))
def test_what_the_norms_of_rows_remove(scale: float, shift: float) -> None:
    x = features(5, D)
    torch.testing.assert_close(norms.L2()(scale * x), norms.L2()(x))
    layer, group = norms.LayerNorm(D, eps=1e-14), norms.GroupNorm(3, D, eps=1e-14)
    torch.testing.assert_close(layer(scale * x + shift), layer(x), rtol=1e-6, atol=1e-6)
    scales = torch.tensor([1.0, 1.0, scale, scale, 3.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(group(x * scales + shift), group(x), rtol=1e-6, atol=1e-6)


def test_one_group_is_layer_norm() -> None:
    x = features(5, D)
    torch.testing.assert_close(norms.GroupNorm(1, D)(x), norms.LayerNorm(D)(x))


# Precision


@every_norm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(norm: nn.Module, dtype: torch.dtype) -> None:
    x = features(9, D, dtype=dtype)
    y = norm(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, norm(x.float()))
    finite_value_and_gradient(norm, x)


@every_norm
def test_autocast_changes_nothing(norm: nn.Module) -> None:
    x = features(9, D, dtype=torch.float32)
    plain = norm(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x), plain)


@pytest.mark.gpu
@every_norm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_on_a_gpu(norm: nn.Module, dtype: torch.dtype) -> None:
    x = features(9, D, dtype=torch.float32).cuda()
    plain = norm(x)
    with torch.autocast("cuda", dtype=dtype):
        assert torch.equal(norm(x), plain)


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4])
def test_batch_norm_is_exact_for_large_means(mean: float) -> None:
    x = (features(2000, D) + mean).float()  # the twin gets the rounded numbers too
    torch.testing.assert_close(norms.BatchNorm(D)(x).double(), reference.batch_norm(x), rtol=0, atol=1e-5)


# Edges


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [0.0, 3.3, 6e4])
@pytest.mark.parametrize("n", [2, 1000])
def test_constant_features(norm: nn.Module, dtype: torch.dtype, constant: float, n: int) -> None:
    y = finite_value_and_gradient(norm, torch.full((n, D), constant, dtype=dtype))
    if not isinstance(norm, norms.L2):
        assert not y.any()


@pytest.mark.parametrize("constant", [1e6 + 0.37, 1e8])
def test_batch_norm_of_a_constant_is_exactly_zero(constant: float) -> None:
    assert not norms.BatchNorm(D)(torch.full((50_000, D), constant)).any()


@every_norm
def test_huge_features(norm: nn.Module) -> None:
    finite_value_and_gradient(norm, features(9, D, dtype=torch.float32) * 1e6)
    finite_value_and_gradient(norm, features(9, D, dtype=torch.float32) + 1e6)


def test_l2_of_zero_rows_is_zero_without_gradient() -> None:
    x = torch.zeros(2, D, dtype=torch.float16)
    x[0, 0] = 2
    x.requires_grad_()
    y = norms.L2()(x)
    y.sum().backward()
    assert y[0, 0].item() == 1
    assert not y[1].any()
    assert x.grad is not None
    assert x.grad[0].any()
    assert not x.grad[1].any()


@of_rows
def test_one_row_is_enough_for_norms_of_rows(norm: nn.Module) -> None:
    finite_value_and_gradient(norm, features(1, D, dtype=torch.float32))


def test_batch_norm_of_two_rows() -> None:
    y = finite_value_and_gradient(norms.BatchNorm(D), 100 * features(2, D, dtype=torch.float32))
    torch.testing.assert_close(y.abs(), torch.ones(2, D), rtol=1e-3, atol=1e-3)


# Misuse


def message(call: Callable[[], object]) -> str:
    with reference.as_a_user(), pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_batch_norm_of_one_row_is_an_error() -> None:
    expected = "BatchNorm: rows in the batch: 1; batch statistics need at least 2"
    assert message(lambda: norms.BatchNorm(D)(torch.randn(1, D))) == expected
    assert message(lambda: norms.BatchNorm(D)(torch.randn(1, 1, D))) == expected
    assert "rows in the batch: 0" in message(lambda: norms.BatchNorm(D)(torch.randn(0, D)))
    assert norms.BatchNorm(D)(torch.randn(1, 2, D)).shape == (1, 2, D)


@every_norm
def test_inputs_are_checked(norm: nn.Module) -> None:
    name = type(norm).__name__
    assert f"{name}: got torch.int64; expected floating point" in message(lambda: norm(torch.ones(4, D).long()))
    assert f"{name}: got ({D},); expected (n, " in message(lambda: norm(torch.ones(D)))
    if name != "L2":
        assert f"{name}: got (4, 5); expected (n, {D})" in message(lambda: norm(torch.ones(4, 5)))


@pytest.mark.parametrize(("groups", "d"), [(4, 6), (6, 6), (0, 6), (-2, 6), (12, 6)])
def test_groups_must_leave_two_channels_each(groups: int, d: int) -> None:
    assert f"GroupNorm: got {groups} groups of {d} channels" in message(lambda: norms.GroupNorm(groups, d))


def test_arguments_are_checked() -> None:
    assert message(lambda: norms.BatchNorm(0)) == "BatchNorm: d is 0; expected at least 1"
    assert "LayerNorm: d is 1; expected at least 2" in message(lambda: norms.LayerNorm(1))
    assert "GroupNorm: d is 1" in message(lambda: norms.GroupNorm(1, 1))
    assert message(lambda: norms.BatchNorm(4, eps=0.0)) == "BatchNorm: eps is 0.0; expected a number above 0"
    assert "L2: eps" in message(lambda: norms.L2(eps=-1.0))
    assert "LayerNorm: eps" in message(lambda: norms.LayerNorm(4, eps=0.0))
    assert "GroupNorm: eps" in message(lambda: norms.GroupNorm(2, 4, eps=0.0))
    assert message(lambda: norms.ZCA(0)) == "ZCA: d is 0; expected at least 1"
    assert message(lambda: norms.Cholesky(0)) == "Cholesky: d is 0; expected at least 1"
    assert message(lambda: norms.ZCA(4, eps=0.0)) == "ZCA: eps is 0.0; expected a number above 0"
    assert "Cholesky: eps" in message(lambda: norms.Cholesky(4, eps=0.0))


def test_they_print_their_arguments() -> None:
    assert repr(norms.BatchNorm(4)) == "BatchNorm(4, eps=0.0001)"
    assert repr(norms.L2()) == "L2(eps=1e-06)"
    assert repr(norms.LayerNorm(4)) == "LayerNorm(4, eps=1e-05)"
    assert repr(norms.GroupNorm(2, 4)) == "GroupNorm(2, 4, eps=1e-05)"
    assert repr(norms.ZCA(4)) == "ZCA(4, eps=0.0001)"
    assert "(running): Running(momentum=0.1)" in repr(norms.Cholesky(4, momentum=0.1))


# Whitening


def mixed(n: int, d: int = D, *, seed: int = 0) -> Tensor:
    """Correlated features with channels of unequal scale and mean."""
    generator = torch.Generator().manual_seed(100 + seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return features(n, d, seed=seed) @ mixing + torch.randn(d, generator=generator, dtype=torch.float64)


def covariance(x: Tensor) -> Tensor:
    return torch.cov(x.mT, correction=0)


@both_whitenings
@settings(max_examples=20, deadline=None)
@given(n=st.integers(3 * D, 60), seed=st.integers(0, 99), scale=st.floats(0.1, 1e4))
def test_whitened_features_have_identity_covariance(whitening: Whitening, n: int, seed: int, scale: float) -> None:
    y = whitening(D, eps=1e-14)(1e3 * scale * mixed(n, seed=seed))  # far above the floor
    torch.testing.assert_close(y.mean(0), torch.zeros(D, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(covariance(y), torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-5)


@both_whitenings
def test_eps_is_in_units_of_the_mean_variance(whitening: Whitening) -> None:
    """A direction of eigenvalue l comes out with variance l / (l + eps mean l), whatever the scale."""
    x = 1e4 * mixed(50)
    found = torch.linalg.eigvalsh(covariance(whitening(D, eps=0.5)(x)))
    eigenvalues = torch.linalg.eigvalsh(covariance(x))
    torch.testing.assert_close(found, eigenvalues / (eigenvalues + 0.5 * eigenvalues.mean()))


def test_the_floor_is_a_millionth() -> None:
    x = torch.tensor([[1e-3], [-1e-3]], dtype=torch.float64)  # of variance 1e-6
    for norm in (norms.ZCA(1, eps=1e-9), norms.Cholesky(1, eps=1e-9)):
        torch.testing.assert_close(norm(x), x.sign() / 2**0.5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(2, 40))
def test_zca_turns_with_its_input(seed: int, n: int) -> None:
    x, norm = mixed(n, seed=seed), norms.ZCA(D)
    turn = torch.linalg.qr(features(D, D, seed=seed + 1)).Q
    torch.testing.assert_close(norm(x @ turn), norm(x) @ turn, rtol=1e-6, atol=1e-6)


def the_map(norm: nn.Module, x: Tensor) -> Tensor:
    """M with ``y = M (x - mean)`` for columns."""
    return torch.linalg.lstsq(x - x.mean(0), norm(x)).solution.mT


def test_the_map_of_zca_is_symmetric_and_positive() -> None:
    found = the_map(norms.ZCA(D), mixed(30))
    torch.testing.assert_close(found, found.mT, rtol=1e-8, atol=1e-8)
    assert torch.linalg.eigvalsh(found).min() > 0


def test_the_map_of_cholesky_is_lower_triangular_and_positive() -> None:
    found = the_map(norms.Cholesky(D), mixed(30))
    assert found.triu(1).abs().max() < 1e-10
    assert found.diagonal().min() > 0
    assert found.tril(-1).abs().max() > 0.1  # and not just diagonal


def test_the_two_differ_by_a_rotation() -> None:
    x = mixed(30)
    rotation = torch.linalg.lstsq(norms.ZCA(D)(x), norms.Cholesky(D)(x)).solution
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(scales=st.lists(st.floats(0.1, 10), min_size=D, max_size=D))
def test_cholesky_removes_the_scale_of_channels(scales: list[float]) -> None:
    x, norm = 1e4 * mixed(30), norms.Cholesky(D, eps=1e-14)
    torch.testing.assert_close(norm(x * torch.tensor(scales, dtype=torch.float64)), norm(x), rtol=1e-5, atol=1e-5)


@both_whitenings
def test_from_whitened_features_least_squares_is_the_cross_covariance(whitening: Whitening) -> None:
    z_s = whitening(D, eps=1e-14)(1e4 * mixed(40))
    z_t = features(40, 3, seed=5)
    z_t = z_t - z_t.mean(0)
    torch.testing.assert_close(torch.linalg.lstsq(z_s, z_t).solution, z_s.mT @ z_t / 40)


@both_whitenings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_batches_stay_finite(whitening: Whitening, dtype: torch.dtype) -> None:
    """Wide features of few rows, an outlier, a copy and a constant among the channels."""
    x = features(20, 300, dtype=torch.float32)
    x[:, 7] *= 1e4
    x[:, 8] = x[:, 9]
    x[:, 10] = 5.0
    y = finite_value_and_gradient(whitening(300), x.to(dtype))
    assert not y[:, 10].abs().gt(1e-2).any()
    assert y.square().sum(1).mean() < 20  # the sum of 20 - 1 directions of variance 1 at most


@both_whitenings
def test_float32_is_good_enough_for_wide_features(whitening: Whitening) -> None:
    """A spectrum that falls as that of real features does, over four powers of ten."""
    turn = torch.linalg.qr(features(256, 256)).Q
    x = features(4096, 256, seed=1) * torch.logspace(0, -2, 256, dtype=torch.float64) @ turn
    torch.testing.assert_close(whitening(256)(x.float()).double(), whitening(256)(x), rtol=0, atol=1e-2)


# The inverse square root


def root_of_symmetric(a: Tensor, ridge: Tensor) -> Tensor:
    return inverse_square_root((a + a.mT) / 2, ridge)


@pytest.mark.parametrize(
    "c",
    [
        torch.diag(torch.tensor([1.0, 2.0, 5.0])),
        torch.eye(3),
        torch.diag(torch.tensor([2.0, 2.0, 7.0])),
        torch.zeros(3, 3),
        torch.ones(3, 3),
    ],
    ids=["distinct", "identity", "one pair", "zero", "rank one"],
)
def test_gradcheck_of_the_inverse_square_root(c: Tensor) -> None:
    """Of C + ridge I; where C is singular, C itself is approached from inside, by ``A^T A`` more."""
    ridge = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    if torch.linalg.eigvalsh(c)[0] > 0.5:
        assert torch.autograd.gradcheck(root_of_symmetric, (c.double().requires_grad_(), ridge))
    for size in (1.0, 1e-3):
        a = (size * features(3, 3)).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, r: root_of_symmetric(c.double() + a.mT @ a, r), (a, ridge))


def test_equal_eigenvalues_have_the_derivative_of_a_scalar() -> None:
    """At C = I, dS = -dC / 2."""
    c = torch.eye(4, dtype=torch.float64, requires_grad=True)
    weights = features(4, 4)
    weights = weights + weights.mT
    (inverse_square_root(c, torch.tensor(1e-30, dtype=torch.float64)) * weights).sum().backward()
    torch.testing.assert_close(c.grad, -weights / 2)


def test_negative_eigenvalues_of_rounding_count_as_zero() -> None:
    c = torch.diag(torch.tensor([-1e-3, 1.0]))
    torch.testing.assert_close(
        inverse_square_root(c, torch.tensor(0.25)), torch.diag(torch.tensor([2.0, 1 / 1.25**0.5]))
    )


def test_a_second_derivative_is_refused() -> None:
    c = torch.eye(2, dtype=torch.float64, requires_grad=True)
    root = inverse_square_root(c, torch.tensor(0.1, dtype=torch.float64))
    (grad,) = torch.autograd.grad(root.square().sum(), c, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# Running statistics

TWINS = [(norms.ZCA, whitened.zca), (norms.Cholesky, whitened.cholesky)]
both_running = pytest.mark.parametrize(("whitening", "twin"), TWINS)


def batches(*sizes: int) -> list[Tensor]:
    return [mixed(n, seed=seed) * (1 + seed) + seed for seed, n in enumerate(sizes)]


@both_running
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_running_statistics_are_those_of_the_weighted_batches(
    whitening: Whitening, twin: Callable[..., Tensor], momentum: float
) -> None:
    norm = whitening(D, momentum=momentum).double()
    seen: list[Tensor] = []
    for x in batches(9, 5, 2, 14):
        torch.testing.assert_close(norm(x), twin(x, before=tuple(seen), momentum=momentum))
        seen.append(x)
    assert norm.running is not None
    mean, cov = whitened.moments(seen, momentum)
    torch.testing.assert_close(norm.running.mean, torch.tensor(mean, dtype=torch.float64))
    torch.testing.assert_close(norm.running.covariance, torch.tensor(cov, dtype=torch.float64))


@both_whitenings
def test_the_shift_between_batches_is_part_of_the_covariance(whitening: Whitening) -> None:
    norm = whitening(1, momentum=0.5).double()
    for mean in (0.0, 10.0):
        norm(torch.tensor([[mean], [mean]], dtype=torch.float64))
    assert norm.running is not None
    # Weights 1/3 and 2/3 of two constants that are 10 apart.
    torch.testing.assert_close(norm.running.covariance, torch.tensor([[100 * 2 / 9]], dtype=torch.float64))


@both_whitenings
def test_the_first_batch_and_momentum_1_use_the_batch_alone(whitening: Whitening) -> None:
    x, other = batches(9, 12)
    torch.testing.assert_close(whitening(D, momentum=0.1).double()(x), whitening(D)(x))
    norm = whitening(D, momentum=1.0)
    norm(other)
    assert torch.equal(norm(x), whitening(D)(x))
    assert not list(norm.buffers())


@both_whitenings
def test_evaluation_uses_the_running_statistics_and_changes_nothing(whitening: Whitening) -> None:
    norm = whitening(D, momentum=0.3).double()
    x, *others = batches(9, 12, 15)
    for other in others:
        norm(other)
    before = copy.deepcopy(norm.state_dict())
    norm.eval()
    y = finite_value_and_gradient(norm, x)
    torch.testing.assert_close(norm(x[:1]), y[:1])  # so one row is enough
    assert norm.state_dict().keys() == before.keys() == {"running.mean", "running.covariance", "running.total"}
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name
    y_all = norm(torch.cat(others))
    assert not torch.allclose(y, norm.train()(x))
    # Those of both batches together, as the weights are nearly equal: white, but not exactly.
    assert (covariance(y_all) - torch.eye(D)).abs().max() < 0.5


@both_whitenings
def test_gradcheck_with_running_statistics(whitening: Whitening) -> None:
    norm = whitening(D, momentum=0.3, eps=1e-2).double()
    norm(mixed(12, seed=1))
    x = mixed(8).requires_grad_()

    def from_the_same_state(x: Tensor) -> Tensor:  # each call of norm itself would be one more batch
        return copy.deepcopy(norm)(x)

    assert torch.autograd.gradcheck(from_the_same_state, x)
    norm.eval()
    assert torch.autograd.gradcheck(norm, x)


@both_whitenings
def test_running_statistics_can_be_saved(whitening: Whitening, tmp_path: Path) -> None:
    norm, x = whitening(D, momentum=0.3), features(8, D, dtype=torch.float32)
    norm(x + 1)
    save_weights(norm.state_dict(), tmp_path / "norm.safetensors")
    other = whitening(D, momentum=0.3)
    other.load_state_dict(load_weights(tmp_path / "norm.safetensors"), strict=True)
    assert torch.equal(other.eval()(x), norm.eval()(x))
    assert torch.equal(other.train()(x), norm.train()(x))


@both_whitenings
def test_running_statistics_stay_in_float32(whitening: Whitening) -> None:
    norm, exact = whitening(D, momentum=0.3).to(torch.bfloat16), whitening(D, momentum=0.3)
    x = features(30, D, dtype=torch.bfloat16)
    assert torch.equal(norm(x), exact(x))
    assert norm.running is not None
    assert norm.running.covariance.dtype == torch.float32


@both_whitenings
def test_evaluating_a_term_leaves_its_norms_alone(whitening: Whitening) -> None:
    term = FeatureTerm(
        "a",
        "b",
        projector=projectors.linear(4, D),
        student_norm=whitening(D, momentum=0.3),
        teacher_norm=whitening(D, momentum=0.3),
        loss=losses.mean_squared_error,
    )

    def capture(seed: int) -> tuple[Captured, Captured]:
        z_s, z_t = features(9, 4, seed=seed).float(), features(9, D, seed=seed + 50).float()
        return Captured(torch.zeros(9), {"a": z_s}), Captured(torch.zeros(9), {"b": z_t})

    term(*capture(0)).backward()
    before = copy.deepcopy(term.state_dict())
    with evaluating(term):
        term(*capture(1))
    assert all(torch.equal(value, before[name]) for name, value in term.state_dict().items())
    term(*capture(1))
    assert not torch.equal(term.state_dict()["teacher_norm.running.mean"], before["teacher_norm.running.mean"])


@both_whitenings
@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_features_that_are_not_finite_do_not_spoil_running_statistics(whitening: Whitening, spoiled: float) -> None:
    norm, x = whitening(D, momentum=0.3), features(9, D, dtype=torch.float32)
    norm(x)
    before = copy.deepcopy(norm.state_dict())
    x[0, 0] = spoiled
    expected = "the covariance cannot be factorized; the features are not finite, or eps 0.0001 is too small"
    assert message(lambda: norm(x)) == f"{whitening.__name__}: {expected}"
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_misuse_of_running_statistics() -> None:
    x = torch.randn(1, D)
    missing = "no running statistics yet; train on a batch first, or use momentum=1.0"
    assert message(lambda: norms.ZCA(D, momentum=0.5).eval()(x)) == f"ZCA: {missing}"
    assert message(lambda: norms.Cholesky(D, momentum=0.5).eval()(x)) == f"Cholesky: {missing}"
    expected = "rows in the batch: 1; batch statistics need at least 2"
    for momentum in (0.5, 1.0):
        assert message(lambda momentum=momentum: norms.ZCA(D, momentum=momentum)(x)) == f"ZCA: {expected}"
        assert message(lambda momentum=momentum: norms.Cholesky(D, momentum=momentum)(x)) == f"Cholesky: {expected}"
    assert message(lambda: norms.ZCA(D).eval()(x)) == f"ZCA: {expected}"
    for momentum in (0.0, -0.1, 1.5):
        found = message(lambda momentum=momentum: norms.ZCA(D, momentum=momentum))
        assert found == f"ZCA: momentum is {momentum}; expected a number above 0 and at most 1"
    assert "Cholesky: momentum" in message(lambda: norms.Cholesky(D, momentum=2.0))
