from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reference
from limbeck import projectors
from limbeck.errors import UserError

torch.set_num_threads(1)

Build = Callable[[], nn.Module]
BUILDS: dict[str, Build] = {
    "linear": lambda: projectors.linear(3, 5),
    "linear with bias": lambda: projectors.linear(3, 5, bias=True),
    "mlp": lambda: projectors.mlp(3, 5, hidden=7),
    "mlp of 1": lambda: projectors.mlp(3, 5, depth=1),
    "mlp of 4 with bias": lambda: projectors.mlp(3, 5, hidden=4, depth=4, bias=True),
}
every_projector = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def twin(projector: nn.Module, x: Tensor) -> Tensor:
    table = reference.rows(x)
    layers = [projector] if isinstance(projector, nn.Linear) else list(projector.children())
    for layer in layers:
        table = reference.linear(table, layer) if isinstance(layer, nn.Linear) else reference.relu(table)
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


@every_projector
def test_compiles_into_one_graph(build: Build) -> None:
    torch.compiler.reset()
    projector, x = build(), features(6, 3).float()
    torch.testing.assert_close(torch.compile(projector, backend="aot_eager", fullgraph=True)(x), projector(x))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: projectors.linear(0, 5), "linear: d_s is 0; expected at least 1"),
        (lambda: projectors.linear(3, -1), "linear: d_t is -1; expected at least 1"),
        (lambda: projectors.mlp(3, 0), "mlp: d_t is 0; expected at least 1"),
        (lambda: projectors.mlp(3, 5, hidden=0), "mlp: hidden is 0; expected at least 1"),
        (lambda: projectors.mlp(3, 5, depth=0), "mlp: depth is 0; expected at least 1"),
    ],
)
def test_sizes_are_checked(build: Build, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert str(caught.value) == expected
