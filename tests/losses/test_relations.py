import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import reference
import reference_relations as twins
from limbeck import losses
from limbeck.errors import UserError

torch.set_num_threads(1)

Loss = Callable[[Tensor, Tensor], Tensor]

# Each with its twin.
PAIRS: dict[str, tuple[Loss, Callable[[Tensor, Tensor], float]]] = {
    "similarity_preserving": (losses.similarity_preserving, twins.similarity_preserving),
    "relational_distance": (losses.relational_distance, twins.relational_distance),
    "relational_angle": (losses.relational_angle, twins.relational_angle),
    "relational": (losses.relational, twins.relational),
    "relational 1 2": (
        functools.partial(losses.relational, distance_weight=1.0, angle_weight=2.0),
        functools.partial(twins.relational, distance_weight=1.0, angle_weight=2.0),
    ),
    "probabilistic_transfer": (losses.probabilistic_transfer, twins.probabilistic_transfer),
    "probabilistic_transfer 0.01": (
        functools.partial(losses.probabilistic_transfer, eps=0.01),
        functools.partial(twins.probabilistic_transfer, eps=0.01),
    ),
    "correlation_congruence": (losses.correlation_congruence, twins.correlation_congruence),
    "correlation_congruence 2 5": (
        functools.partial(losses.correlation_congruence, gamma=2.0, order=5),
        functools.partial(twins.correlation_congruence, gamma=2.0, order=5),
    ),
    "decorrelation": (losses.decorrelation, twins.decorrelation),
    "decorrelation, covariance": (
        functools.partial(losses.decorrelation, standardized=False),
        functools.partial(twins.decorrelation, standardized=False),
    ),
}
COMPARING = {name: loss for name, (loss, _) in PAIRS.items() if "decorrelation" not in name}
every_pair = pytest.mark.parametrize(("loss", "twin"), PAIRS.values(), ids=PAIRS)
every_loss = pytest.mark.parametrize("loss", [loss for loss, _ in PAIRS.values()], ids=PAIRS)
every_comparing_loss = pytest.mark.parametrize("loss", COMPARING.values(), ids=COMPARING)


def pair(n: int, d_s: int, d_t: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_s = torch.randn(n, d_s, generator=generator, dtype=torch.float64)
    return z_s.to(dtype), torch.randn(n, d_t, generator=generator, dtype=torch.float64).to(dtype)


def finite_value_and_gradients(loss: Loss, z_s: Tensor, z_t: Tensor) -> None:
    z_s, z_t = z_s.clone().requires_grad_(), z_t.clone().requires_grad_()
    value = loss(z_s, z_t)
    value.backward()
    assert value.isfinite()
    assert z_s.grad is not None
    assert z_s.grad.isfinite().all()
    assert z_t.grad is None or z_t.grad.isfinite().all()


def gradient(loss: Loss, z_s: Tensor, z_t: Tensor) -> Tensor:
    z_s = z_s.clone().requires_grad_()
    loss(z_s, z_t).backward()
    assert z_s.grad is not None
    return z_s.grad


# Values and gradients


@every_pair
@pytest.mark.parametrize("shape", [(7, 5, 3), (3, 2, 6), (9, 4, 1)], ids=str)
def test_equals_its_loop_twin(loss: Loss, twin: Callable[[Tensor, Tensor], float], shape: tuple[int, int, int]) -> None:
    z_s, z_t = pair(*shape)
    assert loss(z_s, z_t).item() == pytest.approx(twin(z_s, z_t), rel=1e-11)


@pytest.mark.parametrize("name", ["similarity_preserving", "probabilistic_transfer", "correlation_congruence"])
def test_two_rows_are_enough_for_similarities(name: str) -> None:
    loss, twin = PAIRS[name]
    z_s, z_t = pair(2, 5, 3)
    assert loss(z_s, z_t).item() == pytest.approx(twin(z_s, z_t), rel=1e-11)


@every_loss
def test_gradcheck(loss: Loss) -> None:
    z_s, z_t = pair(4, 3, 2)
    assert torch.autograd.gradcheck(loss, (z_s.requires_grad_(), z_t.requires_grad_()))


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_eps_is_where_a_side_has_no_relation(eps: float) -> None:
    z_s, z_t = pair(5, 3, 2)
    for loss in (losses.similarity_preserving, losses.relational_distance, losses.relational_angle, losses.relational):
        near = z_s * (eps / 100)  # nothing of it is longer than eps
        assert not gradient(functools.partial(loss, eps=eps), near, z_t).any()
        assert gradient(functools.partial(loss, eps=eps), z_s * eps * 100, z_t).any()


# Against torchdistill


def dictionary(z: Tensor) -> dict[str, dict[str, Tensor]]:
    return {"layer": {"output": z}}


def test_similarity_preserving_is_torchdistills_but_for_the_length_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("torchdistill.losses.mid_level").SPKDLoss("layer", "layer", "batchmean")
    # It divides by the sum of the absolute values: the 1 that means the dimension is read as the order of the norm.
    monkeypatch.setattr(theirs, "matmul_and_normalize", lambda z: F.normalize(z @ z.T, dim=1))
    z_s, z_t = pair(9, 5, 7)
    torch.testing.assert_close(losses.similarity_preserving(z_s, z_t), theirs(dictionary(z_s), dictionary(z_t)))


def test_relational_is_torchdistills() -> None:
    theirs = pytest.importorskip("torchdistill.losses.mid_level").RKDLoss("layer", "layer", 25.0, 50.0, "mean")
    z_s, z_t = pair(9, 5, 7)
    torch.testing.assert_close(losses.relational(z_s, z_t), theirs(dictionary(z_s), dictionary(z_t)))
    ours = gradient(losses.relational, z_s, z_t)
    torch.testing.assert_close(ours, gradient(lambda a, t: theirs(dictionary(a), dictionary(t)), z_s, z_t))


def test_probabilistic_transfer_is_torchdistills_but_for_eps() -> None:
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    for eps in (1e-7, 1e-10):
        theirs = mid_level.PKTLoss("layer", "output", "layer", "output", eps=eps)
        z_s, z_t = pair(9, 5, 7)
        value = losses.probabilistic_transfer(z_s, z_t, eps=eps)
        torch.testing.assert_close(value, theirs(dictionary(z_s), dictionary(z_t)), rtol=100 * eps, atol=0)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_correlation_congruence_is_the_square_of_torchdistills(order: int) -> None:
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    theirs = mid_level.CCKDLoss("layer", "layer", {"type": "gaussian", "gamma": 0.4, "max_p": order}, "sum")
    z_s, z_t = pair(9, 5, 7)
    root = theirs(dictionary(F.normalize(z_s)), dictionary(F.normalize(z_t)))
    torch.testing.assert_close(losses.correlation_congruence(z_s, z_t, order=order), root**2 / 81)


# What they ignore

floats = st.floats(-5, 5, allow_subnormal=False)


@st.composite
def feature_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Features on a grid, so that samples are either well apart or the same."""
    n, d_s, d_t = draw(st.integers(3, 6)), draw(st.integers(2, 4)), draw(st.integers(2, 4))
    count = n * (d_s + d_t)
    values = draw(st.lists(st.integers(-20, 20), min_size=count, max_size=count))
    both = torch.tensor(values, dtype=torch.float64).reshape(n, d_s + d_t) / 4
    return both[:, :d_s].contiguous(), both[:, d_s:].contiguous()


def rotation(d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


@every_loss
@settings(max_examples=15, deadline=None)
@given(both=feature_pairs(), seed=st.integers(0, 99))
def test_the_order_of_the_batch_does_not_matter(loss: Loss, both: tuple[Tensor, Tensor], seed: int) -> None:
    z_s, z_t = both
    order = torch.randperm(z_s.shape[0], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(z_s[order], z_t[order]), loss(z_s, z_t))


@every_comparing_loss
@settings(max_examples=15, deadline=None)
@given(both=feature_pairs(), scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_rotations_and_a_common_scale_are_ignored(
    loss: Loss, both: tuple[Tensor, Tensor], scale: float, seed: int
) -> None:
    z_s, z_t = both
    turned = scale * z_s @ rotation(z_s.shape[1], seed), z_t @ rotation(z_t.shape[1], seed + 1) / scale
    torch.testing.assert_close(loss(*turned), loss(z_s, z_t), rtol=1e-6, atol=1e-9)


@every_comparing_loss
@settings(max_examples=15, deadline=None)
@given(both=feature_pairs())
def test_they_are_distances_of_equal_widths(loss: Loss, both: tuple[Tensor, Tensor]) -> None:
    z_s, z_t = both
    assert loss(z_s, z_t).item() >= -1e-12
    # The same relations in another width.
    padded = torch.cat([torch.zeros(z_s.shape[0], 2, dtype=torch.float64), z_s], 1)
    assert loss(z_s, padded).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["relational_distance", "relational_angle", "relational"])
@settings(max_examples=15, deadline=None)
@given(both=feature_pairs(), shift=floats)
def test_relational_losses_ignore_the_mean(name: str, both: tuple[Tensor, Tensor], shift: float) -> None:
    loss, (z_s, z_t) = PAIRS[name][0], both
    torch.testing.assert_close(loss(z_s + shift, z_t - 2 * shift), loss(z_s, z_t), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["probabilistic_transfer", "correlation_congruence"])
def test_cosine_kernels_ignore_the_length_of_every_feature(name: str) -> None:
    loss = PAIRS[name][0]
    z_s, z_t = pair(6, 4, 3)
    lengths = torch.arange(1, 7, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(loss(z_s * lengths, z_t / lengths), loss(z_s, z_t))
    similar = losses.similarity_preserving
    assert not torch.isclose(similar(z_s * lengths, z_t), similar(z_s, z_t))


@pytest.mark.parametrize("name", ["relational_distance", "relational_angle"])
def test_relational_losses_have_no_size_of_the_batch(name: str) -> None:
    loss = PAIRS[name][0]
    small, large = loss(*pair(20, 8, 8)), loss(*pair(100, 8, 8))
    assert large.item() == pytest.approx(small.item(), rel=0.2)
    other = PAIRS["similarity_preserving"][0]
    assert other(*pair(100, 8, 8)).item() < other(*pair(20, 8, 8)).item() / 3


def test_similarities_stay_below_their_bounds() -> None:
    z = pair(8, 4, 4)[0]
    assert losses.similarity_preserving(z, -z).item() == 0  # a rotation
    for seed in range(5):
        z_s, z_t = pair(8, 2, 6, seed=seed)
        assert losses.similarity_preserving(z_s, z_t).item() <= 4 / 8
        assert losses.correlation_congruence(z_s, z_t).item() <= 1


def test_correlation_congruence_goes_to_the_gaussian_kernel() -> None:
    z_s, z_t = (F.normalize(z) for z in pair(6, 4, 3))
    gaussian = [torch.exp(-0.4 * torch.cdist(z, z) ** 2) for z in (z_s, z_t)]
    exact = F.mse_loss(*gaussian)
    errors = [(losses.correlation_congruence(z_s, z_t, order=p) - exact).abs().item() for p in (1, 3, 15)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12


@settings(max_examples=15, deadline=None)
@given(both=feature_pairs(), scale=st.floats(0.1, 10), shift=floats)
def test_decorrelation_is_the_mean_squared_correlation(both: tuple[Tensor, Tensor], scale: float, shift: float) -> None:
    z_s, z_t = both
    value = losses.decorrelation(z_s, z_t)
    assert -1e-12 <= value.item() <= 1 + 1e-12
    scales = scale * torch.arange(1, z_s.shape[1] + 1)
    torch.testing.assert_close(losses.decorrelation(z_s * scales + shift, z_t), value, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(losses.decorrelation(z_s, z_t * 7), value, rtol=0, atol=0)
    if z_s.std(0).min() > 1e-3:
        correlations = torch.corrcoef(z_s.T) - torch.eye(z_s.shape[1])
        d = z_s.shape[1]
        torch.testing.assert_close(value, correlations.square().sum() / (d * (d - 1)))


def test_decorrelation_is_zero_for_whitened_features_and_has_a_floor_in_small_batches() -> None:
    whitened = rotation(8)[:, :7]
    whitened = torch.linalg.qr(whitened - whitened.mean(0))[0]
    assert losses.decorrelation(whitened, whitened).item() == pytest.approx(0, abs=1e-25)
    n, d = 5, 9
    z_s, z_t = pair(n, d, 2)
    floor = (d / (n - 1) - 1) / (d - 1)
    assert losses.decorrelation(z_s, z_t).item() > floor
    z_s.requires_grad_()
    optimizer = torch.optim.Adam([z_s], lr=0.02)
    for _ in range(800):
        optimizer.zero_grad()
        losses.decorrelation(z_s, z_t).backward()
        optimizer.step()
    assert losses.decorrelation(z_s, z_t).item() == pytest.approx(floor, rel=1e-3)


def test_independent_channels_have_the_chance_level() -> None:
    z_s, z_t = pair(101, 60, 2)
    assert losses.decorrelation(z_s, z_t).item() == pytest.approx(1 / 100, rel=0.1)


def test_decorrelation_never_reads_the_teacher() -> None:
    z_s, z_t = pair(6, 4, 3)
    value = losses.decorrelation(z_s.requires_grad_(), torch.full_like(z_t, math.nan).requires_grad_())
    torch.testing.assert_close(value, losses.decorrelation(z_s, z_t))


# Angles in blocks


class Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *[leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]])
        return made


def angles_at_once(z_s: Tensor, z_t: Tensor) -> Tensor:
    cosines: list[Tensor] = []
    for z in (z_s, z_t):
        directions = F.normalize(z[None] - z[:, None], dim=2)
        cosines.append(directions @ directions.mT)
    return F.smooth_l1_loss(*cosines)


def test_angles_in_blocks_are_the_angles_at_once() -> None:
    z_s, z_t = pair(150, 6, 9)
    with Sizes() as whole:
        expected = angles_at_once(z_s.requires_grad_(), z_t.requires_grad_())
        expected_grads = torch.autograd.grad(expected, (z_s, z_t))
    with Sizes() as blocks:
        value = losses.relational_angle(z_s, z_t)
        grads = torch.autograd.grad(value, (z_s, z_t))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grads, expected_grads)
    assert blocks.largest < 2**21 < whole.largest == 150**3


def test_blocks_keep_nothing_for_the_backward_pass() -> None:
    def saved(loss: Loss, z_s: Tensor, z_t: Tensor) -> int:
        sizes: list[int] = []

        def count(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            loss(z_s, z_t)
        return sum(sizes)

    z_s, z_t = pair(150, 6, 9, dtype=torch.float32)
    z_s.requires_grad_()
    assert saved(angles_at_once, z_s, z_t) > 2 * 150**3
    assert saved(losses.relational_angle, z_s, z_t) < 20 * 150**2


# Precision


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    z_s, z_t = pair(16, 8, 5, dtype=dtype)
    value = loss(z_s.requires_grad_(), z_t)
    value.backward()
    assert value.dtype == torch.float32
    assert z_s.grad is not None
    assert z_s.grad.dtype == dtype
    assert value.item() == loss(z_s.detach().float(), z_t.float()).item()


@every_loss
def test_the_wider_of_two_precisions_is_kept(loss: Loss) -> None:
    z_s, z_t = pair(6, 4, 3)
    assert loss(z_s, z_t.float()).dtype == torch.float64
    assert loss(z_s.bfloat16(), z_t.float()).dtype == torch.float32


@every_loss
def test_autocast_changes_nothing(loss: Loss) -> None:
    z_s, z_t = pair(16, 8, 5, dtype=torch.float32)
    plain, plain_grad = loss(z_s, z_t), gradient(loss, z_s, z_t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        start = z_s.clone().requires_grad_()
        value = loss(start, z_t)
    value.backward()
    assert value.item() == plain.item()
    assert start.grad is not None
    assert torch.equal(start.grad, plain_grad)


def test_autocast_changes_no_block() -> None:
    z_s, z_t = pair(150, 6, 9, dtype=torch.float32)
    plain, plain_grad = losses.relational_angle(z_s, z_t), gradient(losses.relational_angle, z_s, z_t)
    start = z_s.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = losses.relational_angle(start, z_t)
    value.backward()
    assert value.item() == plain.item()
    assert start.grad is not None
    assert torch.equal(start.grad, plain_grad)


@pytest.mark.gpu
@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_on_a_gpu(loss: Loss, dtype: torch.dtype) -> None:
    z_s, z_t = (z.cuda() for z in pair(16, 8, 5, dtype=torch.float32))
    plain = loss(z_s, z_t)
    with torch.autocast("cuda", dtype=dtype):
        assert torch.equal(loss(z_s, z_t), plain)


def test_near_samples_keep_their_distances_and_angles_in_float32() -> None:
    # A cluster of relative size 1e-4: products of features in float32 know nothing of it.
    z_s, z_t = pair(8, 6, 5)
    z_s, z_t = 1 + 1e-4 * z_s.float().double(), z_t.float()
    exact = losses.relational(z_s.float().double(), z_t.double())
    torch.testing.assert_close(losses.relational(z_s.float(), z_t).double(), exact, rtol=1e-4, atol=0)


def test_two_near_samples_among_far_ones_keep_their_angles_in_float32() -> None:
    z_s, z_t = pair(8, 6, 5, dtype=torch.float32)
    for z in (z_s, z_t):
        z[1] = z[0] + 1e-3 * z[2]
    exact, exact_grad = twins.relational(z_s, z_t), gradient(losses.relational, z_s.double(), z_t.double())
    assert losses.relational(z_s, z_t).item() == pytest.approx(exact, rel=1e-4)
    found = gradient(losses.relational, z_s, z_t).double()
    assert (found - exact_grad).norm() < 1e-3 * exact_grad.norm()


# Edges


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [3, 9])
def test_finite_at_equality(loss: Loss, dtype: torch.dtype, rows: int) -> None:
    z_s, _ = pair(rows, 4, 4, dtype=dtype)
    finite_value_and_gradients(loss, z_s, z_s)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [0.0, 1.0, 1e4])
def test_finite_at_constant_features(loss: Loss, dtype: torch.dtype, constant: float) -> None:
    z_s, z_t = pair(5, 4, 3, dtype=dtype)
    flat_s, flat_t = torch.full_like(z_s, constant), torch.full_like(z_t, constant)
    finite_value_and_gradients(loss, flat_s, z_t)
    finite_value_and_gradients(loss, z_s, flat_t)
    finite_value_and_gradients(loss, flat_s, flat_t)


@every_loss
def test_finite_at_huge_features(loss: Loss) -> None:
    z_s, z_t = pair(5, 4, 3, dtype=torch.float32)
    finite_value_and_gradients(loss, z_s + 1e6, z_t - 1e6)
    finite_value_and_gradients(loss, z_s * 1e6, z_t * 1e6)


@every_comparing_loss
def test_gradients_stay_small_where_some_samples_coincide_or_vanish(loss: Loss) -> None:
    z_s, z_t = pair(7, 4, 3, dtype=torch.float32)
    for z in (z_s, z_t):
        z[1] = z[0]
        z[3] = z[2] + 1e-7
        z[4] = 0
        z[6] = -z[5]
    for scale in (1.0, 1e3):
        finite_value_and_gradients(loss, z_s * scale, z_t)
        finite_value_and_gradients(loss, z_s, z_t * scale)
        assert gradient(loss, z_s * scale, z_t).abs().max() < 1e3


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_samples_that_coincide_have_no_direction_in_float32(scale: float) -> None:
    z_s, z_t = (z * scale for z in pair(7, 40, 30, dtype=torch.float32))
    z_s[1] = z_s[0]
    z_t[3] = z_t[2]
    assert losses.relational(z_s, z_t).item() == pytest.approx(twins.relational(z_s, z_t), rel=1e-5)
    assert gradient(losses.relational, z_s, z_t).abs().max() < 100 / scale


@every_comparing_loss
def test_value_and_gradient_at_equality_are_zero(loss: Loss) -> None:
    z, _ = pair(5, 4, 4)
    assert loss(z, z).item() == 0
    torch.testing.assert_close(gradient(loss, z, z), torch.zeros_like(z), atol=1e-12, rtol=0)


def test_opposite_features_are_possible_neighbors() -> None:
    z_s, z_t = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for a, t in ((z_s, z_t), (z_t, z_s)):
        finite_value_and_gradients(losses.probabilistic_transfer, a, t)
    expected = 0.5 * (math.log(0.5 / 1) + math.log(0.5 / 1e-7)) / 2  # both rows of 2, over 4
    assert losses.probabilistic_transfer(z_s, z_t).item() == pytest.approx(expected, rel=1e-4)


def test_a_constant_channel_correlates_with_nothing() -> None:
    z_s, z_t = pair(6, 4, 3)
    z_s[:, 2] = 7.0
    others = losses.decorrelation(z_s[:, [0, 1, 3]], z_t)
    torch.testing.assert_close(losses.decorrelation(z_s, z_t), others * (3 * 2) / (4 * 3))
    assert not gradient(losses.decorrelation, z_s, z_t)[:, 2].any()


# Gradient


@every_loss
def test_a_teacher_that_asks_for_no_gradient_gets_none(loss: Loss) -> None:
    z_s, z_t = pair(6, 4, 3)
    before = z_t.clone()
    loss(z_s.requires_grad_(), z_t).backward()
    assert z_s.grad is not None
    assert z_s.grad.abs().sum() > 0
    assert z_t.grad is None
    assert torch.equal(z_t, before)
    assert not loss(z_s.detach(), z_t).requires_grad


# Misuse


def message(call: Callable[[], object]) -> str:
    with reference.as_a_user(), pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_loss
def test_shapes_and_types_are_checked_before_the_maths(loss: Loss) -> None:
    x = torch.randn(6, 4)
    rule = "expected (n, d_s) and (n, d_t), with the same rows"
    assert f"student is (5, 4) and teacher (6, 4); {rule}" in message(lambda: loss(x[:5], x))
    assert f"student is (6, 2, 2) and teacher (6, 4); {rule}" in message(lambda: loss(x.reshape(6, 2, 2), x))
    assert f"student is (6, 4) and teacher (6,); {rule}" in message(lambda: loss(x, x[:, 0]))
    assert "rows, and a column" in message(lambda: loss(x[:, :0], x))
    assert "rows, and a column" in message(lambda: loss(x, x[:, :0]))
    assert "student is torch.int64 and teacher torch.float32" in message(lambda: loss(x.long(), x))


@pytest.mark.parametrize("name", [name for name in PAIRS if " " not in name])
def test_a_batch_too_small_for_relations_is_refused(name: str) -> None:
    loss = PAIRS[name][0]
    least = 3 if "relational" in name else 2
    x = torch.randn(least - 1, 4)
    found = message(lambda: loss(x, x))
    assert found.endswith(f"expected at least {least} rows, and a column")
    assert found.startswith(f"{name}: ")
    loss(torch.randn(least, 4), torch.randn(least, 3))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_knobs_are_checked(bad: float) -> None:
    x = torch.randn(4, 3)
    for loss in (
        losses.similarity_preserving,
        losses.relational_distance,
        losses.relational_angle,
        losses.relational,
        losses.probabilistic_transfer,
    ):
        found = message(functools.partial(loss, x, x, eps=bad))
        assert found == f"{loss.__name__}: eps is {bad}; expected a number above 0"
    assert "gamma is" in message(lambda: losses.correlation_congruence(x, x, gamma=bad))


def test_order_and_channels_are_checked() -> None:
    x = torch.randn(4, 3)
    assert (
        message(lambda: losses.correlation_congruence(x, x, order=0))
        == "correlation_congruence: order is 0; expected at least 1"
    )
    assert (
        message(lambda: losses.decorrelation(x[:, :1], x))
        == "decorrelation: student has 1 channel; expected at least 2"
    )
