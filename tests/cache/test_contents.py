"""What is kept of a forward pass, and what comes back."""

import math

import pytest
import torch
from torch import Tensor

from limbeck import Distiller, LogitTerm
from limbeck.assembly.caching import build_reduction
from limbeck.cache import Contents, Reduction
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.recipes.recipe import Recipe
from limbeck.tasks import Classification
from limbeck.terms import RelationTerm
from tiny import Net


def captured(dtype: torch.dtype = torch.float32, *, classes: int = 7) -> Captured:
    return Captured(torch.randn(5, classes).to(dtype), {"a": torch.randn(5, 4, 3, 3).to(dtype)})


def round_trip(contents: Contents, given: Captured) -> Captured:
    return contents.unpack(contents.pack(given), contents.specs(given), classes=given.output.shape[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exact_gives_back_every_byte(dtype: torch.dtype) -> None:
    given = captured(dtype)
    got = round_trip(Contents(("a",), exact=True), given)
    assert torch.equal(got.output, given.output)
    assert torch.equal(got.features["a"], given.features["a"])
    assert (got.output.dtype, got.features["a"].dtype) == (dtype, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [5, 1])
def test_maps_keep_their_layout_in_memory(dtype: torch.dtype, count: int) -> None:
    whole = captured(dtype)
    last = whole.features["a"].contiguous(memory_format=torch.channels_last)
    contents = Contents(("a",), exact=True)
    specs = contents.specs(whole._replace(features={"a": last}))
    assert specs["feature.a"].shape == (3, 3, 4)
    # One image, whatever its layout, is packed as the cache has it.
    rows = contents.pack(Captured(whole.output[:count], {"a": whole.features["a"][:count]}), specs)
    got = contents.unpack(rows, specs, classes=7).features["a"]
    assert torch.equal(got, whole.features["a"][:count])
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.data_ptr() == rows["feature.a"].data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_as_it_is(dtype: torch.dtype) -> None:
    given = captured(dtype)
    assert torch.equal(round_trip(Contents(("a",)), given).features["a"], given.features["a"])
    assert Contents(("a",)).pack(given)["feature.a"].dtype == dtype


def test_float32_is_rounded_to_float16_and_comes_back_as_float32() -> None:
    given = captured()
    got = round_trip(Contents(("a",)), given)
    assert got.output.dtype == torch.float32
    assert torch.equal(got.output, given.output.half().float())
    assert not torch.equal(got.output, given.output)


def test_what_float16_cannot_hold_and_what_is_not_finite_is_refused() -> None:
    big = Captured(torch.tensor([[1.0, 7e4]]), {})
    with pytest.raises(UserError, match=r"output goes up to 7e\+04, and float16 .*--cache-precision exact"):
        Contents(()).pack(big)
    assert torch.equal(round_trip(Contents((), exact=True), big).output, big.output)
    broken = Captured(torch.zeros(3, 2), {"a": torch.tensor([[1.0], [math.nan], [math.inf]])})
    with pytest.raises(UserError, match=r"feature a is not finite; check the teacher's weights"):
        Contents(("a",), exact=True).pack(broken)
    with pytest.raises(
        UserError, match=r"feature a is not finite \(training images 7, 2\); check the teacher's weights"
    ):
        Contents(("a",), exact=True).pack(broken._replace(index=torch.tensor([5, 7, 2])))


def loops(y: Tensor, k: int) -> Tensor:
    """The slow twin of the top k: the others get equal shares of what is left of the softmax."""
    rows: list[list[float]] = []
    for row in y.double().tolist():
        order = sorted(range(len(row)), key=lambda j: -row[j])
        rest = math.log(sum(math.exp(row[j]) for j in order[k:]) / (len(row) - k))
        rows.append([row[j] if j in order[:k] else rest for j in range(len(row))])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_top_k_keeps_the_softmax_of_the_first_and_the_sum_of_the_others(k: int) -> None:
    given = captured()
    got = round_trip(Contents((), top_k=k, exact=True), given).output
    torch.testing.assert_close(got.double(), loops(given.output, k), rtol=1e-5, atol=1e-5)
    before, after = given.output.softmax(-1), got.softmax(-1)
    chosen = given.output.topk(k).indices
    torch.testing.assert_close(after.gather(1, chosen), before.gather(1, chosen))
    torch.testing.assert_close(after.sum(-1), torch.ones(5))


@pytest.mark.parametrize("k", [7, 100])
def test_top_k_of_all_classes_is_exact_and_dense(k: int) -> None:
    given = captured()
    contents = Contents((), top_k=k, exact=True)
    assert list(contents.pack(given)) == ["output"]
    assert torch.equal(round_trip(contents, given).output, given.output)


@pytest.mark.parametrize(("classes", "dtype"), [(32767, torch.int16), (40000, torch.int32)])
def test_numbers_of_classes_are_as_short_as_they_can_be(classes: int, dtype: torch.dtype) -> None:
    given = captured(classes=classes)
    contents = Contents((), top_k=2)
    assert contents.pack(given)["output.classes"].dtype == dtype
    assert torch.equal(round_trip(contents, given).output.argmax(-1), given.output.argmax(-1))


def test_an_output_that_is_not_kept_has_no_columns() -> None:
    got = round_trip(Contents(("a",), output=False), captured())
    assert got.output.shape == (5, 0)
    assert list(Contents(("a",), output=False).pack(captured())) == ["feature.a"]


MAPS, NHWC, TOKENS = (5, 4, 3, 3), (5, 3, 3, 4), (5, 10, 4)
POOLS = [
    ("automatic", pooling.automatic, MAPS),
    ("automatic", pooling.automatic, TOKENS),
    ("spatial_mean", pooling.spatial_mean, MAPS),
    ("spatial_mean_nhwc", pooling.spatial_mean_nhwc, NHWC),
    ("token_mean", pooling.token_mean(1), TOKENS),
    ("class_token", pooling.class_token, TOKENS),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "pool", "shape"), POOLS, ids=[f"{n}-{len(s)}" for n, _, s in POOLS])
def test_a_pooled_feature_is_small_and_the_terms_pool_gives_the_same_rows(
    name: str, pool: pooling.Pool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    recipe = Recipe(data="digits", student="s", teacher="t", teacher_pool=name)
    reduction = build_reduction(recipe)
    assert isinstance(reduction, Reduction)
    given = Captured(torch.zeros(5, 2), {"a": torch.randn(shape).to(dtype)})
    contents = Contents(("a",), exact=True, reduction=reduction)
    assert contents.pack(given)["feature.a"].shape == (5, 4)
    assert torch.equal(pool(round_trip(contents, given).features["a"]), pool(given.features["a"]))


@pytest.mark.parametrize("pool", ["vector", "spatial_positions", "token_positions"])
def test_positions_are_kept(pool: str) -> None:
    recipe = Recipe(data="digits", student="s", teacher="t", teacher_pool=pool)
    assert build_reduction(recipe) is None


@pytest.mark.parametrize(("method", "pooled"), [("sp", False), ("crd", True), ("at", False), ("review", False)])
def test_rivals_that_read_maps_get_them(method: str, pooled: bool) -> None:
    recipe = Recipe(data="digits", student="s", teacher="t", method=method)
    assert (build_reduction(recipe) is not None) is pooled


def test_terms_that_read_what_is_not_kept_are_refused_at_the_start() -> None:
    relation = RelationTerm("conv1", "conv2", loss=lambda a, b: (a - b).mean())
    subject = Distiller(Net(4), Net(6), Classification(), terms={"pairs": relation})
    with pytest.raises(UserError, match='term "pairs" reads the teacher\'s "conv2", which the cache has not: conv1'):
        Contents(("conv1",)).require(subject)
    Contents(("conv2",), output=False).require(subject)
    logits = Distiller(Net(4), Net(6), Classification(), terms={"logit": LogitTerm()})
    with pytest.raises(UserError, match='term "logit" reads the teacher\'s output, which the cache has not'):
        Contents((), output=False).require(logits)
