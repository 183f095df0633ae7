import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import projectors_worker
import reference
import reference_projectors as twins
import spawned
from limbeck import FeatureTerm, losses, norms, projectors
from limbeck.errors import UserError
from limbeck.storage.files import load_weights, save_weights

torch.set_num_threads(1)

Build = Callable[[], nn.Module]
BUILDS: dict[str, Build] = {
    "linear": lambda: projectors.linear(3, 5),
    "linear with bias": lambda: projectors.linear(3, 5, bias=True),
    "mlp": lambda: projectors.mlp(3, 5, hidden=7),
    "mlp of 1": lambda: projectors.mlp(3, 5, depth=1),
    "mlp of 4 with bias": lambda: projectors.mlp(3, 5, hidden=4, depth=4, bias=True),
    "low rank": lambda: projectors.low_rank(3, 5, rank=2),
    "orthogonal": lambda: projectors.orthogonal(3, 5),
    "ensemble": lambda: projectors.ensemble(3, 5),
    "ensemble of 2": lambda: projectors.ensemble(3, 5, count=2, activation=nn.Identity),
}
every_projector = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def twin(projector: nn.Module, x: Tensor) -> Tensor:
    if isinstance(projector, projectors.Ensemble):
        return torch.stack([twin(member, x) for member in projector.members]).mean(0)
    table = reference.rows(x)
    layers = [projector] if isinstance(projector, nn.Linear) else list(projector.children())
    for layer in layers:
        if isinstance(layer, nn.Linear):
            table = reference.linear(table, layer)
        elif isinstance(layer, nn.ReLU):
            table = reference.relu(table)
    return torch.tensor(table, dtype=torch.float64).reshape(*x.shape[:-1], -1)


@every_projector
@pytest.mark.parametrize("shape", [(6, 3), (1, 3), (2, 4, 3)], ids=str)
def test_equals_its_loop_twin(build: Build, shape: tuple[int, ...]) -> None:
    projector = build().double()
    x = features(*shape)
    torch.testing.assert_close(projector(x), twin(projector, x))
    assert projector(x).shape == (*shape[:-1], 5)


@every_projector
def test_gradcheck(build: Build) -> None:
    assert torch.autograd.gradcheck(build().double(), features(4, 3).requires_grad_())


@every_projector
def test_every_parameter_gets_a_gradient(build: Build) -> None:
    projector = build().double()
    projector(features(6, 3)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in projector.parameters())


@every_projector
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision(build: Build, dtype: torch.dtype) -> None:
    x = features(6, 3).float()
    projector = build()
    with torch.autocast("cpu", dtype=dtype):
        y = projector(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), projector(x), rtol=0.05, atol=0.05)
    assert projector.to(dtype)(x.to(dtype)).dtype == dtype


def test_identity_gives_its_input() -> None:
    x = features(6, 3)
    assert projectors.identity()(x) is x
    assert isinstance(projectors.identity(), nn.Identity)
    assert not list(projectors.identity().parameters())


def test_biases_are_where_they_matter() -> None:
    assert projectors.linear(3, 5).bias is None
    assert projectors.linear(3, 5, bias=True).bias is not None
    layers = [layer for layer in projectors.mlp(3, 5, depth=3) if isinstance(layer, nn.Linear)]
    assert [layer.bias is not None for layer in layers] == [True, True, False]
    last = projectors.mlp(3, 5, depth=3, bias=True)[-1]
    assert isinstance(last, nn.Linear)
    assert last.bias is not None


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth_counts_the_linear_layers(depth: int) -> None:
    layers = list(projectors.mlp(3, 5, hidden=7, depth=depth))
    assert sum(isinstance(layer, nn.Linear) for layer in layers) == depth
    assert len(layers) == 2 * depth - 1
    assert isinstance(layers[-1], nn.Linear)


def test_the_hidden_width_of_the_paper_is_the_default() -> None:
    first = projectors.mlp(64, 256)[0]
    assert isinstance(first, nn.Linear)
    assert first.out_features == 1024


def test_activation_is_made_anew_for_each_place() -> None:
    activations = list(projectors.mlp(3, 5, hidden=7, depth=3, activation=lambda: nn.PReLU(7)))[1::2]
    assert all(isinstance(activation, nn.PReLU) for activation in activations)
    assert activations[0] is not activations[1]


def test_initial_values_are_the_frameworks() -> None:
    torch.manual_seed(0)
    ours = projectors.linear(64, 32).weight
    torch.manual_seed(0)
    assert torch.equal(ours, nn.Linear(64, 32, bias=False).weight)


# Cost and weight decay are as the docstrings say


def parameters(projector: nn.Module) -> int:
    return sum(p.numel() for p in projector.parameters())


def test_the_numbers_of_parameters() -> None:
    d_s, d_t = 7, 11
    assert parameters(projectors.identity()) == 0
    assert parameters(projectors.linear(d_s, d_t)) == d_s * d_t
    assert parameters(projectors.linear(d_s, d_t, bias=True)) == d_s * d_t + d_t
    assert parameters(projectors.mlp(d_s, d_t, hidden=5, depth=4)) == d_s * 5 + 2 * 5 * 5 + 5 * d_t + 3 * 5
    assert parameters(projectors.low_rank(d_s, d_t, rank=3)) == 3 * (d_s + d_t)
    assert parameters(projectors.orthogonal(d_s, d_t)) == d_s * d_t
    assert parameters(projectors.ensemble(d_s, d_t, count=4)) == 4 * (d_s + 1) * d_t
    assert parameters(projectors.Ridge(d_s, d_t)) == 0
    assert sum(b.numel() for b in projectors.Ridge(d_s, d_t).buffers()) == d_s * (d_s + 2 * d_t) + d_s + d_t + 1


# Low rank


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 4), seed=st.integers(0, 99))
def test_low_rank_has_its_rank(rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    first, second = projectors.low_rank(4, 6, rank=rank)
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert torch.linalg.matrix_rank(second.weight @ first.weight) == rank


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_low_rank_starts_at_the_scale_of_linear(rank: int) -> None:
    d_s, d_t = 64, 96
    products: list[Tensor] = []
    for _ in range(max(4, 100 // rank)):
        first, second = projectors.low_rank(d_s, d_t, rank=rank)
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        products.append(second.weight.detach() @ first.weight.detach())
    plain = torch.stack([projectors.linear(d_s, d_t).weight.detach() for _ in range(20)])
    assert torch.stack(products).std().item() == pytest.approx(plain.std().item(), rel=0.05)
    assert plain.std().item() == pytest.approx(1 / math.sqrt(3 * d_s), rel=0.01)


# Orthogonal

WIDTHS = pytest.mark.parametrize(("d_s", "d_t"), [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1), (48, 200)], ids=str)


def assert_orthonormal(weight: Tensor, *, atol: float = 1e-6) -> None:
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    torch.testing.assert_close(tall.mT @ tall, torch.eye(tall.shape[1], dtype=weight.dtype), rtol=0, atol=atol)


def stored(projector: nn.Module) -> nn.Parameter:
    (parameter,) = projector.parameters()
    return parameter


@WIDTHS
def test_orthogonal_is_a_linear_layer_with_an_orthonormal_matrix(d_s: int, d_t: int) -> None:
    projector = projectors.orthogonal(d_s, d_t)
    assert isinstance(projector, nn.Linear)
    assert projector.bias is None
    assert projector.weight.shape == (d_t, d_s)
    assert projector.weight.requires_grad
    assert_orthonormal(projector.weight.detach())
    torch.testing.assert_close(projector.weight, stored(projector))  # which starts orthonormal
    assert torch.equal(projector.weight, projector.weight)


@pytest.mark.parametrize(("d_s", "d_t"), [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)], ids=str)
def test_orthogonal_is_the_polar_factor_of_what_is_stored(d_s: int, d_t: int) -> None:
    projector = projectors.orthogonal(d_s, d_t).double()
    with torch.no_grad():
        stored(projector).copy_(features(d_t, d_s))
    torch.testing.assert_close(projector.weight.detach(), twins.polar(stored(projector)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3))
def test_the_scale_of_what_is_stored_does_not_matter(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    projector = projectors.orthogonal(4, 7).double()
    with torch.no_grad():
        stored(projector).add_(torch.randn(7, 4, dtype=torch.float64))
    before = projector.weight.detach()
    with torch.no_grad():
        stored(projector).mul_(scale)
    torch.testing.assert_close(projector.weight.detach(), before)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_weight_decay_does_not_shrink_orthogonal(make: Any) -> None:
    projector = projectors.orthogonal(4, 7)
    before, size = projector.weight.detach(), stored(projector).norm().item()
    optimizer = make(projector.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        (projector(torch.zeros(2, 4))).sum().backward()  # a gradient of zero: only the decay acts
        optimizer.step()
    assert stored(projector).norm().item() < 0.5 * size
    torch.testing.assert_close(projector.weight.detach(), before)


@pytest.mark.parametrize(("d_s", "d_t"), [(6, 9), (9, 6)])
def test_orthogonal_stays_orthonormal_and_learns(d_s: int, d_t: int) -> None:
    target = torch.linalg.qr(features(max(d_s, d_t), min(d_s, d_t)).float()).Q
    target = target if d_t > d_s else target.mT
    projector, x = projectors.orthogonal(d_s, d_t), features(200, d_s).float()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.02, weight_decay=0.05)
    losses_seen: list[float] = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (projector(x) - x @ target.mT).square().mean()
        loss.backward()
        optimizer.step()
        losses_seen.append(loss.item())
    assert_orthonormal(projector.weight.detach(), atol=1e-5)
    assert losses_seen[-1] < 0.01 * losses_seen[0]


def test_orthogonal_keeps_lengths_and_angles() -> None:
    x = features(8, 3)
    y = projectors.orthogonal(3, 5).double()(x)
    torch.testing.assert_close(y @ y.mT, x @ x.mT)


def test_autocast_does_not_reach_the_matrix() -> None:
    projector = projectors.orthogonal(30, 50)
    plain = projector.weight.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(projector.weight, plain)
        projector(features(6, 30).float()).float().square().sum().backward()
    assert stored(projector).grad is not None


@pytest.mark.parametrize("size", [0.0, 1e-20])
def test_a_matrix_that_lost_its_directions_is_finite(size: float) -> None:
    projector = projectors.orthogonal(3, 5)
    with torch.no_grad():
        stored(projector)[:, 1:] = 0
        stored(projector).mul_(size)
    projector(torch.ones(2, 3)).sum().backward()
    assert projector.weight.isfinite().all()
    grad = stored(projector).grad
    assert grad is not None
    assert not grad.isnan().any()


def test_copies_and_saved_states_of_orthogonal(tmp_path: Path) -> None:
    projector, x = projectors.orthogonal(4, 7), features(3, 4).float()
    projector(x).square().sum().backward()
    twin_of_it = copy.deepcopy(projector)
    assert isinstance(twin_of_it, nn.Linear)
    with torch.no_grad():
        stored(twin_of_it).add_(1)
    assert not torch.equal(twin_of_it(x), projector(x))
    save_weights(twin_of_it.state_dict(), tmp_path / "projector.safetensors")
    other = projectors.orthogonal(4, 7)
    other.load_state_dict(load_weights(tmp_path / "projector.safetensors"), strict=True)
    assert torch.equal(other(x), twin_of_it(x))
    assert list(other.state_dict()) == ["parametrizations.weight.original"]


def test_orthogonal_starts_anew_for_every_seed() -> None:
    torch.manual_seed(0)
    first, second = projectors.orthogonal(4, 7).weight, projectors.orthogonal(4, 7).weight
    torch.manual_seed(0)
    assert torch.equal(projectors.orthogonal(4, 7).weight, first)
    assert not torch.allclose(first, second)


# Ensemble


def test_the_members_of_an_ensemble_differ() -> None:
    projector = projectors.ensemble(3, 5)
    assert isinstance(projector, projectors.Ensemble)
    first, second, third = (member[0].weight for member in projector.members)  # type: ignore[index]
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)
    assert not (projector(features(6, 3).float()) < 0).any()


def test_without_activation_an_ensemble_is_one_linear_map() -> None:
    projector = projectors.ensemble(3, 5, activation=nn.Identity).double()
    x, y = features(2, 6, 3)
    zero = projector(torch.zeros(6, 3, dtype=torch.float64))
    torch.testing.assert_close(projector(x + y) - zero, projector(x) - zero + projector(y) - zero)


def test_a_batch_norm_may_follow_an_ensemble() -> None:
    FeatureTerm(
        "a",
        "b",
        projector=projectors.ensemble(3, 5),
        student_norm=norms.BatchNorm(5),
        teacher_norm=norms.BatchNorm(5),
        loss=losses.log_sum,
    )


# Ridge


def pairs(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of related features whose means move."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found: list[tuple[Tensor, Tensor]] = []
    for i, n in enumerate(sizes):
        z_s = torch.randn(n, 3, generator=generator, dtype=torch.float64) + 3 * i
        found.append((z_s, z_s @ mixing + torch.randn(n, 5, generator=generator, dtype=torch.float64) - i))
    return found


def observed(batches: list[tuple[Tensor, Tensor]], *, ridge: float = 1e-3, momentum: float = 0.1) -> projectors.Ridge:
    projector = projectors.Ridge(3, 5, ridge=ridge, momentum=momentum).double()
    for z_s, z_t in batches:
        projector.observe(z_s, z_t)
    return projector


@pytest.mark.parametrize("momentum", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("ridge", [1e-3, 2.0])
def test_ridge_equals_its_loop_twin(ridge: float, momentum: float) -> None:
    batches = pairs(9, 4, 17)
    for count in (1, 2, 3):
        projector = observed(batches[:count], ridge=ridge, momentum=momentum)
        expected = twins.ridge(batches[:count], ridge=ridge, momentum=momentum)
        torch.testing.assert_close(projector.weight, expected.mT)
        x = features(2, 4, 3)
        torch.testing.assert_close(projector(x), x @ expected)


def test_ridge_is_least_squares_of_one_batch() -> None:
    ((z_s, z_t),) = pairs(40)
    projector = observed([(z_s, z_t)], ridge=1e-12)
    expected = torch.linalg.lstsq(z_s - z_s.mean(0), z_t - z_t.mean(0)).solution
    torch.testing.assert_close(projector.weight, expected.mT, rtol=1e-6, atol=1e-6)


def test_ridge_of_whitened_features_is_the_cross_covariance() -> None:
    ((z_s, z_t),) = pairs(40)
    z_s = norms.ZCA(3, eps=1e-14)(1e4 * z_s)
    projector = observed([(z_s, z_t)], ridge=1.0)  # the ridge then halves it, as the paper's weight decay does
    torch.testing.assert_close(projector.weight, (z_s.mT @ (z_t - z_t.mean(0)) / 40).mT / 2)


def test_ridge_is_the_fixed_point_of_a_trained_linear_projector_with_weight_decay() -> None:
    ((z_s, z_t),) = pairs(40)
    z_s, z_t = z_s - z_s.mean(0), z_t - z_t.mean(0)
    decay = 0.2
    trained = projectors.linear(3, 5).double()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, weight_decay=decay)
    for _ in range(2000):
        optimizer.zero_grad()
        (losses.squared_error(trained(z_s), z_t) / 40).backward()
        optimizer.step()
    mean_variance = z_s.square().mean().item()
    projector = observed([(z_s, z_t)], ridge=decay / mean_variance)
    torch.testing.assert_close(projector.weight, trained.weight.detach())


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_ridge_does_not_depend_on_scale_and_shift(scale: float, shift: float) -> None:
    batches = pairs(9, 12)
    plain = observed(batches)
    moved = observed([(scale * z_s + shift, z_t - shift) for z_s, z_t in batches])
    torch.testing.assert_close(moved.weight * scale, plain.weight, rtol=1e-6, atol=1e-8)


def test_ridge_counts_every_leading_dimension() -> None:
    ((z_s, z_t),) = pairs(12)
    dense = observed([(z_s.reshape(3, 4, 3), z_t.reshape(3, 4, 5))])
    torch.testing.assert_close(dense.weight, observed([(z_s, z_t)]).weight)


def test_ridge_lets_the_gradient_through_to_the_features_alone() -> None:
    ((z_s, z_t),) = pairs(12)
    z_s.requires_grad_()
    z_t.requires_grad_()
    projector = observed([(z_s, z_t)])
    assert torch.autograd.gradcheck(projector, z_s)
    y = projector(z_s)
    projector.observe(*pairs(5, 8)[1])  # between forward and backward
    y.sum().backward()
    assert z_t.grad is None
    assert z_s.grad is not None
    torch.testing.assert_close(z_s.grad, observed([(z_s, z_t)]).weight.sum(0).expand(12, 3))
    assert not any(buffer.requires_grad for buffer in projector.buffers())


def test_ridge_in_evaluation_observes_nothing() -> None:
    first, second = pairs(12, 9)
    projector = observed([first])
    before = copy.deepcopy(projector.state_dict())
    projector.eval().observe(*second)
    assert all(torch.equal(value, before[name]) for name, value in projector.state_dict().items())
    projector.train().observe(*second)
    assert not torch.equal(projector.weight, before["weight"])


def test_the_state_of_ridge_can_be_saved(tmp_path: Path) -> None:
    first, second = pairs(12, 9)
    projector = observed([first])
    save_weights(projector.state_dict(), tmp_path / "projector.safetensors")
    other = projectors.Ridge(3, 5).double()
    other.load_state_dict(load_weights(tmp_path / "projector.safetensors"), strict=True)
    assert torch.equal(other(first[0]), projector(first[0]))
    for each in (other, copy.deepcopy(projector)):
        each.observe(*second)
        assert torch.equal(each.weight, observed([first, second]).weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ridge_in_half_precision(dtype: torch.dtype) -> None:
    ((z_s, z_t),) = pairs(40)
    z_s, z_t = z_s.to(dtype), z_t.to(dtype)
    projector, moved, exact = projectors.Ridge(3, 5), projectors.Ridge(3, 5).to(dtype), projectors.Ridge(3, 5)
    exact.observe(z_s.float(), z_t.float())
    with torch.autocast("cpu", dtype=dtype):
        projector.observe(z_s, z_t)
        assert projector(z_s.float()).dtype == dtype
    moved.observe(z_s, z_t)
    assert torch.equal(projector.weight, exact.weight)
    assert torch.equal(moved.weight, exact.weight)
    assert projector(z_s).dtype == dtype
    torch.testing.assert_close(projector(z_s).float(), exact(z_s.float()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constant", [0.0, 3.3, 1e6])
def test_ridge_of_constant_features_is_zero(constant: float, dtype: torch.dtype) -> None:
    projector = projectors.Ridge(3, 5)
    for _ in range(3):
        projector.observe(torch.full((1000, 3), constant, dtype=dtype), torch.full((1000, 5), constant, dtype=dtype))
    assert not projector.weight.any()


def test_ridge_of_fewer_rows_than_channels() -> None:
    projector = projectors.Ridge(200, 5, momentum=1.0)
    z_s, z_t = features(10, 200).float(), features(10, 5).float()
    projector.observe(z_s, z_t)
    torch.testing.assert_close(projector(z_s - z_s.mean(0)), z_t - z_t.mean(0), rtol=0.02, atol=0.02)


def error_of(call: Callable[[], object]) -> str:
    with reference.as_a_user(), pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_misuse_of_ridge() -> None:
    projector = projectors.Ridge(3, 5)
    expected = "Ridge: nothing to project with yet; call observe with a batch in training mode first"
    assert error_of(lambda: projector(torch.ones(2, 3))) == expected
    assert error_of(lambda: projector.eval()(torch.ones(2, 3))) == expected
    projector.train()
    shapes = "expected (n, 3) and (n, 5)"
    observe = projector.observe
    assert error_of(lambda: observe(torch.ones(2, 4), torch.ones(2, 5))) == f"Ridge: got (2, 4) and (2, 5); {shapes}"
    assert shapes in error_of(lambda: observe(torch.ones(2, 3), torch.ones(3, 5)))
    assert shapes in error_of(lambda: observe(torch.ones(2, 3), torch.ones(2, 3)))
    assert shapes in error_of(lambda: observe(torch.ones(()), torch.ones(())))
    expected = "Ridge: rows in the batch: 1; a covariance needs at least 2"
    assert error_of(lambda: observe(torch.ones(1, 3), torch.ones(1, 5))) == expected
    assert "ridge is 0.0" in error_of(lambda: projectors.Ridge(3, 5, ridge=0.0))
    assert "Ridge: momentum is 0" in error_of(lambda: projectors.Ridge(3, 5, momentum=0.0))


def test_features_that_are_not_finite_do_not_spoil_ridge() -> None:
    projector = projectors.Ridge(3, 5)
    z_s, z_t = features(9, 3).float(), features(9, 5).float()
    projector.observe(z_s, z_t)
    before = copy.deepcopy(projector.state_dict())
    spoiled = z_s.clone()
    spoiled[0, 0] = float("nan")
    expected = "Ridge: no solution for ridge 0.001; the features are not finite, or it is too small"
    assert error_of(lambda: projector.observe(spoiled, z_t)) == expected
    assert all(torch.equal(value, before[name]) for name, value in projector.state_dict().items())


# Two processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("projectors")
    return spawned.found_by(projectors_worker.work, 2, folder)


@pytest.mark.processes
@pytest.mark.parametrize("what", ["ridge", "zca", "cholesky"])
def test_two_processes_see_the_whole_batch(two: list[dict[str, Any]], what: str) -> None:
    """Unequal local batches, one of them of a single row and one of none; equal state on both."""
    expected = projectors_worker.everything()[what]
    for found in two:
        assert found[what].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[what][name], value, rtol=1e-9, atol=1e-9)
    for name, value in two[0][what].items():
        if name.startswith("state"):
            assert torch.equal(value, two[1][what][name])


@pytest.mark.processes
def test_too_few_rows_are_refused_by_both_processes(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["refused"] == "Ridge: rows in the batch: 1; a covariance needs at least 2"


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: projectors.linear(0, 5), "linear: d_s is 0; expected at least 1"),
        (lambda: projectors.linear(3, -1), "linear: d_t is -1; expected at least 1"),
        (lambda: projectors.mlp(3, 0), "mlp: d_t is 0; expected at least 1"),
        (lambda: projectors.mlp(3, 5, hidden=0), "mlp: hidden is 0; expected at least 1"),
        (lambda: projectors.mlp(3, 5, depth=0), "mlp: depth is 0; expected at least 1"),
        (lambda: projectors.low_rank(3, 5, rank=0), "low_rank: rank is 0; expected at least 1"),
        (lambda: projectors.low_rank(3, 5, rank=4), "low_rank: rank is 4; expected at most the smaller width, 3"),
        (lambda: projectors.orthogonal(0, 5), "orthogonal: d_s is 0; expected at least 1"),
        (lambda: projectors.ensemble(3, 5, count=0), "ensemble: count is 0; expected at least 1"),
        (lambda: projectors.Ridge(3, 0), "Ridge: d_t is 0; expected at least 1"),
    ],
)
def test_sizes_are_checked(build: Build, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert str(caught.value) == expected
