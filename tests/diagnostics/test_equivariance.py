import functools
import math
import re
from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import reference
from limbeck import diagnostics
from limbeck.errors import UserError

torch.set_num_threads(1)

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error_twin(features: Tensor, moved: Tensor, shift: tuple[int, int]) -> float:
    n, d, h, w = features.shape
    f, g = features.tolist(), moved.tolist()
    difference = deviation = 0.0
    for image in range(n):
        for channel in range(d):
            plane = f[image][channel]
            mean = sum(sum(row) for row in plane) / (h * w)
            for y in range(h):
                for x in range(w):
                    there = g[image][channel][(y + shift[0]) % h][(x + shift[1]) % w]
                    difference += (there - plane[y][x]) ** 2
                    deviation += (plane[y][x] - mean) ** 2
    return difference / deviation


@pytest.mark.parametrize("shift", [(1, 1), (0, 2), (3, 1), (-1, 0), (0, 0)], ids=str)
def test_the_error_equals_its_loop_twin(shift: tuple[int, int]) -> None:
    features, moved = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    close(diagnostics.translation_error(features, moved, shift).item(), error_twin(features, moved, shift))


def test_a_circular_convolution_moves_along_and_one_with_zeros_at_its_edge_does_not() -> None:
    images = noise(3, 2, 8, 8)
    for mode, exact in (("circular", True), ("zeros", False)):
        layer = nn.Conv2d(2, 5, 3, padding=1, padding_mode=mode, dtype=torch.float64)
        net = nn.Sequential(layer, nn.ReLU())
        with torch.no_grad():
            error = diagnostics.translation_error(net(images), net(images.roll((2, 3), (2, 3))), (2, 3))
        assert (error < 1e-25) == exact
        assert exact or 0.01 < error < 1


def test_features_that_know_nothing_of_the_shift_have_two() -> None:
    features = noise(20, 4, 16, 16)
    assert diagnostics.translation_error(features, noise(20, 4, 16, 16, seed=1), (1, 1)).item() == pytest.approx(
        2, 0.05
    )
    assert diagnostics.translation_error(features, features, (1, 1)).item() == pytest.approx(2, 0.05)  # they stay


def test_the_error_ignores_scale_and_what_is_the_same_everywhere() -> None:
    features, noisy = noise(4, 3, 6, 6), noise(4, 3, 6, 6, seed=1)
    moved = features.roll((1, 2), (2, 3)) + 0.1 * noisy
    error = diagnostics.translation_error(features, moved, (1, 2))
    assert error.item() == pytest.approx(0.01, rel=0.3)
    of_each_image = 100 * noise(4, 3, 1, 1, seed=2)
    close(diagnostics.translation_error(1e-6 * features, 1e-6 * moved, (1, 2)), error)
    close(diagnostics.translation_error(features + of_each_image, moved + of_each_image, (1, 2)), error)


def test_features_that_are_the_same_everywhere() -> None:
    flat = torch.ones(2, 3, 4, 4)
    assert diagnostics.translation_error(flat, flat, (1, 1)) == 0
    assert diagnostics.translation_error(flat, flat + 1, (1, 1)) == math.inf


def test_half_precision_is_computed_as_float32() -> None:
    features, moved = noise(2, 3, 4, 4).bfloat16(), noise(2, 3, 4, 4, seed=1).bfloat16()
    found = diagnostics.translation_error(features, moved, (1, 1))
    assert torch.equal(found, diagnostics.translation_error(features.float(), moved.float(), (1, 1)))
    assert found.dtype == torch.float32


# Vision transformers


def vit(*, positions: float, class_token: bool = True, registers: int = 0) -> VisionTransformer:
    """Of patches of 4 x 4 on 20 x 20 pixels, with position embeddings of this size."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=20,
        patch_size=4,
        embed_dim=16,
        depth=3,
        num_heads=2,
        num_classes=5,
        class_token=class_token,
        reg_tokens=registers,
        global_pool="avg",
    )
    model.pos_embed.data = positions * torch.randn_like(model.pos_embed)
    return model


BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize(("class_token", "registers"), [(False, 0), (True, 0), (True, 4)], ids=str)
def test_a_transformer_without_positions_moves_along_in_every_block(class_token: bool, registers: int) -> None:
    images = torch.randn(4, 3, 20, 20)
    errors = {}
    for positions in (0.0, 0.1, 1.0):
        model = vit(positions=positions, class_token=class_token, registers=registers)
        if class_token:
            model.cls_token.data.normal_()  # or the patches would hardly see it
        errors[positions] = diagnostics.block_equivariance(model, images, BLOCKS)
        assert list(errors[positions]) == BLOCKS
    assert all(error < 1e-9 for error in errors[0.0].values())
    for block in BLOCKS:
        assert 1e-4 < errors[0.1][block] < errors[1.0][block] < 3


def test_blocks_equal_a_shift_by_hand() -> None:
    """Of two patches; the prefix tokens dropped and the grid moved one token at a time."""
    model, images = vit(positions=0.5, registers=4).eval(), torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        (still,) = model.forward_intermediates(images, indices=[1], intermediates_only=True, output_fmt="NLC")
        (moved,) = model.forward_intermediates(
            torch.cat([images[:, :, -8:], images[:, :, :-8]], 2).roll(8, 3),
            indices=[1],
            intermediates_only=True,
            output_fmt="NLC",
        )
    expected = torch.empty_like(still)
    for y in range(5):
        for x in range(5):
            expected[:, (y + 2) % 5 * 5 + (x + 2) % 5] = still[:, y * 5 + x]
    error = (moved - expected).square().mean() / (still - still.mean(1, keepdim=True)).square().mean()
    found = diagnostics.block_equivariance(model, images, ["blocks.1"], patches=2)
    assert found["blocks.1"] == pytest.approx(error.item(), rel=1e-5)


def test_the_error_of_blocks_ignores_the_scale_of_the_features() -> None:
    model, images = vit(positions=0.5), torch.randn(2, 3, 20, 20)
    model.blocks = nn.Sequential(*model.blocks, nn.Linear(16, 16, bias=False))
    found = []
    for scale in (1.0, 1e3):
        model.blocks[3].weight.data = scale * torch.eye(16)
        found.append(diagnostics.block_equivariance(model, images, ["blocks.3"])["blocks.3"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_the_model_is_given_back_as_it_was() -> None:
    model, images = vit(positions=0.5).train(), torch.randn(2, 3, 20, 20)
    model.blocks[1].eval()
    model.blocks[0].attn.proj_drop.p = 0.5  # drawn from in train mode
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    first = diagnostics.block_equivariance(model, images, BLOCKS)
    assert torch.equal(torch.get_rng_state(), state)
    assert diagnostics.block_equivariance(model, images, BLOCKS) == first
    assert (model.training, model.blocks[0].training, model.blocks[1].training) == (True, True, False)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# Errors, by what they say


def tokens(side: int) -> nn.Module:
    """A model whose tap "0" gives as many tokens as a grid of this side has."""
    return nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(2), Transposed()), nn.Identity())


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


IMAGES = torch.zeros(2, 3, 20, 20)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "shapes": (
        lambda: diagnostics.translation_error(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 4), (1, 1)),
        "translation_error: features are (1, 2, 3, 3) and (1, 2, 4, 4); expected (n, d, h, w) twice",
    ),
    "diverged": (
        lambda: diagnostics.translation_error(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), math.nan), (1, 1)),
        "translation_error: shifted_features has values that are not finite",
    ),
    "square": (
        lambda: diagnostics.block_equivariance(tokens(5), torch.zeros(2, 3, 20, 24), ["0"]),
        "block_equivariance: images are (2, 3, 20, 24); expected square ones, (n, c, h, h)",
    ),
    "patches": (
        lambda: diagnostics.block_equivariance(tokens(5), IMAGES, ["0"], patches=0),
        "block_equivariance: patches is 0; expected at least 1",
    ),
    "maps": (
        lambda: diagnostics.block_equivariance(nn.Sequential(nn.Conv2d(3, 4, 3)), IMAGES, ["0"]),
        'block_equivariance: tap "0" gave (2, 4, 18, 18); expected (n, tokens, d)',
    ),
    "no divisor": (
        lambda: diagnostics.block_equivariance(tokens(6), IMAGES, ["0"]),
        "block_equivariance: 20 pixels and a grid of 6 x 6, to shift by 1; "
        "expected whole patches, and a shift below the grid",
    ),
    "all around": (
        lambda: diagnostics.block_equivariance(tokens(5), IMAGES, ["0"], patches=5),
        "block_equivariance: 20 pixels and a grid of 5 x 5, to shift by 5; "
        "expected whole patches, and a shift below the grid",
    ),
    "no taps": (
        lambda: diagnostics.block_equivariance(tokens(5), IMAGES, []),
        "block_equivariance: the taps have grids of {}; expected one or more of the same grid",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_was_found(name: str) -> None:
    call, message = BAD[name]
    with reference.as_a_user(), pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        call()
