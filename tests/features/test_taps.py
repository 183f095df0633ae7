import contextlib
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck import Taps
from limbeck.errors import UserError
from reference import as_a_user


class Block(nn.Module):
    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Model(nn.Module):
    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.stage = nn.Sequential(Block(inplace=inplace))
        self.fc = nn.Linear(4, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage(x).mean((2, 3)))


class Keywords(nn.Module):
    """Calls its parts in ways that hook-based readers stumble over."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.part = nn.Linear(3, 3)
        self.pair = Pair()
        self.alias = self.part

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "keyword":
            return self.part(input=x)
        if self.way == "twice":
            return self.part(self.part(x))
        if self.way == "pair":
            return self.pair(x)[0]
        if self.way == "raise":
            self.part(x)
            raise RuntimeError("half way")
        return self.alias(x)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_nested_names_inputs_and_output_are_the_live_tensors() -> None:
    model = Model().eval()
    x = torch.randn(5, 3, 2, 2)
    captured = Taps(model, ["stage.0.bn", "fc:input", "output", "fc", "fc"])(x)
    map_ = model.stage[0].bn(model.stage[0].conv(x))
    assert torch.equal(captured.features["stage.0.bn"], map_)
    assert torch.equal(captured.features["fc:input"], map_.relu().mean((2, 3)))
    assert captured.features["output"] is captured.output
    assert captured.features["fc"] is captured.output
    assert list(captured.features) == ["stage.0.bn", "fc:input", "fc", "output"]
    captured.features["fc:input"].sum().backward()
    assert model.stage[0].conv.weight.grad is not None


def test_no_name_needs_no_hook() -> None:
    assert Taps(Model())(torch.randn(2, 3, 2, 2)).features == {}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stage.0.bm", 'did you mean "stage.0.bn"'),
        ("unusd:input", 'did you mean "unused"'),
        ("zebra", ""),
        ("", ""),
        (":input", ""),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(UserError, match="no submodule") as raised:
        Taps(Model(), [name])
    assert hint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_hook_is_left_after_success_or_after_an_exception() -> None:
    model = Keywords("raise")
    with pytest.raises(RuntimeError, match="half way"):
        Taps(model, ["part", "part:input"])(torch.ones(2, 3))
    assert hooks(model) == 0
    model.way = "alias"
    Taps(model, ["part", "part:input"])(torch.ones(2, 3))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("way", "name", "message"),
    [
        ("twice", "part", "more than once"),
        ("twice", "part:input", "more than once"),
        ("alias", "pair", "did not run"),
        ("pair", "pair", "gave a tuple of 2"),
        ("keyword", "part:input", "without a positional input"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(way: str, name: str, message: str) -> None:
    model = Keywords(way)
    with pytest.raises(UserError, match=message) as raised:
        Taps(model, [name])(torch.ones(2, 3))
    assert f'"{name}"' in str(raised.value)
    assert "\n" not in str(raised.value)
    assert hooks(model) == 0


def test_a_keyword_call_still_gives_its_output() -> None:
    assert Taps(Keywords("keyword"), ["part"])(torch.ones(2, 3)).features["part"].shape == (2, 3)


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(UserError, match="Pair returned a tuple of 2; expected one tensor"):
        Taps(Pair())(torch.ones(1))


@pytest.mark.parametrize("name", ["stage.0.bn", "stage.0.act:input"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_feature_that_was_overwritten_in_place_is_an_error(name: str, grad: bool) -> None:
    x = torch.randn(5, 3, 2, 2)
    with torch.set_grad_enabled(grad), pytest.raises(UserError, match=f'"{name}" was overwritten in place'):
        Taps(Model(inplace=True), [name])(x)
    # The overwriting layer's own output is fine, and so is everything in a model that overwrites nothing.
    Taps(Model(inplace=True), ["stage.0.act"])(x)
    Taps(Model(), [name])(x)


def test_a_shared_module_has_two_names_and_one_feature() -> None:
    model = Keywords("alias")
    captured = Taps(model, ["part"])(torch.ones(2, 3))  # called as self.alias
    assert torch.equal(captured.features["part"], captured.output)
    with pytest.raises(UserError, match='no submodule "alias"'):  # named_modules lists a module once, by its first name
        Taps(model, ["alias"])


def test_inference_mode_works() -> None:
    with torch.inference_mode():
        assert Taps(Model().eval(), ["fc:input"])(torch.randn(2, 3, 2, 2)).features["fc:input"].shape == (2, 4)


class Reader(nn.Module):
    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.taps = Taps(model, names)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        captured = self.taps(x)
        return captured.output, captured.features["fc:input"]


@pytest.mark.filterwarnings("ignore")  # PyTorch warns about its own compiler
def test_the_caller_can_be_compiled() -> None:
    model = Model().eval()
    compiled = torch.compile(Reader(model, ["fc:input"]), backend="eager")
    for _ in range(2):  # the second call runs what the first one has compiled
        x = torch.randn(3, 3, 2, 2)
        with as_a_user():  # the tests' checker of annotations does not live in a compiled graph
            output, feature = compiled(x)
        assert torch.allclose(output, model(x))
        assert torch.allclose(model.fc(feature), output)
    assert hooks(model) == 0
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # PyTorch warns about its own compiler
@pytest.mark.parametrize("called_before", [False, True])
def test_a_model_compiled_by_itself_is_right_or_an_error_never_stale(called_before: bool) -> None:
    model = Model().eval()
    model.compile(backend="eager")
    if called_before:
        model(torch.randn(3, 3, 2, 2))
    taps = Taps(model, ["fc:input"])
    expected = pytest.raises(UserError, match="did not run") if called_before else contextlib.nullcontext()
    for _ in range(3):
        with as_a_user(), expected:
            captured = taps(torch.randn(3, 3, 2, 2))
            assert torch.allclose(model.fc(captured.features["fc:input"]), captured.output)
    torch.compiler.reset()


class Checkpointed(nn.Module):
    """A student whose block is computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_feature_inside_of_reentrant_checkpointing_is_refused_since_no_gradient_leaves_it(reentrant: bool) -> None:
    model, x = Checkpointed(reentrant=reentrant), torch.randn(5, 4)
    around = Taps(model, ["block"])(x).features["block"]
    around.sum().backward()
    assert model.stem.weight.grad is not None
    inside = Taps(model, ["block.0"])
    if reentrant:
        with pytest.raises(UserError, match=r'"block.0" lies inside a part that runs without gradient'):
            inside(x)
    else:
        assert inside(x).features["block.0"].requires_grad
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # torch warns that there are no gradients
        assert inside(x).features["block.0"].shape == (5, 3)
