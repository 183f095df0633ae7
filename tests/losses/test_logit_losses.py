"""standardize, standardized_kl, normalized_kl, pearson_distance and multi_level_kl."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
import reference_logits as twins
from limbeck import losses
from reference_logits import Loss, finite_value_and_gradients, gradient, message, pair

torch.set_num_threads(1)


def labels(y: Tensor) -> Tensor:
    return torch.arange(y.shape[0], device=y.device) % y.shape[1]


def normalized(y_s: Tensor, y_t: Tensor) -> Tensor:
    return losses.normalized_kl(y_s, y_t, labels(y_s), temperature=3.0)


PAIRS: dict[str, tuple[Loss, Callable[[Tensor, Tensor], float]]] = {
    "standardized_kl": (losses.standardized_kl, twins.standardized_kl),
    "standardized_kl 1": (
        functools.partial(losses.standardized_kl, temperature=1.0),
        functools.partial(twins.standardized_kl, temperature=1.0),
    ),
    "pearson_distance": (losses.pearson_distance, twins.pearson_distance),
    "pearson_distance 4": (
        functools.partial(losses.pearson_distance, temperature=4.0, beta=2.0, gamma=0.5),
        functools.partial(twins.pearson_distance, temperature=4.0, beta=2.0, gamma=0.5),
    ),
    "multi_level_kl": (losses.multi_level_kl, twins.multi_level_kl),
    "multi_level_kl 1": (
        functools.partial(losses.multi_level_kl, temperatures=[1.0], instance=0.5, batch=2.0, classes=3.0),
        functools.partial(twins.multi_level_kl, temperatures=[1.0], instance=0.5, batch=2.0, classes=3.0),
    ),
}
every_pair = pytest.mark.parametrize("name", PAIRS)

ALL: dict[str, Loss] = {name: loss for name, (loss, _) in PAIRS.items()} | {"normalized_kl": normalized}
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
one_row = pytest.mark.parametrize("name", [name for name in ALL if "pearson" not in name])


# Values and gradients


@every_pair
@pytest.mark.parametrize("shape", [(7, 5), (2, 3), (3, 2), (3, 4, 5)], ids=str)
def test_equals_its_loop_twin(name: str, shape: tuple[int, ...]) -> None:
    loss, twin = PAIRS[name]
    y_s, y_t = pair(*shape)
    assert loss(y_s, y_t).item() == pytest.approx(twin(y_s, y_t), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("name", ["standardized_kl", "multi_level_kl"])
def test_one_row_equals_its_loop_twin(name: str) -> None:
    loss, twin = PAIRS[name]
    y_s, y_t = pair(1, 5)
    assert loss(y_s, y_t).item() == pytest.approx(twin(y_s, y_t), rel=1e-12)


@pytest.mark.parametrize(("temperature", "gamma"), [(1.0, 1.5), (3.0, 3.5), (1.0, 0.0)])
def test_normalized_kl_equals_its_loop_twin(temperature: float, gamma: float) -> None:
    y_s, y_t = pair(7, 5)
    hard = [0, 4, 2, 2, 1, 3, 0]
    value = losses.normalized_kl(y_s, y_t, torch.tensor(hard), temperature=temperature, gamma=gamma)
    twin = twins.normalized_kl(y_s, y_t, hard, temperature=temperature, gamma=gamma)
    assert value.item() == pytest.approx(twin, rel=1e-12)


def test_standardize_equals_its_loop_twin() -> None:
    for shape in [(7, 5), (1, 2), (3, 4, 5)]:
        y = 10 * pair(*shape)[0] + 3
        torch.testing.assert_close(losses.standardize(y), twins.standardize(y))


@every_loss
def test_gradcheck(loss: Loss) -> None:
    y_s, y_t = pair(4, 3)
    assert torch.autograd.gradcheck(loss, (y_s.requires_grad_(), y_t.requires_grad_()))


def test_gradcheck_of_standardize() -> None:
    y, _ = pair(4, 3)
    assert torch.autograd.gradcheck(losses.standardize, (y.requires_grad_(),))


# Against an independent implementation


@pytest.mark.filterwarnings("ignore")  # other people's imports
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_pearson_distance_is_torchdistills(temperature: float) -> None:
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    theirs = mid_level.DISTLoss(".", "output", ".", "output", beta=2.0, gamma=0.5, tau=temperature)
    y_s, y_t = pair(12, 10)
    ours = functools.partial(losses.pearson_distance, temperature=temperature, beta=2.0, gamma=0.5)

    def wrapped(a: Tensor, b: Tensor) -> Tensor:
        return theirs({".": {"output": a}}, {".": {"output": b}})

    torch.testing.assert_close(ours(y_s, y_t), wrapped(y_s, y_t))
    torch.testing.assert_close(gradient(ours, y_s, y_t), gradient(wrapped, y_s, y_t))


@pytest.mark.filterwarnings("ignore")
def test_standardized_kl_is_torchdistills() -> None:
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    theirs = mid_level.LogitStdKDLoss(".", "output", ".", "output", temperature=2.0, alpha=0.0)
    y_s, y_t = pair(12, 10)

    def wrapped(a: Tensor, b: Tensor) -> Tensor:  # without labels it leaves T^2 out
        return 2.0**2 * theirs({".": {"output": a}}, {".": {"output": b}})

    torch.testing.assert_close(losses.standardized_kl(y_s, y_t), wrapped(y_s, y_t), rtol=1e-6, atol=0)
    slopes = gradient(losses.standardized_kl, y_s, y_t), gradient(wrapped, y_s, y_t)
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-8)


# Invariances

floats = st.floats(-5, 5, allow_subnormal=False)


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    # Random with a drawn seed, not drawn element by element: rows and columns that are constant are tests of their own.
    n, k, seed = draw(st.integers(3, 6)), draw(st.integers(3, 5)), draw(st.integers(0, 999))
    return pair(n, k, seed=seed)


@every_pair
@settings(max_examples=15, deadline=None)
@given(both=logit_pairs(), seed=st.integers(0, 99))
def test_neither_the_order_of_samples_nor_of_classes_matters(name: str, both: tuple[Tensor, Tensor], seed: int) -> None:
    loss, (y_s, y_t) = PAIRS[name][0], both
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randperm(y_s.shape[0], generator=generator)
    classes = torch.randperm(y_s.shape[1], generator=generator)
    value = loss(y_s, y_t)
    torch.testing.assert_close(loss(y_s[samples], y_t[samples]), value)
    torch.testing.assert_close(loss(y_s[:, classes], y_t[:, classes]), value)


@every_loss
@settings(max_examples=15, deadline=None)
@given(both=logit_pairs(), shift=floats)
def test_a_constant_for_all_logits_of_a_sample_is_ignored(
    loss: Loss, both: tuple[Tensor, Tensor], shift: float
) -> None:
    y_s, y_t = both
    each = shift * torch.arange(1, y_s.shape[0] + 1, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(loss(y_s + each, y_t - 2 * each), loss(y_s, y_t))


@pytest.mark.parametrize("loss", [losses.standardized_kl, losses.pearson_distance, normalized])
@settings(max_examples=15, deadline=None)
@given(both=logit_pairs())
def test_a_batch_twice_does_not_change_a_mean(loss: Loss, both: tuple[Tensor, Tensor]) -> None:
    y_s, y_t = both
    if loss is normalized:
        twice = losses.normalized_kl(
            torch.cat([y_s, y_s]), torch.cat([y_t, y_t]), torch.cat([labels(y_s)] * 2), temperature=3.0
        )
    else:
        twice = loss(torch.cat([y_s, y_s]), torch.cat([y_t, y_t]))
    torch.testing.assert_close(twice, loss(y_s, y_t))


def test_the_levels_grow_with_the_batch_as_said() -> None:
    y_s, y_t = pair(6, 4)
    for weights, factor in (((1.0, 0.0, 0.0), 1), ((0.0, 1.0, 0.0), 2), ((0.0, 0.0, 1.0), 4)):
        level = functools.partial(
            losses.multi_level_kl, instance=weights[0], batch=weights[1], classes=weights[2], temperatures=(1.0, 3.0)
        )
        torch.testing.assert_close(level(torch.cat([y_s, y_s]), torch.cat([y_t, y_t])), factor * level(y_s, y_t))


def test_the_instance_level_is_kl_divergence_over_temperatures() -> None:
    y_s, y_t = pair(6, 4)
    value = losses.multi_level_kl(y_s, y_t, temperatures=(2.0, 5.0), batch=0.0, classes=0.0)
    single = [losses.kl_divergence(y_s, y_t, temperature=t) for t in (2.0, 5.0)]
    torch.testing.assert_close(value, single[0] + single[1])


def test_the_batch_and_class_level_see_other_samples() -> None:
    y_s, y_t = pair(6, 4)
    for loss in (
        functools.partial(losses.multi_level_kl, instance=0.0, classes=0.0),
        functools.partial(losses.multi_level_kl, instance=0.0, batch=0.0),
        functools.partial(losses.pearson_distance, beta=0.0),
    ):
        halves = (loss(y_s[:3], y_t[:3]) + loss(y_s[3:], y_t[3:])) / 2
        assert abs(halves.item() - loss(y_s, y_t).item()) > 1e-3 * abs(halves.item())


@settings(max_examples=20, deadline=None)
@given(both=logit_pairs(), scale=st.floats(0.1, 10), shift=floats)
def test_standardize_ignores_scale_and_offset(both: tuple[Tensor, Tensor], scale: float, shift: float) -> None:
    y, y_t = both
    z = losses.standardize(y)
    torch.testing.assert_close(losses.standardize(scale * y + shift), z)
    torch.testing.assert_close(losses.standardize(z), z)
    torch.testing.assert_close(z.mean(-1), torch.zeros_like(z[:, 0]))
    torch.testing.assert_close(z.std(-1), torch.ones_like(z[:, 0]))
    assert torch.equal(z.argsort(-1), y.argsort(-1))
    value = losses.standardized_kl(y, y_t)
    torch.testing.assert_close(losses.standardized_kl(scale * y + shift, y_t), value)
    torch.testing.assert_close(losses.standardized_kl(y, scale * y_t + shift), value)
    assert losses.standardized_kl(scale * y + shift, y).item() == pytest.approx(0, abs=1e-12)


def test_standardized_kl_is_kl_divergence_behind_standardize() -> None:
    y_s, y_t = pair(6, 4)
    by_hand = losses.kl_divergence(losses.standardize(y_s), losses.standardize(y_t), temperature=3.0)
    assert torch.equal(losses.standardized_kl(y_s, y_t, temperature=3.0), by_hand)
    decoupled = losses.decoupled_kl(losses.standardize(y_s), losses.standardize(5 * y_t), labels(y_s))
    twin = reference.decoupled_kl(twins.standardize(y_s), twins.standardize(y_t), labels(y_s).tolist())
    assert decoupled.item() == pytest.approx(twin)


@settings(max_examples=20, deadline=None)
@given(both=logit_pairs(), temperature=st.floats(0.5, 8))
def test_pearson_distance_is_between_zero_and_twice_its_weights(
    both: tuple[Tensor, Tensor], temperature: float
) -> None:
    value = losses.pearson_distance(*both, temperature=temperature, beta=2.0, gamma=0.5).item()
    assert 0 <= value <= 2 * (2.0 + 0.5) * temperature**2


def test_pearson_distance_correlates_probabilities() -> None:
    y_s, y_t = pair(6, 4)
    p_s, p_t = y_s.softmax(-1), y_t.softmax(-1)
    inter = [torch.corrcoef(torch.stack([p_s[n], p_t[n]]))[0, 1] for n in range(6)]
    intra = [torch.corrcoef(torch.stack([p_s[:, k], p_t[:, k]]))[0, 1] for k in range(4)]
    value = losses.pearson_distance(y_s, y_t, gamma=0.0)
    torch.testing.assert_close(value, 1 - torch.stack(inter).mean())
    torch.testing.assert_close(losses.pearson_distance(y_s, y_t, beta=0.0), 1 - torch.stack(intra).mean())


def test_pearson_distance_is_exact_for_improbable_classes() -> None:
    # The published eps would take the last class, of about 1e-9 in every sample, for uncorrelated.
    y_s, y_t = pair(8, 4, dtype=torch.float32)
    y_s[:, 3] -= 20
    y_t[:, 3] -= 20
    value = losses.pearson_distance(y_s, y_t, beta=0.0)
    assert value.item() == pytest.approx(twins.pearson_distance(y_s, y_t, beta=0.0), rel=1e-4)


def test_normalized_kl_weighs_the_cross_entropy_and_adds_the_others_of_dkd() -> None:
    y_s, y_t = pair(7, 5)
    target = labels(y_s)
    sure = y_t.softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    weighted = (sure * F.cross_entropy(y_s, target, reduction="none")).mean()
    others = losses.decoupled_kl(y_s, y_t, target, temperature=2.0, alpha=0.0, beta=1.0)
    value = losses.normalized_kl(y_s, y_t, target, temperature=2.0, gamma=3.0)
    torch.testing.assert_close(value, weighted + 3 * others)


def test_normalized_kl_reads_soft_targets_by_their_largest_class() -> None:
    y_s, y_t = pair(7, 5)
    hard = labels(y_s)
    soft = 0.9 * F.one_hot(hard, 5).float() + 0.02
    assert losses.normalized_kl(y_s, y_t, soft).item() == losses.normalized_kl(y_s, y_t, hard).item()


# Precision


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    y_s, y_t = pair(16, 8, dtype=dtype)
    value = loss(y_s.requires_grad_(), y_t)
    value.backward()
    assert value.dtype == torch.float32
    assert y_s.grad is not None
    assert y_s.grad.dtype == dtype
    assert value.item() == loss(y_s.detach().float(), y_t.float()).item()
    assert loss(y_s.detach(), y_t.double()).dtype == torch.float64
    assert losses.standardize(y_s.detach()).dtype == torch.float32


@every_loss
def test_autocast_changes_nothing(loss: Loss) -> None:
    y_s, y_t = pair(16, 8, dtype=torch.float32)
    plain, slope = loss(y_s, y_t), gradient(loss, y_s, y_t)
    y_s.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(y_s, y_t)
    value.backward()
    assert torch.equal(value, plain)
    assert y_s.grad is not None
    assert torch.equal(y_s.grad, slope)


@pytest.mark.gpu
@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_on_a_gpu(loss: Loss, dtype: torch.dtype) -> None:
    y_s, y_t = (y.cuda() for y in pair(16, 8, dtype=torch.float32))
    plain = loss(y_s, y_t)
    with torch.autocast("cuda", dtype=dtype):
        assert torch.equal(loss(y_s, y_t), plain)


# Edges


@one_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_for_one_row(name: str, dtype: torch.dtype) -> None:
    y_s, y_t = pair(1, 4, dtype=dtype)
    finite_value_and_gradients(ALL[name], y_s, y_t)
    finite_value_and_gradients(ALL[name], y_s, y_s)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [2, 9])
def test_finite_at_equality(loss: Loss, dtype: torch.dtype, rows: int) -> None:
    y_s, _ = pair(rows, 4, dtype=dtype)
    finite_value_and_gradients(loss, y_s, y_s)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e4])
def test_finite_at_constant_logits(loss: Loss, dtype: torch.dtype, constant: float) -> None:
    _, y_t = pair(5, 3, dtype=dtype)  # three classes: their probability, 1/3, is rounded
    flat = torch.full_like(y_t, constant)
    finite_value_and_gradients(loss, flat, y_t)
    finite_value_and_gradients(loss, y_t, flat)
    finite_value_and_gradients(loss, flat, flat)


@every_loss
def test_finite_at_huge_and_confident_logits(loss: Loss) -> None:
    y_s, y_t = pair(5, 4, dtype=torch.float32)
    for scale in (30.0, 100.0, 1e6, 1e30):
        finite_value_and_gradients(loss, y_s * scale, y_t * scale)
        finite_value_and_gradients(loss, y_s * scale, y_t)
        finite_value_and_gradients(loss, y_s, y_t * scale)
    finite_value_and_gradients(loss, y_s + 1e6, y_t - 1e6)


@every_pair
def test_zero_at_equality(name: str) -> None:
    loss = PAIRS[name][0]
    y, _ = pair(6, 4)
    assert loss(y, y).item() == pytest.approx(0, abs=1e-14)
    torch.testing.assert_close(gradient(loss, y, y), torch.zeros_like(y), atol=1e-12, rtol=0)


def test_normalized_kl_pulls_past_the_teacher() -> None:
    y, _ = pair(6, 4)
    slope = gradient(normalized, y, y)
    assert (slope.gather(-1, labels(y).unsqueeze(-1)) < 0).all()  # the labelled logit is raised
    others_only = functools.partial(losses.normalized_kl, target=labels(y), gamma=1.0)
    first_only = functools.partial(losses.normalized_kl, target=labels(y), gamma=0.0)
    torch.testing.assert_close(gradient(others_only, y, y), gradient(first_only, y, y), atol=1e-12, rtol=0)


def test_normalized_kl_of_two_classes_has_no_other_part() -> None:
    y_s, y_t = pair(4, 2)
    first = losses.normalized_kl(y_s, y_t, labels(y_s), gamma=0.0)
    torch.testing.assert_close(losses.normalized_kl(y_s, y_t, labels(y_s), gamma=9.0), first)


def test_constant_rows_are_zero_and_get_no_gradient() -> None:
    y, _ = pair(3, 4, dtype=torch.float32)
    y[1] = 0.1  # whose mean is rounded
    y[2] = 1e4
    y.requires_grad_()
    z = losses.standardize(y)
    (z * torch.arange(4)).sum().backward()
    assert not z[1:].any()
    assert y.grad is not None
    assert y.grad[0].any()
    assert not y.grad[1:].any()


def test_constant_probabilities_count_as_uncorrelated() -> None:
    y_s, y_t = pair(4, 3, dtype=torch.float32)
    flat = torch.zeros_like(y_t)
    assert losses.pearson_distance(y_s, flat, beta=1.0, gamma=2.0).item() == 3
    assert not gradient(losses.pearson_distance, y_s, flat).any()


def test_of_two_samples_the_intra_class_part_knows_the_order_alone() -> None:
    y_s, y_t = pair(2, 4)
    loss = functools.partial(losses.pearson_distance, beta=0.0)
    signs = ((y_s.softmax(-1)[0] - y_s.softmax(-1)[1]) * (y_t.softmax(-1)[0] - y_t.softmax(-1)[1])).sign()
    torch.testing.assert_close(loss(y_s, y_t), 1 - signs.mean())
    torch.testing.assert_close(gradient(loss, y_s, y_t), torch.zeros_like(y_s), atol=1e-12, rtol=0)


@every_loss
def test_a_teacher_that_asks_for_no_gradient_gets_none(loss: Loss) -> None:
    y_s, y_t = pair(6, 4)
    before = y_t.clone()
    assert gradient(loss, y_s, y_t).abs().sum() > 0
    assert y_t.grad is None
    assert torch.equal(y_t, before)


# Misuse


@every_loss
def test_shapes_and_types_are_checked_before_the_maths(loss: Loss) -> None:
    y = torch.randn(6, 4)
    assert "student is (6, 1) and teacher (6, 4); expected equal shapes" in message(lambda: loss(y[:, :1], y))
    assert "student is (5, 4) and teacher (6, 4)" in message(lambda: loss(y[:5], y))
    assert "expected (n, d) with at least one row" in message(lambda: loss(y[:0], y[:0]))
    assert "student is torch.int64 and teacher torch.float32" in message(lambda: loss(y.long(), y))


def test_one_sample_has_no_intra_class_part() -> None:
    y_s, y_t = pair(1, 4)
    expected = "pearson_distance: rows in the batch: 1; the correlation over samples needs at least 2"
    assert message(lambda: losses.pearson_distance(y_s, y_t)) == expected
    value = losses.pearson_distance(y_s, y_t, gamma=0.0)
    assert value.item() == pytest.approx(twins.pearson_distance(y_s, y_t, gamma=0.0))


def test_one_class_is_refused() -> None:
    y = torch.randn(6, 1)
    zeros = torch.zeros(6, dtype=torch.int64)
    assert "logits of 1 class" in message(lambda: losses.pearson_distance(y, y))
    assert "logits of 1 class" in message(lambda: losses.normalized_kl(y, y, zeros))
    expected = "logits are (6, 1), torch.float32; expected (n, k), floating point, 2 classes or more"
    assert message(lambda: losses.standardize(y)) == f"standardize: {expected}"
    assert message(lambda: losses.standardized_kl(y, y)) == f"standardized_kl: {expected}"
    for wrong in (y[:, 0], torch.ones(6, 4, dtype=torch.int64), torch.ones(0, 4)):
        assert f"logits are {tuple(wrong.shape)}" in message(lambda wrong=wrong: losses.standardize(wrong))


def test_knobs_out_of_range() -> None:
    y = torch.randn(6, 4)
    assert "standardized_kl: temperature is 0.0" in message(lambda: losses.standardized_kl(y, y, temperature=0.0))
    assert "pearson_distance: temperature is -1.0" in message(lambda: losses.pearson_distance(y, y, temperature=-1.0))
    wrong = functools.partial(losses.normalized_kl, y, y, labels(y), temperature=math.nan)
    assert "normalized_kl: temperature is nan" in message(wrong)
    expected = "multi_level_kl: a temperature is 0.0; expected a number above 0"
    assert message(lambda: losses.multi_level_kl(y, y, temperatures=[2.0, 0.0])) == expected
    assert "got no temperatures" in message(lambda: losses.multi_level_kl(y, y, temperatures=[]))


def test_targets_are_checked() -> None:
    y = torch.randn(6, 4)
    for target in (torch.zeros(5, dtype=torch.int64), torch.zeros(6, 3), torch.zeros(6)):
        text = message(lambda target=target: losses.normalized_kl(y, y, target))
        assert f"normalized_kl: target is {tuple(target.shape)}, {target.dtype}; expected integer labels (6,)" in text
