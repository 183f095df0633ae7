"""The moment form against the direct form, which projects and normalizes every row."""

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from limbeck import losses, norms
from limbeck.errors import UserError
from limbeck.terms import moments

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of z_s, z_t and the weight


def draw(*shape: int, seed: int = 0, mean: float = 0.0) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x + mean * torch.randn(shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 99))


def by_moments(z_s: Tensor, z_t: Tensor, weight: Tensor, *, alpha: float = 4.0) -> Tensor:
    return losses.log_correlation(moments.correlation(moments.moments(z_s, z_t), weight), alpha=alpha)


def directly(z_s: Tensor, z_t: Tensor, weight: Tensor, *, alpha: float = 4.0) -> Tensor:
    d = weight.shape[0]
    return losses.log_correlation(
        losses.correlation(norms.BatchNorm(d)(z_s @ weight.T), norms.BatchNorm(d)(z_t)), alpha=alpha
    )


def squared_by_moments(z_s: Tensor, z_t: Tensor, weight: Tensor) -> Tensor:
    return moments.mean_squared_error(moments.moments(z_s, z_t), weight)[0]


def squared_directly(z_s: Tensor, z_t: Tensor, weight: Tensor) -> Tensor:
    d = weight.shape[0]
    return losses.mean_squared_error(norms.BatchNorm(d)(z_s @ weight.T), norms.BatchNorm(d)(z_t))


BOTH: dict[str, tuple[Loss, Loss]] = {
    "log_correlation": (by_moments, directly),
    "log_correlation 2": (functools.partial(by_moments, alpha=2.0), functools.partial(directly, alpha=2.0)),
    "mean_squared_error": (squared_by_moments, squared_directly),
}


def differences(fast: Loss, slow: Loss, z_s: Tensor, z_t: Tensor, weight: Tensor) -> list[float]:
    """Of the value, and of each gradient relative to its largest element; the slow form in float64."""
    mine = [x.clone().requires_grad_() for x in (z_s, z_t, weight)]
    theirs = [x.double().requires_grad_() for x in (z_s.clone(), z_t.clone(), weight.clone())]
    value, expected = fast(*mine), slow(*theirs)
    value.backward()
    expected.backward()
    found = [abs(value.item() - expected.item())]
    for x, y in zip(mine, theirs, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert x.grad.dtype == x.dtype
        found.append(((x.grad.double() - y.grad).abs().max() / y.grad.abs().max().clamp(min=1e-12)).item())
    return found


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("n", "d_s", "d_t"), [(2, 3, 5), (7, 3, 5), (50, 8, 4), (3000, 6, 9)])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_equals_the_direct_form_in_float64(name: str, n: int, d_s: int, d_t: int, mean: float) -> None:
    z_s, z_t, weight = draw(n, d_s, mean=mean), draw(n, d_t, seed=1, mean=mean), draw(d_t, d_s, seed=2)
    assert max(differences(*BOTH[name], z_s, z_t, weight)) < 1e-10


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("n", [64, 5000])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_equals_the_direct_form_in_float32(name: str, n: int, mean: float) -> None:
    """The means a thousand times the deviation: plain sums of squares would be all rounding."""
    z_s, z_t = draw(n, 32, mean=mean).float(), draw(n, 48, seed=1, mean=mean).float()
    assert max(differences(*BOTH[name], z_s, z_t, draw(48, 32, seed=2).float())) < 1e-5


def test_bf16_features_are_multiplied_in_float32() -> None:
    z_s, z_t = draw(500, 16).bfloat16(), draw(500, 24, seed=1).bfloat16()
    m = moments.moments(z_s, z_t)
    assert all(x.dtype == torch.float32 for x in m[1:])
    found = differences(by_moments, directly, z_s, z_t, draw(24, 16, seed=2).float())
    assert found[0] < 1e-5
    assert found[3] < 1e-5  # the weight's gradient
    assert max(found[1:3]) < 2e-2  # the features' are handed back in bf16


def test_autocast_does_not_lower_the_products() -> None:
    z_s, z_t = draw(500, 16).float(), draw(500, 24, seed=1).float()
    expected = moments.moments(z_s, z_t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = moments.moments(z_s, z_t)
    for x, y in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("value", [0.0, 1.0, 12345.678])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_channels_are_finite_and_count_as_uncorrelated(name: str, value: float, dtype: torch.dtype) -> None:
    z_s, z_t = draw(40, 6).to(dtype), draw(40, 5, seed=1).to(dtype)
    z_s[:, 0] = value
    z_t[:, :2] = value
    weight = draw(5, 6, seed=2)
    weight[3] = 0
    weight[3, 0] = 1  # a channel that sees the constant alone
    weight = weight.to(torch.promote_types(dtype, torch.float32))
    c = moments.correlation(moments.moments(z_s, z_t), weight)
    assert c[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    z_s, weight = z_s.requires_grad_(), weight.requires_grad_()
    BOTH[name][0](z_s, z_t, weight).backward()
    assert z_s.grad is not None
    assert weight.grad is not None
    assert z_s.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_the_moments_are_those_of_plain_loops() -> None:
    z_s, z_t = draw(4, 3, 2), draw(4, 3, 5, seed=1)
    m = moments.moments(z_s, z_t)
    rows_s, rows_t = reference.rows(z_s), reference.rows(z_t)
    n = len(rows_s)
    mean_s = [sum(row[i] for row in rows_s) / n for i in range(2)]
    mean_t = [sum(row[j] for row in rows_t) / n for j in range(5)]
    assert m.count == 12
    assert m.mean_s.tolist() == pytest.approx(mean_s)
    assert m.mean_t.tolist() == pytest.approx(mean_t)
    for j in range(5):
        assert m.var_t[j].item() == pytest.approx(sum((row[j] - mean_t[j]) ** 2 for row in rows_t) / n)
    for i in range(2):
        for k in range(2):
            expected = sum((row[i] - mean_s[i]) * (row[k] - mean_s[k]) for row in rows_s) / n
            assert m.cov_s[i, k].item() == pytest.approx(expected)
        for j in range(5):
            both = zip(rows_s, rows_t, strict=True)
            expected = sum((s[i] - mean_s[i]) * (t[j] - mean_t[j]) for s, t in both) / n
            assert m.cov_st[i, j].item() == pytest.approx(expected)


def test_without_the_cross_covariance_the_rest_is_the_same() -> None:
    z_s, z_t = draw(30, 4), draw(30, 6, seed=1)
    full, half = moments.moments(z_s, z_t), moments.moments(z_s, z_t, cross=False)
    assert half.cov_st.abs().max() == 0
    for name in ("mean_s", "mean_t", "cov_s", "var_t"):
        assert torch.equal(getattr(full, name), getattr(half, name))


@pytest.mark.parametrize("cross", [True, False])
def test_gradcheck(cross: bool) -> None:
    z_s, z_t, weight = draw(5, 2, 3).requires_grad_(), draw(5, 2, 4, seed=1).requires_grad_(), draw(4, 3, seed=2)

    def everything(z_s: Tensor, z_t: Tensor) -> tuple[Tensor, ...]:
        return moments.moments(z_s, z_t, cross=cross)[1:]

    assert torch.autograd.gradcheck(everything, (z_s, z_t))
    if cross:
        assert torch.autograd.gradcheck(by_moments, (z_s, z_t, weight.requires_grad_()))


@pytest.mark.parametrize("step", [1, 3, 4, 100])
def test_the_size_of_blocks_changes_nothing(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z_s, z_t, weight = draw(25, 4, 3, mean=5.0), draw(25, 4, 6, seed=1), draw(6, 3, seed=2)
    monkeypatch.setattr(moments, "BLOCK_ROWS", step)
    monkeypatch.setattr(moments, "block_rows", lambda device, width: step)
    assert max(differences(by_moments, directly, z_s, z_t, weight)) < 1e-10


def test_blocks_are_larger_for_narrow_features_and_on_a_gpu() -> None:
    """A map of ResNet50's first stage, 256 images of 56 x 56: 16 blocks in place of one for each image."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert moments.block_rows(cpu, 64 + 256) == moments.BLOCK_ROWS < moments.block_rows(cpu, 16 + 32)
    step = moments.block_rows(gpu, 64 + 256)
    assert len(list(moments.blocks(256, 56 * 56, least=step))) == 16
    assert step * (64 + 256) * 4 <= 64 * 2**20


def test_maps_in_any_layout_of_memory() -> None:
    maps_s, maps_t = draw(6, 5, 4, 3), draw(6, 7, 4, 3, seed=1)
    weight = draw(7, 5, seed=2)
    expected = None
    for layout in (torch.contiguous_format, torch.channels_last):
        x = maps_s.clone(memory_format=layout).requires_grad_()
        y = maps_t.to(memory_format=layout)
        by_moments(x.flatten(2).transpose(1, 2), y.flatten(2).transpose(1, 2), weight).backward()
        assert x.grad is not None
        expected = x.grad if expected is None else expected
        torch.testing.assert_close(x.grad, expected)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.1, 10), shift=st.floats(-100, 100), seed=st.integers(0, 99), n=st.integers(8, 40))
def test_it_ignores_scale_and_offset_of_every_channel(scale: float, shift: float, seed: int, n: int) -> None:
    z_s, z_t, weight = draw(n, 4, seed=seed), draw(n, 5, seed=seed + 1), draw(5, 4, seed=seed + 2)
    c = moments.correlation(moments.moments(z_s, z_t), weight, eps_s=1e-12, eps_t=1e-12)
    moved = moments.moments(z_s + shift, z_t * scale - shift)
    torch.testing.assert_close(
        moments.correlation(moved, weight * scale, eps_s=1e-12, eps_t=1e-12), c, rtol=1e-6, atol=1e-8
    )
    assert c.abs().max() <= 1 + 1e-12


def test_the_gradient_does_not_move_along_a_column() -> None:
    """Under batch norm the scale of a column of W is free: the gradient is orthogonal to it, up to eps."""
    z_s, z_t, weight = draw(60, 4), draw(60, 5, seed=1), draw(5, 4, seed=2).requires_grad_()
    c = moments.correlation(moments.moments(z_s, z_t), weight, eps_s=1e-12, eps_t=1e-12)
    losses.log_correlation(c).backward()
    assert weight.grad is not None
    assert (weight.detach() * weight.grad).sum(1).abs().max() < 1e-9
    assert weight.grad.abs().max() > 1e-3


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="rows in the batch: 1"):
        moments.moments(draw(1, 3), draw(1, 4))
    with reference.as_a_user():
        with pytest.raises(UserError, match="expected equal rows"):
            moments.moments(draw(4, 3), draw(5, 4))
        with pytest.raises(UserError, match="expected floating point"):
            moments.moments(draw(4, 3), torch.ones(4, 4, dtype=torch.int64))
