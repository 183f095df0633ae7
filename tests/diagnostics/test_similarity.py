import functools
import itertools
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
from torch import Tensor

import reference
from limbeck import diagnostics, losses
from limbeck.errors import UserError

torch.set_num_threads(1)

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, d: int, *, seed: int = 0) -> Tensor:
    """Channels that are centered, of length 1 and orthogonal."""
    z = noise(n, d, seed=seed)
    return torch.linalg.qr(z - z.mean(0))[0]


def turned(x: Tensor, *, seed: int = 5) -> Tensor:
    d = x.shape[-1]
    return x @ torch.linalg.qr(noise(d, d, seed=seed))[0]


# CKA


def biased_twin(x: Tensor, y: Tensor) -> float:
    """By the centering matrix and traces of kernels."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, m = (h @ side.double().numpy() @ side.double().numpy().T @ h for side in (x, y))
    return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """By its definition: the mean of ``k_ij (m_ij + m_qr - 2 m_iq)`` over all four different rows."""
    fours = list(itertools.permutations(range(len(k)), 4))
    return sum(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in fours) / len(fours)


@pytest.mark.parametrize("shape", [(9, 3, 4), (9, 20, 4), (9, 30, 40), (2, 3, 4)], ids=str)
def test_cka_equals_its_twin_by_kernels(shape: tuple[int, int, int]) -> None:
    n, d_x, d_y = shape
    x, y = noise(n, d_x), noise(n, d_y, seed=1)
    close(diagnostics.cka(x + 3, y, debiased=False).item(), biased_twin(x, y))


@pytest.mark.parametrize("shape", [(4, 3, 2), (7, 3, 2), (7, 30, 40)], ids=str)
def test_debiased_cka_equals_its_twin_by_all_fours_of_rows(shape: tuple[int, int, int]) -> None:
    n, d_x, d_y = shape
    x, y = noise(n, d_x), noise(n, d_y, seed=1) + noise(n, d_x)[:, :1]
    k, m = (side.numpy() @ side.numpy().T for side in (x, y))
    expected = unbiased_hsic(k, m) / math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    close(diagnostics.cka(x + 3, y).item(), expected, rtol=1e-7)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_is_one_for_features_that_are_turned_scaled_and_moved(debiased: bool) -> None:
    x = noise(20, 6)
    assert diagnostics.cka(x, 7 * turned(x) - 2, debiased=debiased).item() == pytest.approx(1)
    assert diagnostics.cka(x, x @ noise(6, 6, seed=2), debiased=debiased).item() < 0.95  # not for any linear map


def test_cka_of_orthogonal_features_is_zero_and_of_shared_ones_what_is_shared() -> None:
    """Of equal variance in every direction: |X^T Y|^2 is the number of directions shared."""
    every = orthogonal(4000, 12)
    x, y = every[:, :4], every[:, 4:]
    assert diagnostics.cka(x, y, debiased=False).item() == pytest.approx(0, abs=1e-12)
    for shared in range(1, 5):  # of 4 on one side and 8 on the other
        some = turned(every[:, shared : shared + 8])
        expected = (4 - shared) / math.sqrt(4 * 8)
        assert diagnostics.cka(x, some, debiased=False).item() == pytest.approx(expected, abs=1e-12)
        assert diagnostics.cka(x, some).item() == pytest.approx(expected, abs=0.002)


def test_few_rows_make_the_biased_estimate_near_one_and_leave_the_other_alone() -> None:
    """32 images of 256 and 512 channels: nothing in common, and a known part in common."""
    n, d_x, d_y = 32, 256, 512
    biased, debiased, shared = [], [], []
    for seed in range(20):
        x, y = noise(n, d_x, seed=seed), noise(n, d_y, seed=seed + 100)
        biased.append(diagnostics.cka(x, y, debiased=False).item())
        debiased.append(diagnostics.cka(x, y).item())
        y[:, :128] = x[:, :128]
        shared.append(diagnostics.cka(x, y).item())
    assert np.mean(biased) == pytest.approx(1 / math.sqrt((1 + n / d_x) * (1 + n / d_y)), abs=0.02)  # 0.9
    assert np.mean(debiased) == pytest.approx(0, abs=0.03)
    assert np.mean(shared) == pytest.approx(128 / math.sqrt(d_x * d_y), abs=0.03)


def test_cka_of_positions_is_that_of_rows() -> None:
    x, y = noise(3, 5, 4), noise(3, 5, 6, seed=1)
    close(diagnostics.cka(x, y), diagnostics.cka(x.flatten(0, 1), y.flatten(0, 1)))


def test_cka_has_no_value_of_chance_for_constant_features() -> None:
    x = noise(10, 3).float()
    for constant in (torch.zeros(10, 4), torch.full((10, 4), 0.1), torch.full((10, 4), 1e6)):
        assert diagnostics.cka(x, constant) == 0
        assert diagnostics.cka(constant, constant, debiased=False) == 0
    one_constant = torch.cat([x, torch.full((10, 1), 1e6)], 1)
    close(diagnostics.cka(x, one_constant).item(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_cka_keeps_its_digits_in_float32_and_in_half_precision(scale: float) -> None:
    """Weak features on a large offset, and scales whose fourth powers are not in float32."""
    x, y = noise(40, 200), noise(40, 300, seed=1)
    y[:, :150] += x[:, :150]
    exact = diagnostics.cka(x, y).item()
    found = diagnostics.cka((scale * (x + 100)).float(), (scale * y).float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact, abs=1e-5)
    half = diagnostics.cka((scale * x).bfloat16(), (scale * y).bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact, abs=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert diagnostics.cka(x.float(), y.float()).item() == pytest.approx(exact, abs=1e-5)


# Correlations within a side


def test_the_correlation_matrix_is_that_of_numpy() -> None:
    x = noise(30, 5)
    x[:, 3] = x[:, 0] * -2 + 7
    close(diagnostics.correlation_matrix(x), torch.from_numpy(np.corrcoef(x.T.numpy())))
    x[:, 1] = 0.1  # of which numpy's correlation is NaN
    alive = [0, 2, 3, 4]
    found = diagnostics.correlation_matrix(x)
    assert found[1].tolist() == found[:, 1].tolist() == [0] * 5
    close(found[alive][:, alive], torch.from_numpy(np.corrcoef(x[:, alive].T.numpy())))


@pytest.mark.parametrize("d", [5, 80])
def test_off_diagonal_energy_equals_its_twin(d: int) -> None:
    x = noise(30, d)
    matrix = np.corrcoef(x.T.numpy())
    squares = [matrix[i, j] ** 2 for i in range(d) for j in range(d) if i != j]
    close(diagnostics.off_diagonal_energy(x).item(), sum(squares) / len(squares))


@pytest.mark.parametrize("copies", [1, 2, 3, 6])
def test_off_diagonal_energy_of_copied_channels(copies: int) -> None:
    """Twelve channels in groups of copies, of any scale and sign: of the eleven others, ``copies - 1`` are the same."""
    x = orthogonal(50, 12 // copies).repeat_interleave(copies, 1)
    x = x * torch.tensor([1.0, -3.0] * 6) + 4
    assert diagnostics.off_diagonal_energy(x).item() == pytest.approx((copies - 1) / 11, abs=1e-9)
    with_constant = torch.cat([x, torch.full((50, 5), 0.3)], 1)
    assert diagnostics.off_diagonal_energy(with_constant).item() == pytest.approx((copies - 1) / 11, abs=1e-9)


def test_off_diagonal_energy_at_its_ends() -> None:
    assert diagnostics.off_diagonal_energy(noise(10, 1).expand(10, 7)).item() == pytest.approx(1)
    assert diagnostics.off_diagonal_energy(noise(2, 5)).item() == pytest.approx(1)  # two rows are always on a line
    assert diagnostics.off_diagonal_energy(noise(10, 1)) == 0
    assert diagnostics.off_diagonal_energy(torch.ones(10, 5)) == 0


@pytest.mark.parametrize("n", [8, 128])
def test_independent_channels_have_the_energy_and_the_correlation_of_chance(n: int) -> None:
    x, p = noise(n, 200), noise(n, 300, seed=1)
    assert diagnostics.off_diagonal_energy(x).item() == pytest.approx(1 / (n - 1), rel=0.05)
    expected = math.sqrt(2 / (math.pi * (n - 1)))
    assert diagnostics.input_output_correlation(x, p).item() == pytest.approx(expected, rel=0.03)


# Correlations of input and output, and of student and teacher


def test_input_output_correlation_equals_its_twin() -> None:
    x, p = noise(20, 3), noise(20, 4, seed=1)
    pairs = [abs(scipy.stats.pearsonr(i, o).statistic) for i in x.T.numpy() for o in p.T.numpy()]
    close(diagnostics.input_output_correlation(x, p).item(), float(np.mean(pairs)))
    x, p = (torch.cat([each, torch.full((20, 2), 0.1, dtype=torch.float64)], 1) for each in (x, p))
    close(diagnostics.input_output_correlation(x, p).item(), float(np.mean(pairs)))  # constant ones do not count


def test_input_output_correlation_of_projectors_that_mix_more_and_more() -> None:
    x = orthogonal(100, 8)
    found = []
    for mixed in (
        1,
        2,
        4,
        8,
    ):  # each output the sum of so many inputs: a correlation of 1/sqrt(mixed) with each of them
        blocks = torch.block_diag(*[torch.tensor(scipy.linalg.hadamard(mixed), dtype=torch.float64)] * (8 // mixed))
        found.append(diagnostics.input_output_correlation(x, -3 * x @ blocks + 1).item())
    assert found == pytest.approx([math.sqrt(mixed) / 8 for mixed in (1, 2, 4, 8)])
    assert diagnostics.input_output_correlation(x, torch.ones(100, 3)) == 0


def test_channel_correlations_are_those_of_scipy() -> None:
    a, t = noise(20, 6), noise(20, 6, seed=1)
    a[:, 4], a[:, 5] = 2 * t[:, 4] - 1, -t[:, 5]
    expected = [scipy.stats.pearsonr(*pair).statistic for pair in zip(a.T.numpy(), t.T.numpy(), strict=True)]
    close(diagnostics.channel_correlations(a, t).tolist(), expected)
    assert diagnostics.channel_correlations(a, t)[4:].tolist() == pytest.approx([1, -1])


def test_channel_correlations_are_those_of_the_loss_without_its_eps() -> None:
    a, t = noise(20, 6), noise(20, 6, seed=1)
    behind = [(each - each.mean(0)) / each.std(0, correction=0) for each in (a, t)]
    close(diagnostics.channel_correlations(a, t), losses.correlation(*behind))
    close(diagnostics.channel_correlations(*behind), losses.correlation(*behind))


def test_a_constant_channel_correlates_with_nothing_also_behind_rounding() -> None:
    t = noise(16, 4).float()
    a = t.clone()
    a[:, 0] = 0.1
    a[:, 1] = 1000 + 6e-5 * (t[:, 1] > 0)  # a last digit that goes up and down with the teacher is rounding
    a[:, 2] = 0.1 + 1e-5 * t[:, 2]  # and this is not
    found = diagnostics.channel_correlations(a, t)
    assert len(a[:, 1].unique()) == 2
    assert found[:2].tolist() == [0, 0]
    assert found[2:].tolist() == pytest.approx([1, 1], abs=1e-3)


# Who is pulled


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), d=st.sampled_from([10, 30, 80]), alpha=st.sampled_from([1.0, 2.0, 4.0]))
def test_gradient_shares_equal_their_loop_twin(seed: int, d: int, alpha: float) -> None:
    c = noise(d, seed=seed).tanh()
    found = diagnostics.gradient_shares(c, functools.partial(losses.log_correlation, alpha=alpha, eps=1e-12))
    pulls = [(1 - value) ** (alpha - 1) for value in sorted(c.tolist())]
    tenth = d // 10
    close(found.tolist(), [sum(pulls[k * tenth : (k + 1) * tenth]) / sum(pulls) for k in range(10)])


@pytest.mark.parametrize("d", [1, 7, 10, 64, 1000])
def test_gradient_shares_of_a_loss_that_pulls_all_alike_are_equal_for_any_width(d: int) -> None:
    found = diagnostics.gradient_shares(noise(d).tanh(), functools.partial(losses.log_correlation, alpha=1))
    close(found, torch.full((10,), 0.1, dtype=torch.float64))


def test_a_higher_power_works_on_the_worst_channels_whatever_their_order() -> None:
    c = torch.linspace(0, 0.95, 100, dtype=torch.float64)
    shares = [
        diagnostics.gradient_shares(c, functools.partial(losses.log_correlation, alpha=alpha)) for alpha in (1, 2, 4, 8)
    ]
    first = [each[0].item() for each in shares]
    assert first == sorted(first)
    assert first[0] == pytest.approx(0.1)
    assert first[-1] > 0.5
    for each in shares:
        assert (each.diff() <= 1e-12).all()
        assert each.sum().item() == pytest.approx(1)
    mixed = c[torch.randperm(100)]
    close(diagnostics.gradient_shares(mixed, functools.partial(losses.log_correlation, alpha=8)), shares[-1])


def test_gradient_shares_are_of_the_loss_that_is_given_and_of_parts_as_many() -> None:
    def only_the_best(c: Tensor) -> Tensor:
        return -3 * c.max()

    c = torch.tensor([0.9, 0.1, 0.5, 0.2])
    assert diagnostics.gradient_shares(c, only_the_best, parts=4).tolist() == [0, 0, 0, 1]
    assert diagnostics.gradient_shares(c, only_the_best, parts=1).tolist() == [1]
    halves = diagnostics.gradient_shares(c, only_the_best, parts=8)  # a channel lies on two parts
    assert halves.tolist() == [0] * 6 + [0.5, 0.5]


def test_gradient_shares_need_no_gradient_of_the_caller() -> None:
    c, loss = torch.tensor([0.5, 0.0]).requires_grad_(), functools.partial(losses.correlation_power, power=2)
    expected = torch.tensor([2 / 3, 1 / 3])
    with torch.no_grad():
        close(diagnostics.gradient_shares(c, loss, parts=2), expected, rtol=1e-6)
    with torch.inference_mode():
        close(diagnostics.gradient_shares(c + 0, loss, parts=2), expected, rtol=1e-6)
    assert c.grad is None
    assert diagnostics.gradient_shares(torch.ones(20), loss).tolist() == [0] * 10  # nothing left to pull at


# Dead channels


def test_dead_channels_are_counted() -> None:
    x = noise(50, 10)
    x[:, 0], x[:, 1], x[:, 2] = 0, 5, x[:, 2] * 1e-4
    x[:, 3] *= 1e-2  # weak, and not dead
    for scale in (1e-10, 1.0, 1e10):
        assert diagnostics.dead_channels(scale * x).item() == pytest.approx(0.3)
    assert diagnostics.dead_channels(x, relative=0.1).item() == pytest.approx(0.4)
    assert diagnostics.dead_channels(x.bfloat16()).item() == pytest.approx(0.3, abs=1e-6)


def test_dead_channels_are_found_where_most_are_and_where_one_is_huge() -> None:
    x = noise(50, 20)
    x[:, :16] *= 1e-6
    assert diagnostics.dead_channels(x).item() == pytest.approx(0.8)
    huge = noise(50, 20)
    huge[:, 0] *= 1e5
    assert diagnostics.dead_channels(huge) == 0
    assert diagnostics.dead_channels(torch.full((50, 20), 0.1)) == 1
    assert diagnostics.dead_channels(noise(2, 4)) == 0


# Errors, by what they say

BAD: dict[str, tuple[Callable[[], object], str]] = {
    "rows": (
        lambda: diagnostics.cka(torch.ones(5, 2), torch.ones(6, 2)),
        "cka: x (5, 2) and y (6, 2); expected (n, d) with the same n",
    ),
    "three rows": (lambda: diagnostics.cka(torch.ones(3, 2), torch.ones(3, 2)), "cka: 3 rows; expected at least 4"),
    "one row": (
        lambda: diagnostics.cka(torch.ones(1, 2), torch.ones(1, 2), debiased=False),
        "cka: 1 rows; expected at least 2",
    ),
    "one row of one side": (
        lambda: diagnostics.off_diagonal_energy(torch.ones(1, 2)),
        "off_diagonal_energy: 1 rows; expected at least 2",
    ),
    "no rows": (
        lambda: diagnostics.correlation_matrix(torch.ones(0, 2)),
        "correlation_matrix: 0 rows; expected at least 2",
    ),
    "no channels": (
        lambda: diagnostics.dead_channels(torch.ones(3, 0)),
        "dead_channels: x (3, 0); expected (n, d) with the same n",
    ),
    "vector": (
        lambda: diagnostics.correlation_matrix(torch.ones(3)),
        "correlation_matrix: x (3,); expected (n, d) with the same n",
    ),
    "diverged": (
        lambda: diagnostics.input_output_correlation(torch.ones(3, 2), torch.full((3, 2), math.inf)),
        "input_output_correlation: p has values that are not finite",
    ),
    "integers": (
        lambda: diagnostics.dead_channels(torch.ones(3, 2, dtype=torch.int64)),
        "dead_channels: x is torch.int64; expected floating point",
    ),
    "widths": (
        lambda: diagnostics.channel_correlations(torch.ones(3, 2), torch.ones(3, 1)),
        "channel_correlations: a (3, 2) and t (3, 1); expected equal shapes",
    ),
    "c": (
        lambda: diagnostics.gradient_shares(torch.ones(3, 2), torch.sum),
        "gradient_shares: c is (3, 2); expected (d_t,)",
    ),
    "c is not finite": (
        lambda: diagnostics.gradient_shares(torch.tensor([math.nan]), torch.sum),
        "gradient_shares: c has values that are not finite",
    ),
    "parts": (
        lambda: diagnostics.gradient_shares(torch.ones(3), torch.sum, parts=0),
        "gradient_shares: parts is 0; expected at least 1",
    ),
    "relative": (
        lambda: diagnostics.dead_channels(torch.ones(3, 2), relative=-1.0),
        "dead_channels: relative is -1.0; expected a number above 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_was_found(name: str) -> None:
    call, message = BAD[name]
    with reference.as_a_user(), pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        call()
