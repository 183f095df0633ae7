"""Losses in blocks of rows against the same losses of all rows at once."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import losses, norms
from limbeck.terms import chunked as subject
from limbeck.terms.chunked import Combine, chunked

D_S, D_T = 4, 6
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Combine]] = {
    "log_sum": (losses.log_sum, Combine.LOG_SUM),
    "log_sum 1.5": (functools.partial(losses.log_sum, alpha=1.5), Combine.LOG_SUM),
    "smooth_l1": (losses.smooth_l1, Combine.MEAN),
    "mean_squared_error": (losses.mean_squared_error, Combine.MEAN),
    "squared_error": (losses.squared_error, Combine.SUM),
    "cosine": (losses.cosine, Combine.MEAN),
}
NORMS: dict[str, tuple[nn.Module, nn.Module]] = {
    "none": (nn.Identity(), nn.Identity()),
    "batch": (norms.BatchNorm(D_T), norms.BatchNorm(D_T)),
    "batch, student only": (norms.BatchNorm(D_T), nn.Identity()),
    "teacher only, layer": (nn.Identity(), norms.LayerNorm(D_T)),
    "L2 and group": (norms.L2(), norms.GroupNorm(2, D_T)),
    "teacher only, batch": (nn.Identity(), norms.BatchNorm(D_T)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "BLOCK_ELEMENTS_CPU", 5 * D_T)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(23,), (8, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_loss_of_all_rows(name: str, norm: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    loss, combine = LOSSES[name]
    student_norm, teacher_norm = NORMS[norm]
    z_s, z_t, weight = draw(*shape, D_S), 2 * draw(*shape, D_T, seed=1) + 3, draw(D_T, D_S, seed=2)
    biased = not isinstance(student_norm, norms.BatchNorm)
    held = [z_s, weight, *([draw(D_T, seed=3)] if biased else [])]
    mine = [x.to(dtype).requires_grad_() for x in held]
    value, product, _ = chunked(
        loss,
        combine,
        mine[0],
        z_t.to(dtype),
        mine[1],
        bias=mine[2] if biased else None,
        student_norm=student_norm,
        teacher_norm=teacher_norm,
    )
    (3 * value).backward()
    theirs = [x.detach().double().requires_grad_() for x in mine]
    a = student_norm(theirs[0] @ theirs[1].T + (theirs[2] if biased else 0))
    t = teacher_norm(z_t.to(dtype).double())
    expected = loss(a, t)
    (3 * expected).backward()
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    assert value.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    assert product.item() == pytest.approx((a * t).mean().item(), rel=1e-4, abs=1e-5)
    assert not product.requires_grad
    for x, y in zip(mine, theirs, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert (x.grad.double() - y.grad).abs().max() <= tolerance * y.grad.abs().max()


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    loss, combine = LOSSES[name]
    z_t = draw(9, D_T, seed=1)
    norm: dict[str, Any] = {"student_norm": norms.BatchNorm(D_T), "teacher_norm": norms.BatchNorm(D_T)}

    def value(z_s: Tensor, weight: Tensor) -> Tensor:
        return chunked(loss, combine, z_s, z_t, weight, **norm).loss

    assert torch.autograd.gradcheck(value, (draw(9, D_S).requires_grad_(), draw(D_T, D_S, seed=2).requires_grad_()))


def test_blocks_of_very_different_size_of_error() -> None:
    """One block's LogSum is e^80 times another's: neither overflows, and the shares are right."""
    z_s, weight = draw(20, D_S, dtype=torch.float32), draw(D_T, D_S, seed=2, dtype=torch.float32)
    z_t = draw(20, D_T, seed=1, dtype=torch.float32)
    z_t[10:] *= 1e9
    nothing: dict[str, Any] = {"student_norm": nn.Identity(), "teacher_norm": nn.Identity()}
    for rows in (z_t, z_t.flip(0)):
        x, w = z_s.clone().requires_grad_(), weight.clone().requires_grad_()
        value = chunked(losses.log_sum, Combine.LOG_SUM, x, rows, w, **nothing).loss
        value.backward()
        y, v = z_s.clone().requires_grad_(), weight.clone().requires_grad_()
        losses.log_sum(y @ v.T, rows).backward()
        assert value.isfinite()
        for mine, theirs in ((x.grad, y.grad), (w.grad, v.grad)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-12)


def test_bf16_features() -> None:
    z_s = draw(30, D_S).bfloat16().requires_grad_()
    weight = draw(D_T, D_S, seed=2, dtype=torch.float32)
    norm: dict[str, Any] = {"student_norm": norms.BatchNorm(D_T), "teacher_norm": norms.BatchNorm(D_T)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = chunked(losses.log_sum, Combine.LOG_SUM, z_s, draw(30, D_T, seed=1).bfloat16(), weight, **norm).loss
    assert value.dtype == torch.float32
    value.backward()
    assert z_s.grad is not None
    assert z_s.grad.dtype == torch.bfloat16
    assert z_s.grad.isfinite().all()
