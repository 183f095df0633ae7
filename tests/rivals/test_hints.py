import pytest
import torch
from torch import Tensor, nn

import reference_rivals as slow
from limbeck import FeatureTerm, losses, projectors
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.rivals import HintTerm, regressor


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def captured(x: Tensor) -> Captured:
    return Captured(x, {"z": x})


@pytest.mark.parametrize("size_s", [(4, 4), (5, 3), (2, 2)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_equals_its_loop_twin(size_s: tuple[int, int], kernel: int) -> None:
    x_s, x_t = draw(3, 2, *size_s), draw(3, 4, 4, 4, seed=1)
    term = HintTerm("z", "z", regressor=nn.Conv2d(2, 4, kernel, padding=kernel // 2).double())
    expected = slow.hint(term.regressor.weight, term.regressor.bias, x_s, x_t)
    assert term(captured(x_s), captured(x_t)).item() == pytest.approx(expected, rel=1e-12)


def test_gradients_are_right_and_reach_student_and_regressor() -> None:
    term = HintTerm("z", "z", regressor=nn.Conv2d(2, 4, 3, padding=1).double())
    x_s, x_t = draw(3, 2, 5, 5).requires_grad_(), draw(3, 4, 3, 3, seed=1)

    def loss(x_s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        held = {"regressor.weight": weight, "regressor.bias": bias}
        return torch.func.functional_call(term, held, (captured(x_s), captured(x_t)))

    assert torch.autograd.gradcheck(loss, (x_s, term.regressor.weight, term.regressor.bias))
    term(captured(x_s), captured(x_t)).backward()
    assert all(p.grad is not None for p in term.parameters())
    assert not term.readings["cosine"].requires_grad


def test_with_single_positions_and_equal_sizes_it_is_a_dense_feature_term() -> None:
    dense = FeatureTerm(
        "z",
        "z",
        projector=projectors.linear(2, 4, bias=True).double(),
        loss=losses.mean_squared_error,
        student_pool=pooling.spatial_positions,
        teacher_pool=pooling.spatial_positions,
    )
    term = HintTerm("z", "z", regressor=nn.Conv2d(2, 4, 1).double())
    with torch.no_grad():
        term.regressor.weight.copy_(dense.projector.weight[:, :, None, None])
        term.regressor.bias.copy_(dense.projector.bias)
    x_s, x_t = draw(3, 2, 4, 4), draw(3, 4, 4, 4, seed=1)
    expected = dense(captured(x_s), captured(x_t)).item()
    assert term(captured(x_s), captured(x_t)).item() == pytest.approx(expected, rel=1e-12)


def test_the_reading_is_one_at_equality_and_free_of_batch_and_scale() -> None:
    term = HintTerm("z", "z", regressor=nn.Identity())
    x, y = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    assert term(captured(x), captured(x)).item() == 0
    assert term.readings["cosine"].item() == pytest.approx(1)
    term(captured(x), captured(y))
    expected = term.readings["cosine"].item()
    term(captured(torch.cat([x, x]) * 3), captured(torch.cat([y, y])))
    assert term.readings["cosine"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2])
def test_bf16_autocast_and_constant_maps(n: int) -> None:
    term = HintTerm("z", "z", regressor=regressor(2, 4, size_s=(4, 4), size_t=(2, 2)))
    for x in (draw(n, 2, 4, 4), torch.zeros(n, 2, 4, 4)):
        x_s = x.bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = term(captured(x_s), captured(draw(n, 4, 2, 2).bfloat16()))
        assert value.dtype == torch.float32
        value.backward()
        assert x_s.grad is not None
        assert x_s.grad.isfinite().all()


def test_errors_name_the_fault() -> None:
    term = HintTerm("z", "z", regressor=nn.Conv2d(2, 4, 1))
    with pytest.raises(UserError, match="expected maps"):
        term(captured(torch.zeros(3, 2)), captured(torch.zeros(3, 4, 2, 2)))
    with pytest.raises(UserError, match="gives 4 channels, and the teacher has 5"):
        term(captured(torch.zeros(3, 2, 2, 2)), captured(torch.zeros(3, 5, 2, 2)))
    for widths, sizes in (((0, 4), (4, 4)), ((2, 4), (4, 0))):
        with pytest.raises(UserError, match="expected at least 1"):
            regressor(*widths, size_s=sizes, size_t=(2, 2))


@pytest.mark.parametrize(
    ("size_s", "size_t", "layer"),
    [
        ((4, 4), (4, 4), nn.Conv2d(3, 5, 1)),
        ((8, 8), (4, 4), nn.Conv2d(3, 5, 3, stride=2, padding=1)),
        ((4, 4), (8, 8), nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1)),
        ((8, 7), (3, 4), nn.Conv2d(3, 5, (6, 4))),
    ],
)
def test_the_regressor_is_the_published_one(
    size_s: tuple[int, int], size_t: tuple[int, int], layer: nn.Conv2d | nn.ConvTranspose2d
) -> None:
    """RepDistiller's ConvReg: a convolution to the teacher's size, batch norm, ReLU; the norm cancels the bias."""
    ours = regressor(3, 5, size_s=size_s, size_t=size_t)
    theirs = nn.Sequential(layer, nn.BatchNorm2d(5), nn.ReLU())
    ours[0].weight.data.copy_(layer.weight.data)
    x = draw(6, 3, *size_s).float()
    y = ours(x)
    assert y.shape == (6, 5, *size_t)
    torch.testing.assert_close(y, theirs(x), rtol=1e-4, atol=1e-5)
    assert (y.min() == 0) & (y > 0).any()


def test_a_smaller_map_by_another_factor_than_two_meets_the_average_of_the_teachers() -> None:
    term = HintTerm("z", "z", regressor=regressor(3, 5, size_s=(2, 2), size_t=(6, 6)))
    assert term(captured(draw(4, 3, 2, 2).float()), captured(draw(4, 5, 6, 6).float())).isfinite()
