import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import reference
import reference_relations as twins
from limbeck import losses
from limbeck.errors import UserError
from limbeck.features import pooling

torch.set_num_threads(1)

Loss = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[int, int, int, int]

# Each with its twin.
PAIRS: dict[str, tuple[Loss, Callable[[Tensor, Tensor], float]]] = {
    "attention_transfer": (losses.attention_transfer, twins.attention_transfer),
    "attention_transfer 1": (
        functools.partial(losses.attention_transfer, power=1.0),
        functools.partial(twins.attention_transfer, power=1.0),
    ),
    "attention_transfer 3.5": (
        functools.partial(losses.attention_transfer, power=3.5),
        functools.partial(twins.attention_transfer, power=3.5),
    ),
    "neuron_selectivity": (losses.neuron_selectivity, twins.neuron_selectivity),
    "hierarchical_context": (losses.hierarchical_context, twins.hierarchical_context),
    "hierarchical_context 3": (
        functools.partial(losses.hierarchical_context, levels=(3,)),
        functools.partial(twins.hierarchical_context, levels=(3,)),
    ),
    "hierarchical_context, none": (
        functools.partial(losses.hierarchical_context, levels=()),
        functools.partial(twins.hierarchical_context, levels=()),
    ),
}
every_pair = pytest.mark.parametrize(("loss", "twin"), PAIRS.values(), ids=PAIRS)
every_loss = pytest.mark.parametrize("loss", [loss for loss, _ in PAIRS.values()], ids=PAIRS)
OF_ANY_WIDTH = {name: loss for name, (loss, _) in PAIRS.items() if "hierarchical" not in name}
every_loss_of_any_width = pytest.mark.parametrize("loss", OF_ANY_WIDTH.values(), ids=OF_ANY_WIDTH)


def pair(
    shape_s: Shape = (3, 4, 5, 5), shape_t: Shape | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_s = torch.randn(*shape_s, generator=generator, dtype=torch.float64)
    x_t = torch.randn(*(shape_t or shape_s), generator=generator, dtype=torch.float64)
    return x_s.to(dtype), x_t.to(dtype)


def gradient(loss: Loss, x_s: Tensor, x_t: Tensor) -> Tensor:
    x_s = x_s.clone().requires_grad_()
    loss(x_s, x_t).backward()
    assert x_s.grad is not None
    return x_s.grad


def finite_value_and_gradients(loss: Loss, x_s: Tensor, x_t: Tensor) -> None:
    assert loss(x_s, x_t).isfinite()
    assert gradient(loss, x_s, x_t).isfinite().all()
    assert gradient(lambda t, s: loss(s, t), x_t, x_s).isfinite().all()


# Values and gradients


@every_pair
@pytest.mark.parametrize(
    ("size_s", "size_t"), [((5, 5), (5, 5)), ((7, 7), (3, 3)), ((2, 5), (6, 3)), ((1, 1), (4, 4))], ids=str
)
def test_equals_its_loop_twin(
    loss: Loss, twin: Callable[[Tensor, Tensor], float], size_s: tuple[int, int], size_t: tuple[int, int]
) -> None:
    x_s, x_t = pair((3, 4, *size_s), (3, 4, *size_t))
    assert loss(x_s, x_t).item() == pytest.approx(twin(x_s, x_t), rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("name", OF_ANY_WIDTH)
@pytest.mark.parametrize(("c_s", "c_t", "size"), [(2, 5, 4), (1, 3, 2), (12, 3, 2), (3, 20, 3)])
def test_channels_may_differ(name: str, c_s: int, c_t: int, size: int) -> None:
    loss, twin = PAIRS[name]
    x_s, x_t = pair((2, c_s, size, size), (2, c_t, size + 1, size))
    assert loss(x_s, x_t).item() == pytest.approx(twin(x_s, x_t), rel=1e-11)


@every_loss
@pytest.mark.parametrize("sizes", [(3, 3), (4, 3), (2, 3)], ids=str)
def test_gradcheck(loss: Loss, sizes: tuple[int, int]) -> None:
    x_s, x_t = pair((2, 3, sizes[0], sizes[0]), (2, 3, sizes[1], sizes[1]))
    assert torch.autograd.gradcheck(loss, (x_s.requires_grad_(), x_t.requires_grad_()))


@pytest.mark.parametrize("channels", [(2, 3), (9, 14)], ids=["of channels", "of positions"])
def test_gradcheck_of_both_forms_of_neuron_selectivity(channels: tuple[int, int]) -> None:
    x_s, x_t = pair((2, channels[0], 2, 3), (2, channels[1], 2, 3))
    assert torch.autograd.gradcheck(losses.neuron_selectivity, (x_s.requires_grad_(), x_t.requires_grad_()))


class Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *[leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]])
        return made


@pytest.mark.parametrize(("c_s", "c_t", "side"), [(512, 1024, 3), (8, 16, 24)], ids=["of positions", "of channels"])
def test_neuron_selectivity_makes_nothing_larger_than_the_maps(c_s: int, c_t: int, side: int) -> None:
    x_s, x_t = pair((2, c_s, side, side), (2, c_t, side, side), dtype=torch.float32)
    with Sizes() as seen:
        gradient(losses.neuron_selectivity, x_s, x_t)
    assert seen.largest == x_t.numel()


# Against torchdistill


def dictionary(x: Tensor) -> dict[str, dict[str, Tensor]]:
    return {"layer": {"output": x}}


def test_attention_transfer_is_torchdistills() -> None:
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    where = {"io": "output", "path": "layer"}
    theirs = mid_level.ATLoss({"pair": {"teacher": where, "student": where}}, mode="code")
    x_s, x_t = pair((3, 4, 5, 6), (3, 7, 5, 6))
    torch.testing.assert_close(losses.attention_transfer(x_s, x_t), theirs(dictionary(x_s), dictionary(x_t)))


@pytest.mark.parametrize("side", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("levels", [[4, 2, 1], [3, 1]], ids=str)
def test_hierarchical_context_is_torchdistills(side: int, levels: list[int]) -> None:
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    theirs = mid_level.HierarchicalContextLoss("layer", "output", "layer", "output", output_sizes=levels)
    x_s, x_t = pair((3, 4, side, side))
    expected = theirs({"layer": {"output": (x_s, None)}}, dictionary(x_t))
    torch.testing.assert_close(losses.hierarchical_context(x_s, x_t, levels=levels), expected)


# What they ignore


@every_loss
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_the_order_of_the_batch_does_not_matter(loss: Loss, seed: int) -> None:
    x_s, x_t = pair((5, 3, 4, 4), seed=seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(x_s[order], x_t[order]), loss(x_s, x_t))


@every_loss
def test_a_batch_twice_does_not_change_a_mean(loss: Loss) -> None:
    x_s, x_t = pair()
    torch.testing.assert_close(loss(torch.cat([x_s, x_s]), torch.cat([x_t, x_t])), loss(x_s, x_t))
    single = torch.stack([loss(x_s[n : n + 1], x_t[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(single.mean(), loss(x_s, x_t))


@every_loss
def test_positions_in_step_do_not_matter(loss: Loss) -> None:
    x_s, x_t = pair((2, 3, 4, 4))
    torch.testing.assert_close(loss(x_s.flip(2), x_t.flip(2)), loss(x_s, x_t))
    assert not torch.isclose(loss(x_s.flip(2), x_t), loss(x_s, x_t))


@every_loss_of_any_width
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10), c_t=st.integers(1, 12))
def test_order_sign_number_and_scale_of_channels_are_ignored(loss: Loss, seed: int, scale: float, c_t: int) -> None:
    x_s, x_t = pair((2, 4, 3, 3), (2, c_t, 3, 3), seed=seed)
    value = loss(x_s, x_t)
    torch.testing.assert_close(loss(-scale * x_s[:, [2, 0, 3, 1]], x_t), value)
    torch.testing.assert_close(loss(torch.cat([x_s, -x_s], 1), x_t), value)
    torch.testing.assert_close(loss(x_s, x_t.repeat(1, 3, 1, 1)), value)
    assert value.item() >= -1e-12


def test_neuron_selectivity_ignores_the_scale_of_every_channel() -> None:
    scales = torch.arange(1, 5, dtype=torch.float64).reshape(4, 1, 1)
    for side in (2, 6):  # either form
        x_s, x_t = pair((2, 4, side, side))
        torch.testing.assert_close(losses.neuron_selectivity(x_s * scales, x_t), losses.neuron_selectivity(x_s, x_t))
        assert not torch.isclose(losses.attention_transfer(x_s * scales, x_t), losses.attention_transfer(x_s, x_t))


def test_bounds() -> None:
    one = torch.zeros(1, 1, 3, 3)
    one[..., 0, 0] = 5
    other = one.flip(2)
    assert losses.attention_transfer(one, other).item() == pytest.approx(2 / 9)
    assert losses.neuron_selectivity(one, other).item() == pytest.approx(2)


def test_hierarchical_context_sees_regions_where_positions_disagree() -> None:
    x_t = torch.zeros(1, 1, 8, 8)
    checkers = x_t + torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
    # Each is 1 off at every position; the means of all regions are those of the teacher, or 1 off too.
    total = 1 + 1 / 2 + 1 / 4 + 1 / 8
    assert losses.hierarchical_context(checkers, x_t).item() == pytest.approx(1 / total)
    assert losses.hierarchical_context(x_t + 1, x_t).item() == pytest.approx(1)


@every_loss
def test_the_larger_map_is_averaged(loss: Loss) -> None:
    x_s, x_t = pair((2, 3, 6, 4), (2, 3, 3, 8))
    small_s, small_t = F.avg_pool2d(x_s, (2, 1)), F.avg_pool2d(x_t, (1, 2))
    torch.testing.assert_close(loss(x_s, x_t), loss(small_s, small_t))


@every_loss
def test_maps_of_a_vit_and_a_cnn_meet(loss: Loss) -> None:
    cnn, vit = torch.randn(2, 6, 7, 7), torch.randn(2, 1 + 14 * 14, 6)
    value = loss(pooling.unpooled(cnn), pooling.token_map(1)(vit))
    patches = vit[:, 1:].reshape(2, 14, 14, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(value, loss(cnn, patches))


# Precision


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", [2, 6])
def test_half_precision_is_computed_in_float32(loss: Loss, dtype: torch.dtype, side: int) -> None:
    x_s, x_t = pair((4, 8, side, side), (4, 8, side + 1, side), dtype=dtype)
    value = loss(x_s.requires_grad_(), x_t)
    value.backward()
    assert value.dtype == torch.float32
    assert x_s.grad is not None
    assert x_s.grad.dtype == dtype
    assert value.item() == loss(x_s.detach().float(), x_t.float()).item()


@every_loss
def test_the_wider_of_two_precisions_is_kept(loss: Loss) -> None:
    x_s, x_t = pair()
    assert loss(x_s, x_t.float()).dtype == torch.float64
    assert loss(x_s.bfloat16(), x_t.float()).dtype == torch.float32


@every_loss
@pytest.mark.parametrize("side", [2, 6])
def test_autocast_changes_nothing(loss: Loss, side: int) -> None:
    x_s, x_t = pair((4, 8, side, side), (4, 8, side + 1, side), dtype=torch.float32)
    plain, plain_grad = loss(x_s, x_t), gradient(loss, x_s, x_t)
    start = x_s.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(start, x_t)
    value.backward()
    assert value.item() == plain.item()
    assert start.grad is not None
    assert torch.equal(start.grad, plain_grad)


@pytest.mark.gpu
@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_on_a_gpu(loss: Loss, dtype: torch.dtype) -> None:
    x_s, x_t = (x.cuda() for x in pair((4, 8, 6, 6), (4, 8, 7, 6), dtype=torch.float32))
    plain = loss(x_s, x_t)
    with torch.autocast("cuda", dtype=dtype):
        assert torch.equal(loss(x_s, x_t), plain)


@every_loss
def test_channels_last_memory_is_the_same_map(loss: Loss) -> None:
    x_s, x_t = pair((2, 3, 6, 4), (2, 3, 3, 8))
    last = [x.to(memory_format=torch.channels_last) for x in (x_s, x_t)]
    torch.testing.assert_close(loss(*last), loss(x_s, x_t))


# Edges


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (1, 8, 2, 2), (2, 3, 6, 6)], ids=str)
def test_finite_at_equality(loss: Loss, dtype: torch.dtype, shape: Shape) -> None:
    x_s, _ = pair(shape, dtype=dtype)
    finite_value_and_gradients(loss, x_s, x_s)


@every_loss
@pytest.mark.parametrize("shape", [(2, 8, 2, 2), (2, 3, 6, 6)], ids=str)
def test_value_and_gradient_at_equality_are_zero(loss: Loss, shape: Shape) -> None:
    x, _ = pair(shape)
    assert loss(x, x).item() == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(gradient(loss, x, x), torch.zeros_like(x), atol=1e-12, rtol=0)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("side", [2, 6])
def test_finite_at_constant_features(loss: Loss, dtype: torch.dtype, constant: float, side: int) -> None:
    _, x_t = pair((2, 4, side, side), dtype=dtype)
    flat = torch.full_like(x_t, constant)
    finite_value_and_gradients(loss, flat, x_t)
    finite_value_and_gradients(loss, x_t, flat)
    finite_value_and_gradients(loss, flat, flat)


@every_loss
def test_finite_at_huge_and_tiny_features(loss: Loss) -> None:
    x_s, x_t = pair(dtype=torch.float32)
    finite_value_and_gradients(loss, x_s * 1e6, x_t * 1e6)
    finite_value_and_gradients(loss, x_s + 1e6, x_t - 1e6)
    finite_value_and_gradients(loss, x_s * 1e-8, x_t)
    finite_value_and_gradients(loss, x_s * 1e-30, x_t * 1e-30)


@pytest.mark.parametrize("side", [2, 6])
def test_dead_channels_and_images_get_no_gradient(side: int) -> None:
    x_s, x_t = pair((2, 4, side, side))
    x_s[:, 1] = 0
    assert not gradient(losses.neuron_selectivity, x_s, x_t)[:, 1].any()
    assert gradient(losses.neuron_selectivity, x_s, x_t)[:, 0].any()
    x_s[1] = 0
    for loss in (losses.attention_transfer, losses.neuron_selectivity):
        finite_value_and_gradients(loss, x_s, x_t)
        assert not gradient(loss, x_s, x_t)[1].any()


# Gradient


@every_loss
def test_a_teacher_that_asks_for_no_gradient_gets_none(loss: Loss) -> None:
    x_s, x_t = pair()
    before = x_t.clone()
    loss(x_s.requires_grad_(), x_t).backward()
    assert x_s.grad is not None
    assert x_s.grad.abs().sum() > 0
    assert x_t.grad is None
    assert torch.equal(x_t, before)
    assert not loss(x_s.detach(), x_t).requires_grad


# Misuse


def message(call: Callable[[], object]) -> str:
    with reference.as_a_user(), pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_loss
def test_shapes_and_types_are_checked_before_the_maths(loss: Loss) -> None:
    x = torch.randn(3, 4, 5, 5)
    rule = "expected (n, c_s, h_s, w_s) and (n, c_t, h_t, w_t), of the same images, none empty"
    assert f"student is (2, 4, 5, 5) and teacher (3, 4, 5, 5); {rule}" in message(lambda: loss(x[:2], x))
    assert f"student is (3, 4, 25) and teacher (3, 4, 5, 5); {rule}" in message(lambda: loss(x.flatten(2), x))
    assert f"student is (3, 4, 5, 5) and teacher (3, 4); {rule}" in message(lambda: loss(x, x[..., 0, 0]))
    assert rule in message(lambda: loss(x[:0], x[:0]))
    assert rule in message(lambda: loss(x, x[..., :0]))
    assert "student is torch.int64 and teacher torch.float32" in message(lambda: loss(x.long(), x))


def test_hierarchical_context_needs_a_projector() -> None:
    x = torch.randn(3, 4, 5, 5)
    assert (
        message(lambda: losses.hierarchical_context(x[:, :3], x))
        == "hierarchical_context: student has 3 channels and teacher 4; expected the same after the projector"
    )


def test_knobs_are_checked() -> None:
    x = torch.randn(3, 4, 5, 5)
    for bad in (0.0, -1.0, math.nan):
        for loss in (losses.attention_transfer, losses.neuron_selectivity):
            found = message(functools.partial(loss, x, x, eps=bad))
            assert found == f"{loss.__name__}: eps is {bad}; expected a number above 0"
    for bad in (0.5, math.nan):
        found = message(functools.partial(losses.attention_transfer, x, x, power=bad))
        assert found == f"attention_transfer: power is {bad}; expected at least 1"
    assert (
        message(lambda: losses.hierarchical_context(x, x, levels=(2, 0)))
        == "hierarchical_context: levels are (2, 0); expected numbers of at least 1"
    )
