"""Distances from fixed points, and the two measures of a projector on its way there: pull and initial share.

Fixed points themselves, and how descent comes to them, are in ``test_dynamics.py``.
"""

import functools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import Tensor, nn

import reference
import reference_dynamics
from limbeck import diagnostics, losses
from limbeck.errors import UserError

torch.set_num_threads(1)

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(n: int = 60, d_s: int = 5, d_t: int = 7) -> tuple[Tensor, Tensor]:
    """Student features with strong and weak directions, and a teacher that is partly a linear map of them."""
    z_s = noise(n, d_s) @ noise(d_s, d_s, seed=1)
    return z_s, z_s @ noise(d_s, d_t, seed=2) + 2 * noise(n, d_t, seed=3)


def relations(z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    centered = functools.partial(diagnostics.cross_relation, z_s, centered=True)
    return diagnostics.self_relation(z_s, centered=True), centered(z_t)


def numbers(found: diagnostics.FixedPointDistances) -> dict[str, tuple[float, float]]:
    return {name: (float(each.outputs), float(each.matrix)) for name, each in found._asdict().items()}


# Distances


def test_relative_distance_is_numpys() -> None:
    w, target = noise(4, 6), noise(4, 6, seed=1)
    expected = np.linalg.norm(w.numpy() - target.numpy()) / np.linalg.norm(target.numpy())
    close(diagnostics.relative_distance(w, target).item(), float(expected))
    assert diagnostics.relative_distance(w, w) == 0
    assert diagnostics.relative_distance(torch.zeros(2, 3), torch.ones(2, 3)) == 1
    assert diagnostics.relative_distance(torch.ones(2, 3), torch.zeros(2, 3)) == math.inf
    assert diagnostics.relative_distance(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    assert diagnostics.relative_distance(3e-30 * torch.ones(2, 3), 1e-30 * torch.ones(2, 3)).item() == pytest.approx(2)


def test_distances_equal_their_twins_by_scikit_learn() -> None:
    """Regressions of the features themselves, and numpy's correlation of what they and W give."""
    z_s, z_t = features()
    w, ridge = noise(5, 7, seed=4), 30.0
    c_s, c_st = relations(z_s, z_t)
    ends = {
        "whitened": (c_st / (c_s.trace() / 5)).numpy(),
        "least_squares": LinearRegression().fit(z_s.numpy(), z_t.numpy()).coef_.T,
        "ridge": Ridge(alpha=ridge).fit(z_s.numpy(), z_t.numpy()).coef_.T,
    }
    found = numbers(diagnostics.fixed_point_distances(w, c_s, c_st, ridge=ridge))
    for name, end in ends.items():
        given = zip((z_s @ w).numpy().T, (z_s.numpy() @ end).T, strict=True)
        outputs = 1 - np.mean([np.corrcoef(*pair)[0, 1] for pair in given])
        matrix = np.linalg.norm(w.numpy() - end) / np.linalg.norm(end)
        assert found[name] == pytest.approx((outputs, matrix), rel=1e-6)
    assert len({round(outputs, 3) for outputs, _ in found.values()}) == 3  # three points, three distances


@pytest.mark.parametrize("at", ["whitened", "least_squares", "ridge"])
def test_a_projector_at_a_fixed_point_is_at_a_distance_of_zero_of_this_one_alone(at: str) -> None:
    c_s, c_st = relations(*features())
    ridge = 30.0
    w = {
        "whitened": c_st / (c_s.trace() / 5),
        "least_squares": diagnostics.fixed_point(c_s, c_st),
        "ridge": diagnostics.fixed_point(c_s, c_st, ridge=ridge),
    }[at]
    found = numbers(diagnostics.fixed_point_distances(w, c_s, c_st, ridge=ridge))
    assert found.pop(at) == pytest.approx((0, 0), abs=1e-9)
    assert all(min(both) > 1e-3 for both in found.values())


def test_outputs_ignore_the_scale_of_columns_and_the_matrix_does_not() -> None:
    c_s, c_st = relations(*features())
    w = diagnostics.fixed_point(c_s, c_st) * torch.tensor([0.1, 1, 2, 3, 4, 5, 60])
    outputs, matrix = numbers(diagnostics.fixed_point_distances(w, c_s, c_st, ridge=0))["least_squares"]
    assert outputs == pytest.approx(0, abs=1e-9)
    assert matrix > 1


def test_on_whitened_features_all_three_are_the_papers_for_any_number_of_rows() -> None:
    z_s, z_t = features()
    z_s = torch.linalg.qr(z_s - z_s.mean(0))[0]
    for power in (1.0, 60.0):  # C_s = I, and features of unit variance
        c_s, c_st = relations(math.sqrt(power) * z_s, z_t)
        found = numbers(diagnostics.fixed_point_distances(c_st / power, c_s, c_st, ridge=0))
        assert [value for both in found.values() for value in both] == pytest.approx([0] * 6, abs=1e-9)
        halved = numbers(diagnostics.fixed_point_distances(c_st / power, c_s, c_st, ridge=power))["ridge"]
        assert halved == pytest.approx((0, 1), abs=1e-9)  # with eta = alpha_p: the same directions, half as long


def test_with_fewer_rows_than_channels_least_squares_is_the_teacher_itself() -> None:
    z_s, z_t = noise(20, 30), noise(20, 7, seed=1)
    w = noise(30, 7, seed=2)
    found = diagnostics.fixed_point_distances(w, *relations(z_s, z_t), ridge=0)
    close(found.least_squares.outputs, 1 - diagnostics.channel_correlations(z_s @ w, z_t).mean(), rtol=1e-6)


def test_constant_teacher_channels_do_not_count() -> None:
    z_s, z_t = features()
    w = noise(5, 7, seed=4)
    alone = numbers(diagnostics.fixed_point_distances(w, *relations(z_s, z_t), ridge=1))
    more = torch.cat([z_t, torch.full((60, 3), 0.1)], 1).float()
    w_more = torch.cat([w, noise(5, 3, seed=5)], 1)
    found = numbers(diagnostics.fixed_point_distances(w_more, *relations(z_s.float(), more), ridge=1))
    assert [outputs for outputs, _ in found.values()] == pytest.approx([each[0] for each in alone.values()], abs=1e-5)
    nothing = numbers(diagnostics.fixed_point_distances(w, torch.zeros(5, 5), torch.zeros(5, 7), ridge=1))
    assert set(nothing.values()) == {(1.0, math.inf)}


# The two forces


def test_the_pull_is_one_at_the_fixed_point_of_weight_decay() -> None:
    z_s, z_t = features()
    weight_decay = 30.0
    end = diagnostics.fixed_point(
        diagnostics.self_relation(z_s), diagnostics.cross_relation(z_s, z_t), ridge=weight_decay
    )
    for scale, expected in ((1.0, 1.0), (0.5, None)):
        layer = nn.Linear(5, 7, bias=False, dtype=torch.float64)
        layer.weight.data = scale * end.T
        losses.squared_error(layer(z_s), z_t).backward()
        assert layer.weight.grad is not None
        w, gradient = layer.weight.detach().T, layer.weight.grad.T
        found = diagnostics.pull(w, gradient, weight_decay=weight_decay)
        ratio = np.linalg.norm(gradient.numpy()) / (weight_decay * np.linalg.norm(w.numpy()))
        close(found.item(), float(ratio))
        assert found.item() == pytest.approx(1) if expected else found > 2


def test_the_pull_at_the_equilibrium_behind_a_batch_norm() -> None:
    """Where growth and loss of the columns balance: far above 1."""
    w, g = noise(5, 7), noise(5, 7, seed=1)
    g = g - w * (w * g).sum(0) / w.square().sum(0)  # orthogonal to the columns, as it is behind a batch norm
    lr, weight_decay = 0.1, 0.02
    decay = lr * weight_decay
    rest = reference_dynamics.equilibrium_column_norms(w, g, lr=lr, decay=decay)
    w, g = w / w.norm(dim=0) * rest, g * w.norm(dim=0) / rest
    close((w - lr * (g + weight_decay * w)).norm(dim=0), rest)  # a step of SGD leaves the lengths as they are
    assert diagnostics.pull(w, g, weight_decay=weight_decay).item() == pytest.approx(math.sqrt(2 / decay - 1))
    assert math.sqrt(2 / 1e-5 - 1) == pytest.approx(447, abs=0.5)  # the number that the docstring gives


def test_the_pull_at_its_ends() -> None:
    w, zero = torch.ones(2, 3), torch.zeros(2, 3)
    assert diagnostics.pull(w, w, weight_decay=0) == math.inf
    assert diagnostics.pull(zero, w, weight_decay=0.1) == math.inf
    assert diagnostics.pull(w, zero, weight_decay=0.1) == diagnostics.pull(zero, zero, weight_decay=0) == 0
    assert diagnostics.pull(w.bfloat16() * 1e-30, w * 1e-30, weight_decay=0.1).item() == pytest.approx(10, rel=0.01)


# What is left of the start


def test_the_initial_share_is_that_of_scipys_cosine() -> None:
    w, w_0 = noise(4, 6), noise(4, 6, seed=1)
    cosine = 1 - scipy.spatial.distance.cosine(w.flatten().numpy(), w_0.flatten().numpy())
    close(diagnostics.initial_share(w, w_0).item(), cosine**2)


@pytest.mark.parametrize(("kept", "written"), [(1.0, 0.0), (0.5, 0.5), (0.1, 2.0), (0.0, 1.0), (-1.0, 1.0)])
def test_the_initial_share_of_a_planted_mixture(kept: float, written: float) -> None:
    w_0, new = noise(4, 6), noise(4, 6, seed=1)
    new = new - w_0 * (w_0 * new).sum() / w_0.square().sum()
    w = kept * w_0 / w_0.norm() + written * new / new.norm()
    expected = kept**2 / (kept**2 + written**2)
    for scale in (1e-30, 1.0, 1e30):
        assert diagnostics.initial_share((scale * w).float(), w_0).item() == pytest.approx(expected, abs=1e-6)


def test_the_initial_share_stays_under_weight_decay_alone_and_falls_with_the_batches() -> None:
    z_s, z_t = torch.linalg.qr(noise(60, 5))[0], features()[1]

    def shares(z_s: Tensor) -> list[float]:
        layer = nn.Linear(5, 7, bias=False, dtype=torch.float64)
        w_0 = layer.weight.detach().T.clone()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.003, weight_decay=1)
        found = []
        for _ in range(500):
            optimizer.zero_grad()
            losses.squared_error(layer(z_s), z_t).backward()
            optimizer.step()
            found.append(diagnostics.initial_share(layer.weight.detach().T, w_0).item())
        return found

    assert shares(0 * z_s) == pytest.approx([1] * 500)  # no feature, no gradient
    falling = shares(z_s)
    assert falling[0] > 0.9
    assert falling[-1] < 0.05


def test_matrices_without_relation_share_nothing() -> None:
    shares = [diagnostics.initial_share(noise(8, 16, seed=k), noise(8, 16, seed=k + 500)).item() for k in range(400)]
    assert np.mean(shares) == pytest.approx(1 / (8 * 16), rel=0.2)
    zero = torch.zeros(3, 4)
    assert diagnostics.initial_share(zero, zero) == diagnostics.initial_share(zero, torch.ones(3, 4)) == 0


# Errors, by what they say

BAD: dict[str, tuple[Callable[[], object], str]] = {
    "layout of nn.Linear": (
        lambda: diagnostics.initial_share(torch.ones(2, 3), torch.ones(3, 2)),
        "initial_share: w (2, 3) and w_0 (3, 2); expected (d_s, d_t) twice",
    ),
    "empty": (
        lambda: diagnostics.relative_distance(torch.ones(0, 3), torch.ones(0, 3)),
        "relative_distance: w (0, 3) and target (0, 3); expected (d_s, d_t) twice",
    ),
    "diverged": (
        lambda: diagnostics.pull(torch.ones(2, 3), torch.full((2, 3), math.nan), weight_decay=0.1),
        "pull: gradient has values that are not finite",
    ),
    "weight decay": (
        lambda: diagnostics.pull(torch.ones(2, 3), torch.ones(2, 3), weight_decay=-0.1),
        "pull: weight_decay is -0.1; expected 0 or more",
    ),
    "relations": (
        lambda: diagnostics.fixed_point_distances(torch.ones(2, 3), torch.eye(3), torch.ones(2, 3), ridge=0.0),
        "fixed_point_distances: c_s is (3, 3), the rest (2, 3), (2, 3); expected (d_s, d_s), (d_s, d_t)",
    ),
    "relations that are not finite": (
        lambda: diagnostics.fixed_point_distances(torch.ones(2, 3), torch.eye(2) / 0, torch.ones(2, 3), ridge=0.0),
        "fixed_point_distances: c_s has values that are not finite",
    ),
    "ridge": (
        lambda: diagnostics.fixed_point_distances(torch.ones(2, 3), torch.eye(2), torch.ones(2, 3), ridge=-1.0),
        "fixed_point: ridge is -1.0; expected 0 or more",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_was_found(name: str) -> None:
    call, message = BAD[name]
    with reference.as_a_user(), pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        call()
