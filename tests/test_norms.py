import functools
import importlib.util
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from limbeck import norms
from limbeck.errors import UserError

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
}
ALL = {name: module for name, (module, _) in PAIRS.items()}
every_pair = pytest.mark.parametrize(("norm", "twin"), PAIRS.values(), ids=PAIRS)
every_norm = pytest.mark.parametrize("norm", ALL.values(), ids=ALL)
of_rows = pytest.mark.parametrize("norm", [norm for name, norm in ALL.items() if "Batch" not in name])


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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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


def test_they_print_their_arguments() -> None:
    assert repr(norms.BatchNorm(4)) == "BatchNorm(4, eps=0.0001)"
    assert repr(norms.L2()) == "L2(eps=1e-06)"
    assert repr(norms.LayerNorm(4)) == "LayerNorm(4, eps=1e-05)"
    assert repr(norms.GroupNorm(2, 4)) == "GroupNorm(2, 4, eps=1e-05)"


# torch.compile


def test_compile_into_one_graph() -> None:
    # A copy under another name does not have the shape checker that the tests wrap around every function.
    assert norms.__file__ is not None
    spec = importlib.util.spec_from_file_location("norms_as_released", norms.__file__)
    assert spec is not None
    assert spec.loader is not None
    released = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(released)
    x = features(7, D, dtype=torch.float32)
    for norm in (released.BatchNorm(D), released.LayerNorm(D), released.GroupNorm(3, D)):
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(norm, backend="aot_eager", fullgraph=True)(x), norm(x))
