import math

import pytest
import torch
from torch import Tensor

import reference_rivals as slow
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.rivals import VIDTerm
from reference import as_a_user

MAPS_S, MAPS_T = [(4, 3, 5, 5), (4, 4, 2, 2)], [(4, 2, 4, 3), (4, 6, 3, 3)]
KINDS = {
    "maps": (MAPS_S, MAPS_T),
    "vectors": ([(4, 3)], [(4, 5)]),
    "tokens": ([(4, 3, 2)], [(4, 3, 6)]),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def width(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


def captured(features: list[Tensor]) -> Captured:
    return Captured(features[0], {str(place): x for place, x in enumerate(features)})


def build(shapes_s: list[tuple[int, ...]], shapes_t: list[tuple[int, ...]], hidden: int | None = None) -> VIDTerm:
    torch.manual_seed(0)
    names = [str(place) for place in range(len(shapes_s))]
    d_s, d_t = [width(s) for s in shapes_s], [width(s) for s in shapes_t]
    term = VIDTerm(names, names, d_s=d_s, d_t=d_t, hidden=hidden).double()
    with torch.no_grad():
        for scale in term.scales:
            scale.copy_(draw(len(scale), seed=9))
    return term


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [None, 7])
def test_equals_its_loop_twin(kind: str, hidden: int | None) -> None:
    shapes_s, shapes_t = KINDS[kind]
    term = build(shapes_s, shapes_t, hidden)
    x_s, x_t = [draw(*s) for s in shapes_s], [draw(*s, seed=1) for s in shapes_t]
    assert term(captured(x_s), captured(x_t)).item() == pytest.approx(slow.vid(term, x_s, x_t), rel=1e-12)


def test_gradients_are_right_and_reach_everything_but_the_teacher() -> None:
    term = build(MAPS_S, MAPS_T)
    x_s, x_t = [draw(*s).requires_grad_() for s in MAPS_S], [draw(*s, seed=1) for s in MAPS_T]
    names = [name for name, _ in term.named_parameters()]

    def loss(a: Tensor, b: Tensor, *held: Tensor) -> Tensor:
        parameters = dict(zip(names, held, strict=True))
        return torch.func.functional_call(term, parameters, (captured([a, b]), captured(x_t)))

    assert torch.autograd.gradcheck(loss, (*x_s, *term.parameters()))
    term(captured(x_s), captured(x_t)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())
    assert all(not reading.requires_grad for reading in term.readings.values())


def test_the_best_variance_is_the_mean_squared_error_of_the_channel() -> None:
    term = build([(8, 3)], [(8, 2)])
    x_s, x_t = [draw(8, 3)], [draw(8, 2, seed=1)]
    error = (term.regressors[0](x_s[0]) - x_t[0]).square().mean(0).detach()
    with torch.no_grad():
        term.scales[0].copy_(torch.log(torch.expm1(error - term.eps)))
    value = term(captured(x_s), captured(x_t))
    (gradient,) = torch.autograd.grad(value, term.scales[0])
    assert gradient.abs().max() < 1e-12
    assert value.item() == pytest.approx(float((0.5 * (1 + error.log())).mean()), rel=1e-12)


def test_readings_and_value_do_not_depend_on_batch_size_or_width() -> None:
    torch.manual_seed(0)
    term, wide = VIDTerm(["0"], ["0"], d_s=[3], d_t=[2], hidden=4), VIDTerm(["0"], ["0"], d_s=[3], d_t=[4], hidden=4)
    wide.regressors[0].load_state_dict(
        term.regressors[0].state_dict() | {"4.weight": term.regressors[0][4].weight.detach().repeat(2, 1)}
    )
    x_s, x_t = draw(6, 3, 2, 2).float(), draw(6, 2, 2, 2, seed=1).float()
    value = term(captured([x_s]), captured([x_t])).item()
    expected = {name: reading.item() for name, reading in term.readings.items()}
    assert set(expected) == {"error", "variance"}
    assert expected["variance"] == pytest.approx(5.0)
    doubled = term(captured([x_s.repeat(2, 1, 1, 1)]), captured([x_t.repeat(2, 1, 1, 1)])).item()
    assert {name: reading.item() for name, reading in term.readings.items()} == pytest.approx(expected, rel=1e-5)
    widened = wide(captured([x_s]), captured([x_t.repeat(1, 2, 1, 1)])).item()
    assert {name: reading.item() for name, reading in wide.readings.items()} == pytest.approx(expected, rel=1e-5)
    assert (doubled, widened) == pytest.approx((value, value), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_bf16_autocast_equality_and_constant_features(batch: int) -> None:
    torch.manual_seed(0)
    term = VIDTerm(["0"], ["0"], d_s=[3], d_t=[5])
    for x, x_t in [
        (draw(batch, 3, 2, 2), draw(batch, 5, 2, 2, seed=1)),
        (torch.zeros(batch, 3, 2, 2), torch.zeros(batch, 5, 2, 2)),  # the prediction is exact
        (torch.full((batch, 3, 2, 2), 3e4), torch.ones(batch, 5, 2, 2)),
    ]:
        x_s = x.bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = term(captured([x_s]), captured([x_t.bfloat16()]))
        assert value.dtype == torch.float32
        value.backward()
        assert value.isfinite()
        assert x_s.grad is not None
        assert x_s.grad.isfinite().all()


def test_errors_name_the_fault() -> None:
    with pytest.raises(UserError, match="equally many"):
        VIDTerm(["a", "b"], ["a"], d_s=[3, 3], d_t=[3])
    with pytest.raises(UserError, match="equally many"):
        VIDTerm([], [], d_s=[], d_t=[])
    with pytest.raises(UserError, match="at least 1"):
        VIDTerm(["a"], ["a"], d_s=[3], d_t=[0])
    with pytest.raises(UserError, match="variance > eps"):
        VIDTerm(["a"], ["a"], d_s=[3], d_t=[3], variance=0.0)
    term = VIDTerm(["0"], ["0"], d_s=[3], d_t=[5])
    for x_s, x_t in [
        (draw(4, 2), draw(4, 5)),
        (draw(4, 3), draw(4, 4)),
        (draw(4, 7, 3), draw(4, 8, 5)),
        (draw(4, 3, 2, 2), draw(4, 5)),
    ]:
        with as_a_user(), pytest.raises(UserError, match="widths 3 and 5"):
            term(captured([x_s.float()]), captured([x_t.float()]))


def test_equals_torchdistill() -> None:
    wrapper = pytest.importorskip("torchdistill.models.wrapper")
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    term = build([(4, 3, 5, 5)], [(4, 6, 5, 5)], hidden=7)
    theirs = wrapper.Regressor4VID(3, 7, 6, eps=1e-5, init_pred_var=5.0).double()
    assert VIDTerm(["0"], ["0"], d_s=[3], d_t=[6]).scales[0].tolist() == pytest.approx(theirs.soft_plus_param.tolist())
    with torch.no_grad():
        for place in (0, 2, 4):
            theirs.regressor[place].weight.copy_(term.regressors[0][place].weight[:, :, None, None])
        theirs.soft_plus_param.copy_(term.scales[0])
    x_s, x_t = draw(4, 3, 5, 5), draw(4, 6, 5, 5, seed=1)
    pair = {"p": {"student": {"path": "s", "io": "output"}, "teacher": {"path": "t", "io": "output"}}}
    expected = mid_level.VIDLoss(pair)({"s": {"output": theirs(x_s)}}, {"t": {"output": x_t}}).item()
    assert term(captured([x_s]), captured([x_t])).item() == pytest.approx(expected, rel=1e-12)
    assert not math.isclose(expected, 0.0, abs_tol=1e-3)
