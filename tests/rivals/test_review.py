import copy

import pytest
import torch
from torch import Tensor, nn

import reference_rivals as slow
from limbeck import losses
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.rivals import ReviewTerm
from limbeck.rivals.maps import BatchNorm2d, to_common_size
from reference import as_a_user

# The second level has another size in the teacher; the deepest is a pooled vector.
SHAPES_S = [(3, 2, 4, 4), (3, 3, 3, 3), (3, 4)]
SHAPES_T = [(3, 3, 4, 4), (3, 2, 2, 2), (3, 5)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def captured(features: list[Tensor]) -> Captured:
    return Captured(features[0], {str(place): x for place, x in enumerate(features)})


def build(shapes_s: list[tuple[int, ...]] = SHAPES_S, shapes_t: list[tuple[int, ...]] = SHAPES_T) -> ReviewTerm:
    torch.manual_seed(0)
    names = [str(place) for place in range(len(shapes_s))]
    d_s, d_t = [s[1] for s in shapes_s], [s[1] for s in shapes_t]
    term = ReviewTerm(names, names, d_s=d_s, d_t=d_t, loss=losses.mean_squared_error).double()
    with torch.no_grad():
        for part in term.modules():
            if isinstance(part, BatchNorm2d):
                part.weight.copy_(1 + 0.3 * draw(*part.weight.shape, seed=5))
                part.bias.copy_(draw(*part.bias.shape, seed=6))
    return term


def features() -> tuple[list[Tensor], list[Tensor]]:
    return [draw(*s, seed=i) for i, s in enumerate(SHAPES_S)], [draw(*s, seed=9 + i) for i, s in enumerate(SHAPES_T)]


def test_equals_its_loop_twin() -> None:
    term = build()
    x_s, x_t = features()
    value = term(captured(x_s), captured(x_t)).item()
    assert value == pytest.approx(slow.review(term, x_s, x_t), rel=1e-10)
    assert list(term.readings) == ["level1", "level2", "level3"]
    assert sum(reading.item() for reading in term.readings.values()) == pytest.approx(value, rel=1e-12)


def test_gradients_are_right_and_reach_everything_but_the_teacher() -> None:
    term = build()
    x_s, x_t = features()
    x_s = [x.requires_grad_() for x in x_s]
    names = [name for name, _ in term.named_parameters()]

    def loss(*held: Tensor) -> Tensor:
        state = dict(zip(names, held[3:], strict=True))
        return torch.func.functional_call(term, state, (captured(list(held[:3])), captured(x_t)))

    assert torch.autograd.gradcheck(loss, (*x_s, *term.parameters()), fast_mode=True)
    term(captured(x_s), captured(x_t)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in term.parameters())
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in x_s)
    assert not any(reading.requires_grad for reading in term.readings.values())


def test_the_deepest_features_learn_from_every_level() -> None:
    term = build()
    x_s, x_t = features()
    x_s = [x.requires_grad_() for x in x_s]
    only_first = lambda a, b: losses.mean_squared_error(a, b) * (a.shape[2] == 4)  # noqa: E731
    term.loss = only_first
    term(captured(x_s), captured(x_t)).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in x_s)


def test_value_and_readings_are_those_of_the_batch_repeated() -> None:
    term = build()
    x_s, x_t = features()
    value = term(captured(x_s), captured(x_t)).item()
    readings = {name: reading.item() for name, reading in term.readings.items()}
    twice = [[torch.cat([x, x]) for x in side] for side in (x_s, x_t)]
    assert term(captured(twice[0]), captured(twice[1])).item() == pytest.approx(value, rel=1e-10)
    assert {name: reading.item() for name, reading in term.readings.items()} == pytest.approx(readings, rel=1e-10)


def test_bf16_autocast_and_constant_features() -> None:
    term = build().float()
    for scale in (1.0, 0.0):
        x_s, x_t = features()
        x_s = [(x * scale).bfloat16().requires_grad_() for x in x_s]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = term(captured(x_s), captured([x.bfloat16() for x in x_t]))
        assert value.dtype == torch.float32
        value.backward()
        assert value.isfinite()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in x_s)


def test_its_batch_norm_is_the_frameworks_in_training_and_stays_so_in_evaluation() -> None:
    x = draw(4, 3, 2, 5) * 3 + 2
    ours, theirs = BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
            norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    expected = theirs(x)
    assert torch.allclose(ours(x), expected, rtol=1e-12)
    assert torch.equal(ours.eval()(x), ours.train()(x))
    assert not list(ours.buffers())
    with pytest.raises(UserError, match="got 1 value a channel"):
        ours(x[:1, :, :1, :1])


def test_maps_are_brought_to_the_smaller_size() -> None:
    x_s, x_t = draw(2, 3, 5, 4), draw(2, 4, 3, 6, seed=1)
    a, b = to_common_size(x_s, x_t)
    slow_a, slow_b = slow.to_common_size(x_s, x_t)
    assert torch.allclose(a, torch.tensor(slow_a, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(b, torch.tensor(slow_b, dtype=torch.float64), rtol=1e-12)
    same = to_common_size(x_s, x_s)
    assert same[0] is x_s
    assert same[1] is x_s


def test_errors_name_the_fault() -> None:
    with pytest.raises(UserError, match="equally many"):
        ReviewTerm(["a"], ["a", "b"], d_s=[3], d_t=[3, 3], loss=losses.mean_squared_error)
    with pytest.raises(UserError, match="at least 1"):
        ReviewTerm(["a"], ["a"], d_s=[3], d_t=[3], loss=losses.mean_squared_error, width=0)
    term = build()
    x_s, x_t = features()
    for wrong in (draw(3, 7, 4, 4), draw(3, 4, 2)):
        with as_a_user(), pytest.raises(UserError, match=r'"0" gave .*; expected \(n, '):
            term(captured([wrong, *x_s[1:]]), captured(x_t))
    with as_a_user(), pytest.raises(UserError, match=r"expected \(n, 3\)"):
        term(captured(x_s), captured([draw(3, 2, 4, 4), *x_t[1:]]))
    with pytest.raises(UserError, match="at least 2"):
        term(captured([x[:1] for x in x_s]), captured([x[:1] for x in x_t]))


def test_the_default_width_is_that_of_the_deepest_tap_and_512_at_most() -> None:
    def width(d_s: list[int], asked: int | None = None) -> int:
        names = [str(place) for place in range(len(d_s))]
        term = ReviewTerm(names, names, d_s=d_s, d_t=d_s, loss=losses.mean_squared_error, width=asked)
        return term.fusions[0].reduce[0].out_channels

    assert (width([8, 16]), width([8, 600]), width([8, 16], 5)) == (16, 512, 5)


def test_equals_torchdistill() -> None:
    wrapper = pytest.importorskip("torchdistill.models.wrapper")
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    shapes_s, shapes_t = [(4, 2, 8, 8), (4, 3, 4, 4), (4, 4)], [(4, 3, 8, 8), (4, 2, 4, 4), (4, 5)]

    def hierarchical(a: Tensor, b: Tensor) -> Tensor:
        criterion = mid_level.HierarchicalContextLoss("s", "output", "t", "output")
        return criterion({"s": {"output": (a, None)}}, {"t": {"output": b}})

    term = build(shapes_s, shapes_t)
    term.loss = hierarchical
    x_s, x_t = [draw(*s) for s in shapes_s], [draw(*s, seed=1) for s in shapes_t]
    expected, residual = 0.0, None
    for level in (2, 1, 0):
        ours = term.fusions[level]
        theirs = wrapper.AttentionBasedFusion(shapes_s[level][1], 4, shapes_t[level][1], level < 2).double()
        parts = [(theirs.conv1, ours.reduce), (theirs.conv2, ours.expand)]
        with torch.no_grad():
            for mine, source in parts:
                mine[0].weight.copy_(source[0].weight)
                mine[1].weight.copy_(source[1].weight)
                mine[1].bias.copy_(source[1].bias)
        if ours.attention is not None:
            theirs.attention_conv[0] = copy.deepcopy(ours.attention)
        x = x_s[level] if x_s[level].ndim == 4 else x_s[level][:, :, None, None]
        t = x_t[level] if x_t[level].ndim == 4 else x_t[level][:, :, None, None]
        out, residual = theirs(x, residual, x.shape[-1])
        expected += hierarchical(out, t).item()
    assert term(captured(x_s), captured(x_t)).item() == pytest.approx(expected, rel=1e-10)
