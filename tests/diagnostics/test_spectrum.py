import functools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import normalize
from torch import Tensor, nn

import reference
from limbeck import diagnostics, norms, projectors
from limbeck.errors import UserError

torch.set_num_threads(1)

close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
RANKS = diagnostics.stable_rank, diagnostics.participation_ratio, diagnostics.effective_rank


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(s: Tensor, d_s: int, d_t: int) -> Tensor:
    """A matrix with these singular values, turned at random on both sides."""
    left, right = torch.linalg.qr(noise(d_s, len(s)))[0], torch.linalg.qr(noise(d_t, len(s), seed=1))[0]
    return left * s @ right.T


# Singular values


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 4), (3, 1)], ids=str)
def test_singular_values_are_those_of_scipy(shape: tuple[int, int]) -> None:
    w = noise(*shape)
    close(diagnostics.singular_values(w), torch.from_numpy(scipy.linalg.svdvals(w.numpy())))
    close(diagnostics.singular_values(w.float()).double(), diagnostics.singular_values(w), rtol=1e-6)


def test_singular_values_are_the_ones_planted() -> None:
    s = torch.tensor([5.0, 3.0, 3.0, 0.5, 1e-6], dtype=torch.float64)
    close(diagnostics.singular_values(planted(s, 8, 12)), torch.cat([s, s.new_zeros(3)]))


def test_weak_directions_of_a_float32_matrix_keep_their_digits() -> None:
    """Stored in float32, down to 1e-9 of the greatest: off by half and more where the decomposition is in float32."""
    w = planted(torch.logspace(0, -10, 30, dtype=torch.float64), 30, 40).float()
    exact = torch.from_numpy(scipy.linalg.svdvals(w.double().numpy()))
    found = diagnostics.singular_values(w)
    assert found.dtype == torch.float32
    close(found.double(), exact, rtol=1e-6, atol=0)
    assert ((torch.linalg.svdvals(w) / exact - 1).abs() > 0.5).any()


def test_lost_directions_are_zero_and_not_noise() -> None:
    """Copied and dead channels of the student: a rank of 5 of 8, in any precision."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        w = noise(8, 20).to(dtype)
        w[5], w[6], w[7] = w[0], -2 * w[1], 0
        s = diagnostics.singular_values(w)
        assert (s > 0).tolist() == [True] * 5 + [False] * 3
        assert diagnostics.condition(s) == math.inf
        assert diagnostics.singular_values(w * 1e-30)[4] > 0  # small is not lost


def test_half_precision_is_computed_as_float32() -> None:
    w = noise(6, 9).bfloat16()
    for function in (diagnostics.singular_values, diagnostics.column_normalized):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = function(w)
        assert found.dtype == torch.float32
        assert torch.equal(found, function(w.float()))


# Columns of length 1


def test_column_normalized_is_that_of_scikit_learn() -> None:
    w = noise(5, 7)
    w[:, 2] = 0
    close(diagnostics.column_normalized(w), torch.from_numpy(normalize(w.numpy(), axis=0)))


def test_a_column_that_has_all_but_decayed_is_still_a_direction() -> None:
    w = torch.tensor([[3e-30, 0.0, 3e30], [4e-30, 0.0, 4e30]])
    close(diagnostics.column_normalized(w), torch.tensor([[0.6, 0.0, 0.6], [0.8, 0.0, 0.8]]), rtol=1e-6)


def test_the_normalized_spectrum_ignores_what_a_batch_norm_ignores() -> None:
    """Columns of other lengths: other singular values of W, the same outputs, the same normalized spectrum."""
    w, z = noise(6, 10), noise(50, 6, seed=2)
    scaled = w * torch.logspace(-2, 1, 10, dtype=torch.float64)
    norm = norms.BatchNorm(10, eps=1e-12)
    close(norm(z @ scaled), norm(z @ w), atol=1e-6)
    before, after = (diagnostics.singular_values(each) for each in (w, scaled))
    assert diagnostics.stable_rank(after) < 0.6 * diagnostics.stable_rank(before)
    assert diagnostics.share_below(after, before) >= 0.5
    normalized = [diagnostics.singular_values(diagnostics.column_normalized(each)) for each in (w, scaled)]
    close(*normalized)


# Ranks


def test_ranks_equal_other_ways_to_compute_them() -> None:
    """By norms, traces and scipy's entropy."""
    w = noise(7, 11)
    s, matrix = diagnostics.singular_values(w), w.numpy()
    gram = matrix @ matrix.T
    close(diagnostics.stable_rank(s).item(), np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2)
    close(diagnostics.participation_ratio(s).item(), np.trace(gram) ** 2 / np.trace(gram @ gram))
    entropy = scipy.stats.entropy(scipy.linalg.svdvals(matrix))  # of the values divided by their sum
    close(diagnostics.effective_rank(s).item(), float(np.exp(entropy)))
    close(diagnostics.condition(s).item(), float(np.linalg.cond(matrix)))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_ranks_of_k_equal_directions_are_k(rank: Callable[[Tensor], Tensor], k: int) -> None:
    w = planted(torch.full((k,), 0.7, dtype=torch.float64), 8, 12)
    close(rank(diagnostics.singular_values(w)).item(), float(k))


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12),
    zeros=st.integers(0, 3),
    exponent=st.integers(-30, 30),
)
def test_ranks_are_ordered_and_ignore_scale(values: list[float], zeros: int, exponent: int) -> None:
    s = torch.tensor(values + [0.0] * zeros, dtype=torch.float64)
    ranks = [rank(s).item() for rank in RANKS]
    assert 1 - 1e-9 <= ranks[0] <= ranks[1] * (1 + 1e-9) <= ranks[2] * (1 + 1e-9) ** 2 <= len(values) * (1 + 1e-9) ** 3
    scaled = (s * 10.0**exponent).float()  # fourth powers of these are not in float32
    assert [rank(scaled).item() for rank in RANKS] == pytest.approx(ranks, rel=1e-4)
    assert diagnostics.condition(scaled).item() == (
        math.inf if zeros else pytest.approx(max(values) / min(values), rel=1e-4)
    )


def test_a_projector_that_is_zero_has_no_rank() -> None:
    s = diagnostics.singular_values(torch.zeros(3, 5))
    assert s.tolist() == [0, 0, 0]
    assert [rank(s).item() for rank in RANKS] == [0, 0, 0]
    assert diagnostics.condition(s) == math.inf
    assert diagnostics.share_small(s) == 1
    assert diagnostics.share_below(s, s) == 0
    assert torch.equal(diagnostics.column_normalized(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_shares_are_counted() -> None:
    s, reference_ = torch.tensor([4.0, 2.0, 1.0, 0.4, 0.3]), torch.tensor([3.0, 2.0, 1.5, 0.3, 0.5])
    assert diagnostics.share_below(s, reference_).item() == pytest.approx(
        sum(a < b for a, b in zip(s.tolist(), reference_.tolist(), strict=True)) / 5
    )
    assert diagnostics.share_below(2 * s, reference_) == 0  # a larger norm is all it takes
    assert diagnostics.share_small(s).item() == pytest.approx(2 / 5)
    assert diagnostics.share_small(s, relative=0.09).item() == pytest.approx(1 / 5)
    assert diagnostics.share_small(1e-20 * s).item() == pytest.approx(2 / 5)


# Projectors without one matrix

PROJECTORS: dict[str, Callable[[], nn.Module]] = {
    "linear with a bias": lambda: projectors.linear(5, 7, bias=True),
    "mlp": lambda: projectors.mlp(5, 7, hidden=6, bias=True),
    "deep mlp, narrowing": lambda: projectors.mlp(5, 3, hidden=6, depth=3, activation=nn.GELU),
    "low rank": lambda: projectors.low_rank(5, 7, rank=2),
    "orthogonal": lambda: projectors.orthogonal(5, 7),
    "ensemble": lambda: projectors.ensemble(5, 7),
    "identity": projectors.identity,
}


@pytest.mark.parametrize("name", PROJECTORS)
def test_local_jacobians_are_finite_differences(name: str) -> None:
    projector, x, h = PROJECTORS[name]().double(), noise(4, 5), 1e-6
    found = diagnostics.local_jacobians(projector, x)
    with torch.no_grad():
        for n, row in enumerate(x):
            for i in range(5):
                step = torch.zeros(1, 5, dtype=torch.float64)
                step[0, i] = h
                slope = (projector(row[None] + step) - projector(row[None] - step)) / (2 * h)
                close(found[n, i], slope[0], rtol=1e-6, atol=1e-8)


def test_local_jacobians_of_linear_projectors_are_w() -> None:
    layer = projectors.linear(5, 7)
    assert torch.equal(diagnostics.local_jacobians(layer, torch.randn(3, 5)), layer.weight.detach().T.expand(3, 5, 7))
    product = projectors.low_rank(5, 7, rank=2)
    first, second = (each.weight.detach() for each in product)
    close(diagnostics.local_jacobians(product, torch.randn(1, 5))[0], (second @ first).T, rtol=1e-5, atol=1e-6)


def test_local_jacobians_of_a_perceptron_leave_out_what_is_off() -> None:
    projector = projectors.mlp(5, 7, hidden=6).double()
    first, second = (module.weight.detach() for module in projector if isinstance(module, nn.Linear))
    x = noise(20, 5)
    for row, jacobian in zip(x, diagnostics.local_jacobians(projector, x), strict=True):
        hidden = projector[:-1](row[None])[0]
        close(jacobian, first.T @ torch.diag((hidden > 0).double()) @ second.T)
    assert len({tuple((projector[:-1](row[None])[0] > 0).tolist()) for row in x}) > 5  # rows differ


def test_local_jacobians_touch_nothing_and_need_no_gradient() -> None:
    projector = projectors.mlp(5, 7, hidden=6)
    x = torch.randn(2, 5)
    before = diagnostics.local_jacobians(projector, x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(diagnostics.local_jacobians(projector, x), before)
    assert not before.requires_grad
    assert all(parameter.grad is None for parameter in projector.parameters())
    half = x.bfloat16()
    assert torch.equal(
        diagnostics.local_jacobians(projector, half), diagnostics.local_jacobians(projector, half.float())
    )


# Errors, by what they say

BAD: dict[str, tuple[Callable[[], object], str]] = {
    "vector": (lambda: diagnostics.singular_values(torch.ones(3)), "singular_values: w is (3,); expected (d_s, d_t)"),
    "empty": (
        lambda: diagnostics.column_normalized(torch.ones(0, 3)),
        "column_normalized: w is (0, 3); expected (d_s, d_t)",
    ),
    "diverged": (
        lambda: diagnostics.singular_values(torch.tensor([[1.0, math.nan]])),
        "singular_values: w has values that are not finite",
    ),
    "integers": (
        lambda: diagnostics.singular_values(torch.ones(2, 2, dtype=torch.int64)),
        "singular_values: w is torch.int64; expected floating point",
    ),
    "matrix": (
        lambda: diagnostics.stable_rank(torch.ones(2, 2)),
        "stable_rank: s is (2, 2); expected (r,) with at least one value",
    ),
    "none": (
        lambda: diagnostics.condition(torch.ones(0)),
        "condition: s is (0,); expected (r,) with at least one value",
    ),
    "infinite": (
        lambda: diagnostics.effective_rank(torch.tensor([math.inf, 1.0])),
        "effective_rank: s has values that are not finite",
    ),
    "negative": (
        lambda: diagnostics.participation_ratio(torch.tensor([1.0, -1.0])),
        "participation_ratio: s has negative values; expected singular values",
    ),
    "numbers": (
        lambda: diagnostics.share_below(torch.ones(3), torch.ones(4)),
        "share_below: 3 values and 4 in the reference; expected as many",
    ),
    "relative": (
        lambda: diagnostics.share_small(torch.ones(3), relative=0.0),
        "share_small: relative is 0.0; expected a number above 0",
    ),
    "rows": (
        lambda: diagnostics.local_jacobians(nn.Identity(), torch.ones(0, 3)),
        "local_jacobians: x is (0, 3); expected (n, d_s)",
    ),
    "a bad row": (
        lambda: diagnostics.local_jacobians(nn.Identity(), torch.tensor([[math.inf]])),
        "local_jacobians: x has values that are not finite",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_was_found(name: str) -> None:
    call, message = BAD[name]
    with reference.as_a_user(), pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        call()
