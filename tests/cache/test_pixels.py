"""The number by which pixels are known again."""

import pytest
import torch

from limbeck.cache.identity import _weights, sketch, tolerance


def images(side: int = 12) -> torch.Tensor:
    return torch.randint(256, (6, 3, side, side)).float() / 255


def test_it_is_a_weighted_sum() -> None:
    x = images()
    weights = _weights(3 * 12 * 12).tolist()
    for row, got in zip(x, sketch(x).tolist(), strict=True):
        assert got == pytest.approx(sum(w * v for w, v in zip(weights, row.flatten().tolist(), strict=True)), abs=1e-4)
    assert all(0.5 <= abs(w) < 1 for w in weights)
    assert 0.4 < sum(w > 0 for w in weights) / len(weights) < 0.6


@pytest.mark.parametrize("side", [8, 64, 224])
def test_rounding_is_tolerated_and_layout_does_not_matter(side: int) -> None:
    x = images(side)
    alone = torch.cat([sketch(row[None]) for row in x])
    wide = (x.double().flatten(1) @ _weights(3 * side * side).double()).float()
    for other in (alone, wide, sketch(x.contiguous(memory_format=torch.channels_last))):
        assert float((sketch(x) - other).abs().max()) < tolerance(x)


@pytest.mark.parametrize("side", [8, 64])
def test_changes_are_seen(side: int) -> None:
    x = images(side)
    changed = {
        "flip": x.flip(-1),
        "shift": x.roll(1, -1),
        "other image": x.roll(1, 0),
        "one step of every pixel": (x + 1 / 255).clamp(0, 1),
    }
    for what, y in changed.items():
        assert bool(((sketch(x) - sketch(y)).abs() > tolerance(x)).all()), what


@pytest.mark.parametrize("side", [8, 64, 100])
def test_one_pixel_by_one_step_is_seen(side: int) -> None:
    x = torch.zeros(1, 3, side, side)
    for pixel in range(0, 3 * side * side, 97):
        y = x.clone()
        y.view(-1)[pixel] = 1 / 255
        assert float((sketch(x) - sketch(y)).abs()) > tolerance(x)
