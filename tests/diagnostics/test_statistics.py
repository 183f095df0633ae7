"""What reaches the first batch norm, against NumPy and for planted faults; confidence under several normalizations."""

import numpy as np
import pytest
import torch
from torch import nn

from limbeck import models
from limbeck.diagnostics import confidence_under, first_norm_shift
from limbeck.models import InputTransform


def net() -> nn.Module:
    """A net whose running statistics are those of the images below."""
    torch.manual_seed(0)
    model = models.build("small/cnn-8", num_classes=3, size=8).module
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        for seed in range(20):
            model(images(seed))
    return model


def images(seed: int) -> torch.Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_usual_images_are_not_shifted_and_the_numbers_are_those_of_numpy() -> None:
    model = net()
    found = first_norm_shift(model, images(99))
    assert found is not None
    assert found.layer == "bn1"
    assert found.shift < 0.05
    assert found.scale == pytest.approx(1, abs=0.03)
    bn, conv = model.get_submodule("bn1"), model.get_submodule("conv1")
    x = conv(3 * images(99) + 1).detach().double().numpy()
    mean, var = (np.asarray(value, dtype=float) for value in (bn.running_mean, bn.running_var))
    other = first_norm_shift(model, 3 * images(99) + 1)
    assert other is not None
    z = (x.mean((0, 2, 3)) - mean) / np.sqrt(var)
    assert other.shift == pytest.approx(np.sqrt((z**2).mean()), rel=1e-4)
    assert other.scale == pytest.approx(np.exp(np.log(x.std((0, 2, 3)) / np.sqrt(var)).mean()), rel=1e-4)
    assert other.shift > 0.1
    assert other.scale == pytest.approx(3, abs=0.3)


def test_nothing_is_left_behind() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    first_norm_shift(model, images(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_the_first_one_that_runs_counts() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

    found = first_norm_shift(Backwards(), images(0))
    assert found is not None
    assert found.layer == "first"


def test_without_running_statistics_there_is_nothing_to_compare() -> None:
    assert first_norm_shift(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), images(0)) is None
    assert first_norm_shift(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), images(0)) is None


def test_a_trained_classifier_is_surest_under_its_own_statistics() -> None:
    """Under another one, of a tenth of the contrast, it hesitates."""
    torch.manual_seed(0)
    x = 0.5 + 0.1 * torch.randn(200, 3, 4, 4)
    y = (torch.arange(200) % 2).long()
    x[y == 1, 0] += 0.15
    own = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 2))
    spec = models.InputSpec((0.5, 0.5, 0.5), (0.1, 0.1, 0.1), 4)
    optimizer = torch.optim.Adam(own.parameters(), 0.01)
    for _ in range(200):
        nn.functional.cross_entropy(own(InputTransform(spec)(x)), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    flat = models.InputSpec((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 4)
    found = confidence_under(own, x, {"own": InputTransform(spec), "flat": InputTransform(flat)})
    assert found["own"] > found["flat"] + 0.01
    expected = own(InputTransform(flat)(x)).detach().softmax(1).amax(1).mean()
    assert found["flat"] == pytest.approx(float(expected), rel=1e-5)
