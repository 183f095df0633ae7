import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

import reference
import reference_dynamics
from limbeck import diagnostics, losses, norms, projectors
from limbeck.errors import UserError
from limbeck.features.taps import Captured, Taps
from limbeck.models.build import build
from limbeck.terms import FeatureTerm

torch.set_num_threads(1)

close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Features(NamedTuple):
    """Penultimate features of 1,797 digits, float64."""

    z_s: Tensor
    z_t: Tensor


@pytest.fixture(scope="module")
def digits() -> Features:
    """Features of two networks that were trained here, on real images: of width 4 (8 channels) and 8 (16)."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    labels = torch.tensor(data.target)
    features: list[Tensor] = []
    with torch.random.fork_rng():
        for seed, width in enumerate((4, 8)):
            torch.manual_seed(seed)
            model = build(f"small/cnn-{width}", num_classes=10)
            net = model.module.train()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
            for epoch in range(8):
                optimizer.param_groups[0]["lr"] = 0.05 * (1 - epoch / 8)
                for batch in torch.randperm(len(labels)).split(64):
                    optimizer.zero_grad()
                    F.cross_entropy(net(images[batch]), labels[batch]).backward()
                    optimizer.step()
            with torch.no_grad():
                captured = Taps(net.eval(), [model.penultimate])(images)
            assert (captured.output.argmax(1) == labels).float().mean() > 0.8  # trained, and not noise
            features.append(captured.features[model.penultimate].double())
    return Features(*features)


def relations(z_s: Tensor, z_t: Tensor, *, centered: bool = False) -> tuple[Tensor, Tensor]:
    return diagnostics.self_relation(z_s, centered=centered), diagnostics.cross_relation(z_s, z_t, centered=centered)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(z: Tensor) -> Tensor:
    """Rows whose self relation is I: not divided by N."""
    values, vectors = torch.linalg.eigh(z.T @ z)
    return z @ vectors @ torch.diag(values.rsqrt()) @ vectors.T


def batches(digits: Features, size: int, steps: int, *, seed: int = 0) -> Iterator[Features]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(digits.z_s), (size,), generator=generator)
        yield Features(digits.z_s[chosen], digits.z_t[chosen])


def descent(
    digits: Features, start: Tensor, *, steps: int, decay: float = 0.0, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Real gradient descent with momentum (heavy ball), tuned to the spectrum so that it converges."""
    values = torch.linalg.eigvalsh(digits.z_s.T @ digits.z_s)
    values = values[values > 1e-10 * values[-1]] + decay
    low, high = values[0].sqrt().item(), values[-1].sqrt().item()
    layer = nn.Linear(*start.shape, bias=False, dtype=torch.float64)
    layer.weight.data = start.T.clone()
    optimizer = torch.optim.SGD(
        layer.parameters(),
        lr=3.9 / (high + low) ** 2,
        momentum=((high - low) / (high + low)) ** 2,
        weight_decay=decay,
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss(layer(digits.z_s), digits.z_t).backward()
        optimizer.step()
    return layer.weight.detach().T


# Relations and the loss in terms of them


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("shape", [(7,), (1,), (3, 4)], ids=str)
def test_relations_equal_their_loop_twins(shape: tuple[int, ...], centered: bool) -> None:
    z_s, z_t = noise(*shape, 4), noise(*shape, 5, seed=1)
    c_s, c_st = relations(z_s, z_t, centered=centered)
    close(c_s.tolist(), reference_dynamics.relation(z_s, z_s, centered=centered))
    close(c_st.tolist(), reference_dynamics.relation(z_s, z_t, centered=centered))


def test_relations_of_two_batches_add_up(digits: Features) -> None:
    for whole, first, second in zip(
        relations(*digits),
        relations(digits.z_s[:500], digits.z_t[:500]),
        relations(digits.z_s[500:], digits.z_t[500:]),
        strict=True,
    ):
        close(whole, first + second)


def test_centered_relations_ignore_means_and_keep_their_digits() -> None:
    z = noise(1000, 3)
    shifted = (z + 1e4).float()
    close(
        diagnostics.self_relation(shifted, centered=True),
        diagnostics.self_relation(z, centered=True).float(),
        rtol=2e-3,
    )
    lost = diagnostics.self_relation(shifted) - 1000 * torch.outer(shifted.mean(0), shifted.mean(0))
    assert (lost - diagnostics.self_relation(z, centered=True)).abs().max() > 100


def test_autocast_does_not_lower_the_precision() -> None:
    z = noise(40, 6).float()
    c_s, c_st = relations(z, z[:, :3])
    w = diagnostics.fixed_point(c_s, c_st)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(diagnostics.self_relation(z), c_s)
        assert torch.equal(diagnostics.fixed_point(c_s, c_st), w)
        assert diagnostics.gradient_flow(c_s, c_st, w).abs().max() < 1e-4
    assert diagnostics.self_relation(z.bfloat16()).dtype == torch.float32


def test_the_loss_is_a_trace_of_relations(digits: Features) -> None:
    c_s, c_st = relations(*digits)
    w = noise(8, 16)
    trace = (w.T @ c_s @ w).trace() / 2 - (w.T @ c_st).trace() + diagnostics.self_relation(digits.z_t).trace() / 2
    close(losses.squared_error(digits.z_s @ w, digits.z_t), trace)


def test_gradient_flow_is_minus_the_gradient(digits: Features) -> None:
    layer = projectors.linear(8, 16).double()
    losses.squared_error(layer(digits.z_s), digits.z_t).backward()
    assert layer.weight.grad is not None
    c_s, c_st = relations(*digits)
    close(diagnostics.gradient_flow(c_s, c_st, layer.weight.detach().T), -layer.weight.grad.T, atol=1e-8)


def test_gradient_flow_with_a_trained_bias_is_that_of_centered_relations(digits: Features) -> None:
    w = noise(8, 16).requires_grad_()
    bias = (digits.z_t - digits.z_s @ w).mean(0)  # the best one, which stays the best one
    losses.squared_error(digits.z_s @ w + bias, digits.z_t).backward()
    assert w.grad is not None
    close(diagnostics.gradient_flow(*relations(*digits, centered=True), w.detach()), -w.grad, atol=1e-8)


# Fixed points, reached by real descent on real features


def test_descent_on_whitened_features_ends_at_the_cross_relation(digits: Features) -> None:
    white = Features(whitened(digits.z_s), digits.z_t)
    c_s, c_st = relations(*white)
    close(c_s, torch.eye(8, dtype=torch.float64), atol=1e-10)
    end = descent(white, noise(8, 16), steps=40, loss=losses.squared_error)
    close(end, c_st, rtol=1e-9, atol=1e-9)
    close(diagnostics.fixed_point(c_s, c_st), c_st, rtol=1e-9, atol=1e-9)


def test_descent_on_whitened_features_with_eta_equal_to_alpha_ends_at_half(digits: Features) -> None:
    white = Features(whitened(digits.z_s), digits.z_t)
    c_s, c_st = relations(*white)
    w = noise(8, 16)
    for _ in range(200):
        w = diagnostics.discrete_step(w, c_s, c_st, lr=0.1, decay=0.1)
    close(w, c_st / 2, rtol=1e-9, atol=1e-9)
    close(descent(white, noise(8, 16), steps=40, decay=1.0, loss=losses.squared_error), w, rtol=1e-9, atol=1e-9)
    close(diagnostics.fixed_point(c_s, c_st, ridge=1.0), w, rtol=1e-9, atol=1e-9)


def test_descent_ends_at_least_squares(digits: Features) -> None:
    end = descent(digits, noise(8, 16), steps=1500, loss=losses.squared_error)
    closed = diagnostics.fixed_point(*relations(*digits))
    close(closed, torch.linalg.lstsq(digits.z_s, digits.z_t).solution, rtol=1e-9, atol=1e-9)
    close(end, closed, rtol=1e-9, atol=1e-9)
    assert (closed - relations(*digits)[1]).abs().max() > 1  # and not at C_st


@pytest.mark.parametrize("decay", [30.0, 3000.0])
def test_descent_with_weight_decay_ends_at_ridge(digits: Features, decay: float) -> None:
    end = descent(digits, noise(8, 16), steps=1500, decay=decay, loss=losses.squared_error)
    close(end, diagnostics.fixed_point(*relations(*digits), ridge=decay), rtol=1e-9, atol=1e-9)
    assert (end - diagnostics.fixed_point(*relations(*digits))).abs().max() > 1e-3


def test_descent_on_too_few_rows_keeps_its_start_where_there_is_no_feature(digits: Features) -> None:
    few = Features(digits.z_s[:5], digits.z_t[:5])
    c_s, c_st = relations(*few)
    closed = diagnostics.fixed_point(c_s, c_st)
    close(closed, torch.linalg.pinv(few.z_s) @ few.z_t, rtol=1e-9, atol=1e-9)
    start = noise(8, 16)
    seen = torch.linalg.pinv(few.z_s) @ few.z_s  # projection on the rows' directions, C_s^+ C_s
    steps = functools.partial(descent, few, steps=1500, loss=losses.squared_error)
    close(steps(torch.zeros_like(start)), closed, rtol=1e-8, atol=1e-8)
    close(steps(start), closed + start - seen @ start, rtol=1e-8, atol=1e-8)
    assert (start - seen @ start).abs().max() > 0.5


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), d_s=st.integers(1, 6), d_t=st.integers(1, 6), seed=st.integers(0, 99))
def test_nothing_flows_at_a_fixed_point(n: int, d_s: int, d_t: int, seed: int) -> None:
    z_s, z_t = noise(n, d_s, seed=seed), noise(n, d_t, seed=seed + 1)
    z_s[:, -1] = z_s[:, 0]  # a copied channel: never of full rank, unless there is one channel alone
    c_s, c_st = relations(z_s, z_t)
    ends = diagnostics.fixed_point(c_s, c_st), diagnostics.fixed_point(c_s, c_st, ridge=0.5)
    close(diagnostics.gradient_flow(c_s, c_st, ends[0]), torch.zeros_like(c_st), atol=1e-6)
    close(diagnostics.gradient_flow(c_s, c_st, ends[1]) - 0.5 * ends[1], torch.zeros_like(c_st), atol=1e-10)
    close(diagnostics.fixed_point(c_s / n, c_st / n, ridge=0.5 / n), ends[1], atol=1e-9)


def test_fixed_point_of_features_that_are_zero_is_zero() -> None:
    zero = torch.zeros(3, 3)
    assert torch.equal(diagnostics.fixed_point(zero, torch.zeros(3, 2)), torch.zeros(3, 2))


def test_fixed_point_in_float32_of_features_with_copied_channels(digits: Features) -> None:
    doubled = torch.cat([digits.z_s, digits.z_s[:, :3]], 1)
    exact = diagnostics.fixed_point(*relations(doubled, digits.z_t))
    close(exact[:3], exact[8:], atol=1e-8)  # the least norm shares evenly among copies
    close(
        diagnostics.fixed_point(*relations(doubled.float(), digits.z_t.float())).double(), exact, rtol=1e-2, atol=1e-2
    )


def test_rtol_sets_weak_directions_aside() -> None:
    c_s, c_st = torch.diag(torch.tensor([1.0, 1e-3])), torch.ones(2, 1)
    assert diagnostics.fixed_point(c_s, c_st).flatten().tolist() == pytest.approx([1.0, 1000.0])
    assert diagnostics.fixed_point(c_s, c_st, rtol=0.01).tolist() == [[1.0], [0.0]]


def test_the_fixed_point_of_a_whitened_student_is_not_symmetric(digits: Features) -> None:
    c_st = diagnostics.cross_relation(whitened(digits.z_s), digits.z_t[:, :8])  # of equal widths
    assert (c_st - c_st.T).norm() > 0.1 * c_st.norm()


# Steps


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("form", ["sum", "mean"])
def test_a_step_is_that_of_sgd(digits: Features, form: str, weight_decay: float) -> None:
    size, lr, weight = 64, {"sum": 1e-4, "mean": 0.1}[form], 0.7
    loss, k = {
        "sum": (losses.squared_error, 1.0),
        "mean": (losses.mean_squared_error, 2 / (size * 16)),
    }[form]
    layer = projectors.linear(8, 16).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, weight_decay=weight_decay)
    w = layer.weight.detach().T.clone()
    for batch in batches(digits, size, 50):
        optimizer.zero_grad()
        (weight * loss(layer(batch.z_s), batch.z_t)).backward()
        optimizer.step()
        w = diagnostics.discrete_step(w, *relations(*batch), lr=lr * weight * k, decay=lr * weight_decay)
        close(layer.weight.detach().T, w)
    assert (w - diagnostics.fixed_point(*relations(*digits))).abs().max() > 1e-3  # still on its way


def test_a_step_with_momentum_is_that_of_sgd(digits: Features) -> None:
    lr, weight_decay = 2e-5, 0.3
    layer = projectors.linear(8, 16).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, weight_decay=weight_decay, momentum=0.9)
    w = layer.weight.detach().T.clone()
    velocity = torch.zeros_like(w)
    for batch in batches(digits, 64, 50):
        optimizer.zero_grad()
        losses.squared_error(layer(batch.z_s), batch.z_t).backward()
        optimizer.step()
        w, velocity = reference_dynamics.momentum_step(
            w, velocity, *relations(*batch), lr=lr, decay=lr * weight_decay, momentum=0.9
        )
        close(layer.weight.detach().T, w)
        close(-lr * optimizer.state[layer.weight]["momentum_buffer"].T, velocity)


def test_momentum_changes_the_pace_and_not_the_end(digits: Features) -> None:
    c_s, c_st = relations(*digits)
    end = diagnostics.fixed_point(c_s, c_st, ridge=10.0)
    w, velocity = reference_dynamics.momentum_step(end, torch.zeros_like(end), c_s, c_st, lr=1e-5, decay=1e-4)
    close(w, end, atol=1e-9)
    fast = slow = torch.zeros_like(end)
    velocity = torch.zeros_like(end)
    for _ in range(300):
        fast = diagnostics.discrete_step(fast, c_s, c_st, lr=1e-6, decay=1e-5)
        slow, velocity = reference_dynamics.momentum_step(slow, velocity, c_s, c_st, lr=1e-7, decay=1e-6, momentum=0.9)
    assert (fast - slow).norm() < 0.01 * fast.norm()


# Memory


def test_each_share_is_what_sgd_makes_of_that_batch_alone(digits: Features) -> None:
    lr, weight_decay, steps = 2e-4, 5.0, 30
    seen = list(batches(digits, 64, steps))
    w_0 = noise(8, 16)

    def trained(start: Tensor, taught: int | None) -> Tensor:
        """SGD over all batches, with a teacher that is zero in all of them but one (or in none)."""
        layer = nn.Linear(8, 16, bias=False, dtype=torch.float64)
        layer.weight.data = start.T.clone()
        optimizer = torch.optim.SGD(layer.parameters(), lr=lr, weight_decay=weight_decay)
        for k, batch in enumerate(seen):
            optimizer.zero_grad()
            losses.squared_error(layer(batch.z_s), batch.z_t * (taught is None or k == taught)).backward()
            optimizer.step()
        return layer.weight.detach().T

    whole = trained(w_0, None)
    parts = [trained(w_0, -1)] + [trained(torch.zeros_like(w_0), k) for k in range(steps)]
    close(sum(parts), whole)
    c_s, c_st = (torch.stack(each) for each in zip(*(relations(*batch) for batch in seen), strict=True))
    shares = torch.tensor(
        reference_dynamics.memory_shares(w_0, c_s, c_st, lr=lr, decay=lr * weight_decay), dtype=torch.float64
    )
    close(shares, torch.stack([(part * whole).sum() / (whole * whole).sum() for part in parts]))
    assert shares.sum().item() == pytest.approx(1)
    assert shares[-1] > 3 * shares[1]  # the last batch is remembered better than the first


def test_memory_lengths_are_how_fast_a_start_is_forgotten(digits: Features) -> None:
    c_s, c_st = relations(*digits)
    lr, decay, steps = 1e-5, 1e-3, 200
    _, vectors = torch.linalg.eigh(c_s)
    lengths = reference_dynamics.memory_lengths(c_s, lr=lr, decay=decay)
    one, other = noise(8, 16), noise(8, 16, seed=1)
    before = vectors.T @ (one - other)
    for _ in range(steps):
        one, other = (diagnostics.discrete_step(w, c_s, c_st, lr=lr, decay=decay) for w in (one, other))
    after = vectors.T @ (one - other)
    close(after / before, (-steps / lengths).exp()[:, None].expand(8, 16), rtol=1e-6, atol=1e-9)
    assert lengths[0] > 50 * lengths[-1]  # no one length


def test_the_mean_projector_follows_the_mean_relations(digits: Features) -> None:
    """Over all 3^4 sequences of batches: the expectation itself, not an estimate."""
    lr, decay = 3e-4, 0.02
    seen = [relations(*batch) for batch in batches(digits, 16, 3)]
    w_0 = noise(8, 16)
    ends: list[Tensor] = []
    for order in itertools.product(seen, repeat=4):
        w = w_0
        for c_s, c_st in order:
            w = diagnostics.discrete_step(w, c_s, c_st, lr=lr, decay=decay)
        ends.append(w)
    mean_s, mean_st = (torch.stack(each).mean(0) for each in zip(*seen, strict=True))
    w = w_0
    for _ in range(4):
        w = diagnostics.discrete_step(w, mean_s, mean_st, lr=lr, decay=decay)
    close(torch.stack(ends).mean(0), w)
    assert (torch.stack(ends) - w).abs().max() > 0.01


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.1])
def test_whitened_batches_make_an_exact_moving_average(digits: Features, decay: float) -> None:
    lr, steps = 0.1, 300
    w = torch.zeros(8, 16, dtype=torch.float64)
    average = torch.zeros_like(w)
    beta = 1 - decay - lr
    for batch in batches(digits, 64, steps):
        c_s, c_st = relations(whitened(batch.z_s), batch.z_t)
        w = diagnostics.discrete_step(w, c_s, c_st, lr=lr, decay=decay)
        average = beta * average + (1 - beta) * c_st
    close(w, lr / (lr + decay) * average, rtol=1e-8, atol=1e-8)


def test_without_whitening_the_moving_average_needs_tiny_steps(digits: Features) -> None:
    """Dropping ``C_s W`` is allowed where lr s is far below decay, and wrong for eta = alpha_p on real features."""
    seen = [relations(batch.z_s / 8, batch.z_t / 8) for batch in batches(digits, 64, 400)]  # means over the rows
    greatest = max(torch.linalg.eigvalsh(c_s)[-1].item() for c_s, _ in seen)

    def error(lr: float, decay: float) -> float:
        w = average = torch.zeros(8, 16, dtype=torch.float64)
        for c_s, c_st in seen:
            w = diagnostics.discrete_step(w, c_s, c_st, lr=lr, decay=decay)
            average = (1 - decay) * average + lr * c_st
        return ((w - average).norm() / average.norm()).item()

    decay = 0.02
    assert error(0.01 * decay / greatest, decay) < 0.01
    assert error(decay, decay) > 0.5
    usual = reference_dynamics.memory_lengths(
        seen[0][0], lr=0.1 * 2 / 16, decay=0.1 * 5e-4
    )  # mean_squared_error, as in recipes
    assert usual.min() < 10
    assert usual[0] > 50 * usual.min()
    assert usual.max() < 0.5 / (0.1 * 5e-4)


def test_agreement_is_the_correlation_of_the_outputs(digits: Features) -> None:
    w, v = noise(8, 16), noise(8, 16, seed=1)
    found = diagnostics.agreement(w, v, diagnostics.self_relation(digits.z_s, centered=True))
    outputs = zip((digits.z_s @ w).T, (digits.z_s @ v).T, strict=True)
    close(found, torch.stack([torch.corrcoef(torch.stack(both))[0, 1] for both in outputs]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), exponents=st.lists(st.integers(-12, 12), min_size=4, max_size=4))
def test_agreement_ignores_scales_and_what_no_feature_has(seed: int, exponents: list[int]) -> None:
    z = noise(3, 5, seed=seed)  # two of five directions are not there
    w, v = noise(5, 4, seed=seed + 1), noise(5, 4, seed=seed + 2)
    c_s = diagnostics.self_relation(z)
    found = diagnostics.agreement(w, v, c_s)
    scales = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    unseen = (torch.eye(5, dtype=torch.float64) - torch.linalg.pinv(z) @ z) @ noise(5, 4, seed=seed + 3)
    close(diagnostics.agreement(w * scales, v, c_s), found, atol=1e-9)
    close(diagnostics.agreement(w + unseen, v, c_s), found, atol=1e-9)
    close(diagnostics.agreement(v, w, c_s), found, atol=1e-9)
    close(diagnostics.agreement(w, -w * scales, c_s), -torch.ones(4, dtype=torch.float64), atol=1e-9)
    assert torch.equal(diagnostics.agreement(w * 0, v, c_s), torch.zeros(4, dtype=torch.float64))


def test_a_trained_projector_agrees_with_the_past_more_than_with_the_last_batch(digits: Features) -> None:
    layer = projectors.linear(8, 16).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    past = [torch.zeros(8, 8, dtype=torch.float64), torch.zeros(8, 16, dtype=torch.float64)]
    now = past
    for batch in batches(digits, 16, 1500):
        optimizer.zero_grad()
        losses.mean_squared_error(layer(batch.z_s), batch.z_t).backward()
        optimizer.step()
        now = list(relations(*batch))
        past = [total + each for total, each in zip(past, now, strict=True)]
    w = layer.weight.detach().T
    with_past = diagnostics.agreement(w, diagnostics.fixed_point(past[0], past[1]), past[0])
    with_now = diagnostics.agreement(w, diagnostics.fixed_point(now[0], now[1]), past[0])
    assert 1 - with_past.mean() < 0.3 * (1 - with_now.mean())


# Behind a batch norm


def term(form: str, *, eps: float = 1e-4) -> FeatureTerm:
    return FeatureTerm(
        "s",
        "t",
        projector=projectors.linear(8, 16).double(),
        student_norm=norms.BatchNorm(16, eps=eps),
        teacher_norm=norms.BatchNorm(16, eps=eps),
        loss=losses.log_sum if form == "log_sum" else None,
        correlation_loss=losses.log_correlation if form == "log_correlation" else None,
    )


def value_of(each: FeatureTerm, batch: Features) -> Tensor:
    empty = torch.zeros(len(batch.z_s))
    return each(Captured(empty, {"s": batch.z_s}), Captured(empty, {"t": batch.z_t}))


def gradient_of(each: FeatureTerm, batch: Features) -> Tensor:
    """In the paper's layout."""
    (gradient,) = torch.autograd.grad(value_of(each, batch), list(each.projector.parameters()))
    return gradient.T


def weight_of(each: FeatureTerm) -> Tensor:
    (weight,) = each.projector.parameters()
    return weight.detach().T


both_forms = pytest.mark.parametrize("form", ["log_sum", "log_correlation"])


class Moments(NamedTuple):
    """All that a loss of the correlation sees of a batch: covariance, cross-covariance, the teacher's variances."""

    s: Tensor
    c: Tensor
    v_t: Tensor


def moments(batch: Features) -> Moments:
    n = len(batch.z_s)
    c_s, c_st = relations(*batch, centered=True)
    return Moments(c_s / n, c_st / n, batch.z_t.var(0, correction=0))


def correlation_by_moments(w: Tensor, m: Moments, eps: float) -> Tensor:
    v = (w * (m.s @ w)).sum(0)
    return (w * m.c).sum(0) / ((v + eps) * (m.v_t + eps)).sqrt()


def test_the_correlation_is_a_function_of_five_moments(digits: Features) -> None:
    w, eps = noise(8, 16).requires_grad_(), 1e-2
    a, t = norms.BatchNorm(16, eps=eps)(digits.z_s @ w), norms.BatchNorm(16, eps=eps)(digits.z_t)
    c, m = losses.correlation(a, t), moments(digits)
    close(correlation_by_moments(w, m, eps), c)
    # Its gradient, by hand: C[:, j] / sqrt((v_j + eps) (var_t[j] + eps)) - c_j S w_j / (v_j + eps).
    (gradient,) = torch.autograd.grad(c.sum(), w, retain_graph=True)
    v = (w * (m.s @ w)).sum(0)
    close(gradient, m.c / ((v + eps) * (m.v_t + eps)).sqrt() - c * (m.s @ w) / (v + eps))


def test_the_gradient_of_the_features_needs_the_moments_alone(digits: Features) -> None:
    """dL/dz_s[n] = 1/N ( 2 dL/dS (z_s[n] - mean) + dL/dC (z_t[n] - mean) )."""
    w, eps = noise(8, 16), 1e-2
    z_s = digits.z_s.clone().requires_grad_()
    a, t = norms.BatchNorm(16, eps=eps)(z_s @ w), norms.BatchNorm(16, eps=eps)(digits.z_t)
    losses.log_correlation(losses.correlation(a, t)).backward()
    s, c, v_t = (each.requires_grad_() for each in moments(digits))
    losses.log_correlation(correlation_by_moments(w, Moments(s, c, v_t), eps)).backward()
    assert s.grad is not None
    assert c.grad is not None
    centered_s, centered_t = digits.z_s - digits.z_s.mean(0), digits.z_t - digits.z_t.mean(0)
    by_hand = (centered_s @ (s.grad + s.grad.T) + centered_t @ c.grad.T) / len(z_s)
    assert z_s.grad is not None
    close(z_s.grad, by_hand, rtol=1e-9)


def test_the_moments_of_a_batch_are_not_those_of_its_parts(digits: Features) -> None:
    parts = Features(digits.z_s[:900], digits.z_t[:900]), Features(digits.z_s[900:], digits.z_t[900:])
    w, eps = noise(8, 16), 1e-4
    whole = correlation_by_moments(w, moments(digits), eps)
    shares = [len(part.z_s) / len(digits.z_s) for part in parts]
    mean = sum(share * correlation_by_moments(w, moments(part), eps) for share, part in zip(shares, parts, strict=True))
    assert (whole - mean).abs().max() > 1e-3
    # What can be summed are the uncentered relations, and sums of the features; from these the rest follows.
    n = len(digits.z_s)
    c_s, c_st = (sum(each) / n for each in zip(*(relations(*part) for part in parts), strict=True))
    m_s, m_t = (sum(each.sum(0) for each in side) / n for side in zip(*parts, strict=True))
    square_t = sum(part.z_t.square().sum(0) for part in parts) / n
    summed = Moments(c_s - torch.outer(m_s, m_s), c_st - torch.outer(m_s, m_t), square_t - m_t**2)
    close(correlation_by_moments(w, summed, eps), whole, rtol=1e-9, atol=1e-9)


@both_forms
def test_the_loss_of_a_batch_is_not_the_mean_of_its_parts(digits: Features, form: str) -> None:
    each = term(form)
    batch = Features(digits.z_s[:64], digits.z_t[:64])
    parts = [Features(batch.z_s[k::4], batch.z_t[k::4]) for k in range(4)]
    whole = gradient_of(each, batch)
    mean = torch.stack([gradient_of(each, part) for part in parts]).mean(0)
    assert (whole - mean).norm() > 0.1 * whole.norm()


@both_forms
def test_gradients_are_orthogonal_to_columns_up_to_eps(digits: Features, form: str) -> None:
    """<w_j, g_j> = eps / (v_j + eps) sum_n a[n,j] dL/da[n,j], whatever the loss behind the norm is."""
    for eps, scale in ((1e-4, 1.0), (1e-2, 0.1), (1.0, 1.0)):
        each = term(form, eps=eps)
        each.projector.weight.data *= scale
        a = each.student_norm(digits.z_s @ weight_of(each)).requires_grad_()
        t = each.teacher_norm(digits.z_t)
        if form == "log_sum":
            losses.log_sum(a, t).backward()
        else:
            losses.log_correlation(losses.correlation(a, t)).backward()
        assert a.grad is not None
        w, g = weight_of(each), gradient_of(each, digits)
        v = (digits.z_s @ w).var(0, correction=0)
        inner = (w * g).sum(0)
        close(inner, eps / (v + eps) * (a.detach() * a.grad).sum(0), atol=1e-10)
        cosine = inner.abs() / (w.norm(dim=0) * g.norm(dim=0))
        if eps == 1e-4:
            assert cosine.max() < 1e-3
        else:
            assert cosine.max() > 0.02


@both_forms
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_column_norms_under_sgd(digits: Features, form: str, weight_decay: float) -> None:
    each, lr = term(form, eps=1e-12), 0.2
    optimizer = torch.optim.SGD(each.parameters(), lr=lr, weight_decay=weight_decay)
    first = weight_of(each).square().sum(0)
    for batch in batches(digits, 64, 100):
        w, g = weight_of(each).clone(), gradient_of(each, batch)
        optimizer.zero_grad()
        value_of(each, batch).backward()
        optimizer.step()
        after = weight_of(each).square().sum(0)
        close(after, reference_dynamics.column_norm_step(w, g, lr=lr, decay=lr * weight_decay), rtol=1e-8)
        if weight_decay == 0:
            assert (after > w.square().sum(0)).all()  # every column, at every step
    assert (after > 1.05 * first).all() if weight_decay == 0 else (after < first).any()


@both_forms
def test_the_eps_of_the_paper_is_felt_by_the_predicted_norms_as_quantified(digits: Features, form: str) -> None:
    each, lr, decay = term(form), 0.2, 0.02
    optimizer = torch.optim.SGD(each.parameters(), lr=lr, weight_decay=decay / lr)
    worst = 0.0
    for batch in batches(digits, 64, 50):
        w, g = weight_of(each).clone(), gradient_of(each, batch)
        optimizer.zero_grad()
        value_of(each, batch).backward()
        optimizer.step()
        after, predicted = (
            weight_of(each).square().sum(0),
            reference_dynamics.column_norm_step(w, g, lr=lr, decay=decay),
        )
        close(after, predicted - 2 * lr * (1 - decay) * (w * g).sum(0))
        worst = max(worst, ((after - predicted) / after).abs().max().item())
    assert 1e-6 < worst < 0.01  # of the square, in one step


def test_singular_values_are_free_behind_a_batch_norm(digits: Features) -> None:
    """Other spectra, other ranks by count even, with the same outputs."""
    each = term("log_correlation", eps=1e-12)
    before, loss = torch.linalg.svdvals(weight_of(each)), value_of(each, digits)
    each.projector.weight.data *= torch.logspace(-2, 1, 16, dtype=torch.float64)[:, None]
    after = torch.linalg.svdvals(weight_of(each))
    close(value_of(each, digits), loss, rtol=1e-6)
    assert before[-1] > 0.1 * before[0]
    assert after[-1] < 0.1 * after[0]


@both_forms
def test_column_norms_come_to_their_equilibrium(digits: Features, form: str) -> None:
    each, lr, decay = term(form, eps=1e-12), 0.2, 0.01
    optimizer = torch.optim.SGD(each.parameters(), lr=lr, weight_decay=decay / lr)
    norms_, gradients, predicted = [], [], []
    for step, batch in enumerate(batches(digits, 64, 1000)):
        optimizer.zero_grad()
        value_of(each, batch).backward()
        w, g = weight_of(each).clone(), each.projector.weight.grad.T.clone()
        optimizer.step()
        if step >= 400:
            norms_.append(w.norm(dim=0))
            gradients.append(g.norm(dim=0))
            predicted.append(reference_dynamics.equilibrium_column_norms(w, g, lr=lr, decay=decay))
    w_norm, g_norm, rest = torch.stack(norms_), torch.stack(gradients), torch.stack(predicted)
    fourth = (rest.pow(4).mean(0) / w_norm.pow(4).mean(0)) ** 0.25
    assert fourth.max() < 1.02  # an estimate from below
    if form == "log_sum":
        squares = lr**2 * g_norm.square().mean(0) / ((2 * decay - decay**2) * w_norm.square().mean(0))
        assert (squares - 1).abs().max() < 0.1
        assert fourth.min() > 0.9
    else:  # channels that match are left alone, but for rare batches: their norms live from single large steps
        assert fourth.min() < 0.8


def test_equilibrium_is_the_rest_point_of_a_step() -> None:
    w, g = noise(8, 16), noise(8, 16, seed=1)
    rest = reference_dynamics.equilibrium_column_norms(w, g, lr=0.1, decay=0.01)
    # A column of another norm has a gradient that is as much smaller as the column is larger.
    at_rest = w / w.norm(dim=0) * rest, g * w.norm(dim=0) / rest
    close(reference_dynamics.column_norm_step(*at_rest, lr=0.1, decay=0.01), rest**2)
    angle = 0.1 * at_rest[1].norm(dim=0) / rest  # the same for every column
    close(angle, torch.full((16,), math.sqrt(2 * 0.01 - 0.01**2), dtype=torch.float64))


def test_under_batch_norm_the_best_columns_point_to_least_squares(digits: Features) -> None:
    """For every loss that falls with each c_j; c_j is then the multiple correlation of t_j with all of z_s."""
    best = diagnostics.fixed_point(*relations(*digits, centered=True))
    m = moments(digits)
    c = correlation_by_moments(best, m, 0.0)
    residual = digits.z_t - digits.z_s @ best
    close(c.square(), 1 - residual.var(0, correction=0) / m.v_t, rtol=1e-9)
    for seed in range(20):
        assert (correlation_by_moments(best + 0.01 * noise(8, 16, seed=seed), m, 0.0) < c).all()
    each, far = term("log_correlation", eps=1e-12), term("log_sum", eps=1e-12)
    for one in (each, far):
        one.projector.weight.data = best.T.clone()
    assert gradient_of(each, digits).norm() < 1e-8
    assert gradient_of(far, digits).norm() > 1e-2  # fourth powers of single elements have another optimum


# LogSum


def test_the_mean_squared_difference_is_twice_one_minus_the_correlation(digits: Features) -> None:
    w = noise(8, 16)
    for eps in (1e-12, 1e-2, 1.0):
        a, t = norms.BatchNorm(16, eps=eps)(digits.z_s @ w), norms.BatchNorm(16, eps=eps)(digits.z_t)
        c, difference = losses.correlation(a, t), (a - t).square().mean(0)
        v, v_t = (digits.z_s @ w).var(0, correction=0), digits.z_t.var(0, correction=0)
        close(difference, v / (v + eps) + v_t / (v_t + eps) - 2 * c)
        if eps == 1e-12:
            close(difference, 2 * (1 - c), rtol=1e-9)


def test_the_two_forms_agree_where_their_powers_are_two_and_one(digits: Features) -> None:
    a, t = norms.BatchNorm(16, eps=1e-12)(digits.z_s @ noise(8, 16)), norms.BatchNorm(16, eps=1e-12)(digits.z_t)
    c, n = losses.correlation(a, t), len(a)
    elementwise = losses.log_sum(a, t, alpha=2, eps=1e-15)
    close(elementwise, math.log(2 * n) + losses.log_correlation(c, alpha=1, eps=1e-15), rtol=1e-9)
    apart = losses.log_sum(a, t, alpha=4, eps=1e-15) - losses.log_correlation(c, alpha=2, eps=1e-15)
    assert (apart - math.log(4 * n)).abs() > 0.1  # not where the powers are 4 and 2


@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0, 5.0])
def test_the_pull_of_logsum_is_alpha(digits: Features, alpha: float) -> None:
    """sum_i d_i dL/dd_i = alpha for every batch, width and size of the residual; both forms."""
    for rows, width, size in ((64, 16, 1.0), (1797, 16, 1.0), (64, 4, 1.0), (64, 16, 1e-3)):
        d = (size * whitened(digits.z_t)[:rows, :width]).requires_grad_()
        (gradient,) = torch.autograd.grad(losses.log_sum(d, torch.zeros_like(d), alpha=alpha, eps=1e-40), d)
        assert (d * gradient).sum().item() == pytest.approx(alpha)
        share = d.detach().abs() ** (alpha - 1) / (d.detach().abs() ** alpha).sum()
        close(gradient.abs() / alpha, share, rtol=1e-9)
        one_minus_c = d.detach().abs().mean(0).requires_grad_()
        value = losses.log_correlation(1 - one_minus_c, alpha=alpha, eps=1e-40)
        (gradient,) = torch.autograd.grad(value, one_minus_c)
        assert (one_minus_c * gradient).sum().item() == pytest.approx(alpha)


def test_the_gradient_of_logsum_grows_as_the_residual_shrinks(digits: Features) -> None:
    def steepness(size: float, eps: float) -> float:
        d = (size * digits.z_t).requires_grad_()
        (gradient,) = torch.autograd.grad(losses.log_sum(d, torch.zeros_like(d), eps=eps), d)
        return gradient.norm().item()

    for size in (0.1, 0.01, 0.001):
        assert steepness(size, 1e-30) == pytest.approx(steepness(1.0, 1e-30) / size)
    assert steepness(1e-6, 1e-8) < steepness(1.0, 1e-8)  # the eps ends it


@both_forms
def test_the_gradient_of_logsum_does_not_depend_on_the_number_of_rows(digits: Features, form: str) -> None:
    each = term(form)
    twice = Features(torch.cat([digits.z_s] * 2), torch.cat([digits.z_t] * 2))
    close(gradient_of(each, twice), gradient_of(each, digits), rtol=1e-9)


# Errors, by what they say

BAD: dict[str, tuple[Callable[[], object], str]] = {
    "rows": (
        lambda: diagnostics.cross_relation(torch.ones(3, 2), torch.ones(4, 2)),
        "cross_relation: features are (3, 2) and (4, 2); expected (n, d_s) and (n, d_t)",
    ),
    "no rows": (
        lambda: diagnostics.self_relation(torch.ones(0, 2)),
        "self_relation: features are (0, 2) and (0, 2); expected (n, d_s) and (n, d_t)",
    ),
    "integers": (
        lambda: diagnostics.self_relation(torch.ones(3, 2, dtype=torch.int64)),
        "self_relation: features are torch.int64 and torch.int64; expected floating point",
    ),
    "square": (
        lambda: diagnostics.fixed_point(torch.ones(3, 2), torch.ones(3, 2)),
        "fixed_point: c_s is (3, 2); expected (d_s, d_s)",
    ),
    "layout of nn.Linear": (
        lambda: diagnostics.gradient_flow(torch.eye(3), torch.ones(3, 2), torch.ones(2, 3)),
        "gradient_flow: c_s is (3, 3), the rest (3, 2), (2, 3); expected (d_s, d_s), (d_s, d_t)",
    ),
    "ridge": (
        lambda: diagnostics.fixed_point(torch.eye(2), torch.eye(2), ridge=-1.0),
        "fixed_point: ridge is -1.0; expected 0 or more",
    ),
    "lr": (
        lambda: diagnostics.discrete_step(torch.eye(2), torch.eye(2), torch.eye(2), lr=0.0),
        "discrete_step: lr is 0.0; expected a number above 0",
    ),
    "decay": (
        lambda: diagnostics.discrete_step(torch.eye(2), torch.eye(2), torch.eye(2), lr=0.1, decay=1.0),
        "discrete_step: decay is 1.0; expected 0 or more, below 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_was_found(name: str) -> None:
    call, message = BAD[name]
    with reference.as_a_user(), pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        call()
