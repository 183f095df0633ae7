import copy
import importlib.util
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
import reference_relations
from limbeck.errors import UserError
from limbeck.features import pooling

torch.set_num_threads(1)

# Each with an input that it takes and its twin.
PAIRS: dict[str, tuple[pooling.Pool, tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "automatic, vector": (pooling.automatic, (4, 3), lambda x: x),
    "automatic, tokens": (pooling.automatic, (4, 5, 3), lambda x: reference.token_mean(x, 0)),
    "automatic, map": (pooling.automatic, (4, 3, 2, 5), reference.spatial_mean),
    "vector": (pooling.vector, (4, 3), lambda x: x),
    "spatial_mean": (pooling.spatial_mean, (4, 3, 2, 5), reference.spatial_mean),
    "spatial_mean_nhwc": (pooling.spatial_mean_nhwc, (4, 2, 5, 3), lambda x: reference.spatial_mean(x.movedim(3, 1))),
    "class_token": (pooling.class_token, (4, 5, 3), lambda x: torch.stack([image[0] for image in x])),
    "token_mean": (pooling.token_mean(), (4, 5, 3), lambda x: reference.token_mean(x, 1)),
    "token_mean 0": (pooling.token_mean(0), (4, 5, 3), lambda x: reference.token_mean(x, 0)),
    "token_mean 4": (pooling.token_mean(prefix=4), (4, 5, 3), lambda x: reference.token_mean(x, 4)),
    "spatial_positions": (pooling.spatial_positions, (4, 3, 2, 5), reference.spatial_positions),
    "token_positions": (
        pooling.token_positions(),
        (4, 5, 3),
        lambda x: torch.stack([torch.stack([x[n, token] for token in range(1, 5)]) for n in range(4)]),
    ),
    "token_positions 0": (pooling.token_positions(0), (4, 5, 3), lambda x: x),
    "unpooled": (pooling.unpooled, (4, 3, 2, 5), lambda x: x),
    "token_map": (pooling.token_map(), (4, 10, 3), lambda x: torch.tensor(reference_relations.token_map(x, 1)).to(x)),
    "token_map 0": (pooling.token_map(0), (4, 4, 3), lambda x: torch.tensor(reference_relations.token_map(x, 0)).to(x)),
    "grid_positions": (pooling.grid_positions(2, 3), (4, 3, 4, 6), lambda x: reference.grid_positions(x, 2, 3)),
    "grid_positions, uneven": (pooling.grid_positions(2, 3), (4, 3, 5, 4), lambda x: reference.grid_positions(x, 2, 3)),
    "grid_positions, own size": (pooling.grid_positions(2, 5), (4, 3, 2, 5), reference.spatial_positions),
    "grid_positions, nhwc": (
        pooling.grid_positions(2, 2, channels_last=True),
        (4, 4, 4, 3),
        lambda x: reference.grid_positions(x.movedim(3, 1), 2, 2),
    ),
    "grid_positions, tokens": (
        pooling.grid_positions(2, 2, prefix=2),
        (4, 18, 3),
        lambda x: reference.grid_positions(torch.tensor(reference_relations.token_map(x, 2)).to(x), 2, 2),
    ),
}
every_pair = pytest.mark.parametrize(("pool", "shape", "twin"), PAIRS.values(), ids=PAIRS)
Twin = Callable[[Tensor], Tensor]


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@every_pair
def test_equals_its_loop_twin(pool: pooling.Pool, shape: tuple[int, ...], twin: Twin) -> None:
    x = features(*shape)
    torch.testing.assert_close(pool(x), twin(x))
    assert torch.equal(x, features(*shape))


@every_pair
def test_gradcheck(pool: pooling.Pool, shape: tuple[int, ...], twin: Twin) -> None:
    assert torch.autograd.gradcheck(pool, features(*shape).requires_grad_())


@every_pair
def test_one_image_is_pooled_as_in_a_batch(pool: pooling.Pool, shape: tuple[int, ...], twin: Twin) -> None:
    x = features(*shape)
    torch.testing.assert_close(pool(x[2:3]), pool(x)[2:3])


@every_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_data_type_stays(pool: pooling.Pool, shape: tuple[int, ...], twin: Twin, dtype: torch.dtype) -> None:
    x = features(*shape).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool(x)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.double(), twin(x.double()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", [name for name, (_, shape, _) in PAIRS.items() if len(shape) == 4])
def test_channels_last_memory_is_the_same_map(name: str) -> None:
    pool, shape, _ = PAIRS[name]
    x = features(*shape)
    torch.testing.assert_close(pool(x.to(memory_format=torch.channels_last)), pool(x))


@settings(max_examples=20, deadline=None)
@given(h=st.integers(1, 4), w=st.integers(1, 4))
def test_positions_and_mean_agree(h: int, w: int) -> None:
    x = features(2, 3, h, w)
    positions = pooling.spatial_positions(x)
    assert positions.shape == (2, h * w, 3)
    torch.testing.assert_close(positions.mean(1), pooling.spatial_mean(x))
    tokens = features(2, 1 + h * w, 3)
    torch.testing.assert_close(pooling.token_positions(1)(tokens).mean(1), pooling.token_mean(1)(tokens))
    torch.testing.assert_close(pooling.automatic(tokens), pooling.token_mean(0)(tokens))


@settings(max_examples=20, deadline=None)
@given(side=st.integers(1, 5), prefix=st.integers(0, 3))
def test_a_map_of_tokens_has_them_as_its_positions(side: int, prefix: int) -> None:
    tokens = features(2, prefix + side * side, 3)
    laid_out = pooling.token_map(prefix)(tokens)
    assert laid_out.shape == (2, 3, side, side)
    assert torch.equal(pooling.spatial_positions(laid_out), tokens[:, prefix:])


@every_pair
def test_can_be_copied_and_pickled(pool: pooling.Pool, shape: tuple[int, ...], twin: Twin) -> None:
    x = features(*shape)
    assert torch.equal(copy.deepcopy(pool)(x), pool(x))
    assert torch.equal(pickle.loads(pickle.dumps(pool))(x), pool(x))


# Misuse


def message(call: Callable[[], object]) -> str:
    with reference.as_a_user(), pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("pool", "shape", "expected"),
    [
        (pooling.automatic, (4,), "automatic pool: got (4,); expected (n, c), (n, tokens, c) or (n, c, h, w)"),
        (pooling.automatic, (1, 2, 3, 4, 5), "automatic pool: got (1, 2, 3, 4, 5)"),
        (pooling.vector, (4, 3, 1), "vector: got (4, 3, 1); expected (n, c)"),
        (pooling.spatial_mean, (4, 3), "spatial_mean: got (4, 3); expected (n, c, h, w)"),
        (pooling.spatial_mean_nhwc, (4, 3), "spatial_mean_nhwc: got (4, 3); expected (n, h, w, c)"),
        (pooling.spatial_positions, (4, 3), "spatial_positions: got (4, 3); expected (n, c, h, w)"),
        (pooling.class_token, (4, 3), "class_token: got (4, 3); expected (n, tokens, c)"),
        (pooling.token_mean(), (4, 3), "token_mean: got (4, 3); expected (n, tokens, c)"),
        (pooling.token_positions(), (4, 3), "token_positions: got (4, 3); expected (n, tokens, c)"),
        (
            pooling.token_mean(5),
            (4, 5, 3),
            "token_mean: got 5 tokens, of which 5 are prefix; expected at least one more",
        ),
        (pooling.token_positions(2), (4, 1, 3), "token_positions: got 1 tokens, of which 2 are prefix"),
        (pooling.unpooled, (4, 5, 3), "unpooled: got (4, 5, 3); expected (n, c, h, w)"),
        (pooling.token_map(), (4, 3, 2, 2), "token_map: got (4, 3, 2, 2); expected (n, tokens, c)"),
        (pooling.token_map(4), (4, 4, 3), "token_map: got 4 tokens, of which 4 are prefix; expected at least one more"),
        (
            pooling.token_map(2),
            (4, 197, 3),
            "token_map: got 197 tokens, of which 2 are prefix; expected a square number of patches, not 195",
        ),
        (pooling.grid_positions(2, 2), (4, 3), "grid_positions: got (4, 3); expected (n, c, h, w)"),
        (
            pooling.grid_positions(2, 4),
            (4, 3, 7, 3),
            "grid_positions: got 7 x 3 positions; expected a grid of 2 x 4 at the least",
        ),
    ],
)
def test_shapes_are_checked(pool: pooling.Pool, shape: tuple[int, ...], expected: str) -> None:
    assert expected in message(lambda: pool(torch.randn(*shape)))


def test_prefix_is_checked() -> None:
    assert message(lambda: pooling.token_mean(-1)) == "token_mean: prefix is -1; expected 0 or more"
    assert message(lambda: pooling.token_positions(-1)) == "token_positions: prefix is -1; expected 0 or more"
    assert message(lambda: pooling.token_map(-1)) == "token_map: prefix is -1; expected 0 or more"
    assert (
        message(lambda: pooling.grid_positions(1, 1, prefix=-1)) == "grid_positions: prefix is -1; expected 0 or more"
    )
    assert "the grid is 0 x 2; expected 1 x 1 or more" in message(lambda: pooling.grid_positions(0, 2))


# torch.compile


def test_compile_into_one_graph() -> None:
    # A copy under another name does not have the shape checker that the tests wrap around every function.
    assert pooling.__file__ is not None
    spec = importlib.util.spec_from_file_location("pooling_as_released", pooling.__file__)
    assert spec is not None
    assert spec.loader is not None
    released = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(released)
    map_, tokens = features(4, 3, 2, 5), features(4, 5, 3)
    calls = [
        (released.automatic, map_),
        (released.automatic, tokens),
        (released.spatial_mean_nhwc, map_),
        (released.spatial_positions, map_),
        (released.class_token, tokens),
        (released.token_mean(1), tokens),
        (released.token_positions(1), tokens),
        (released.unpooled, map_),
        (released.token_map(1), tokens),
        (released.grid_positions(1, 5), map_),
        (released.grid_positions(1, 2), map_),
        (released.grid_positions(1, 1, prefix=1), tokens),
    ]
    for pool, x in calls:
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(pool, backend="aot_eager", fullgraph=True)(x), pool(x))
