"""The wrong ways to give images to a model: each is what its name says, and colored images in BGR are told."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from limbeck import models
from limbeck.data import Batch
from limbeck.models import InputTransform, Model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("benchmarks.input_faults")


@pytest.fixture(scope="module")
def colored() -> tuple[Model, Batch]:
    """A network whose batch norms know blueish images, and other images of that kind."""
    torch.manual_seed(0)
    images = torch.tensor([0.25, 0.45, 0.8]).view(3, 1, 1) + 0.15 * torch.randn(192, 3, 16, 16)
    images = images.clamp(0, 1)
    model = models.build("cifar/resnet8", num_classes=4, size=16)
    transform = InputTransform(model.input)
    with torch.no_grad():
        for _ in range(40):
            model.module.train()(transform(images[:128]))
    model.module.eval()
    return model, Batch(images[64:], torch.randint(4, (128,)), torch.arange(128))


def test_each_way_gives_what_its_name_says(script: ModuleType) -> None:
    model = models.build("cifar/resnet8", num_classes=4, size=16)
    x = torch.rand(2, 3, 16, 16)
    spec = model.input

    def given(name: str) -> torch.Tensor:
        change, image = script.WAYS[name]
        return InputTransform(change(spec))(image(x))

    own = InputTransform(spec)
    torch.testing.assert_close(given("as in training"), own(x))
    torch.testing.assert_close(given("not normalized, 0 to 1"), x)
    torch.testing.assert_close(given("mean and std 0.5"), 2 * x - 1)
    torch.testing.assert_close(given("0 to 255"), own(255 * x))
    torch.testing.assert_close(given("normalized twice"), own(own(x)))
    torch.testing.assert_close(given("BGR"), own(x[:, [2, 1, 0]]))
    torch.testing.assert_close(given("negative"), own(1 - x))


def test_what_is_told_and_what_is_not(script: ModuleType, colored: tuple[Model, Batch]) -> None:
    model, batch = colored
    told = {}
    for name, (spec, change) in script.WAYS.items():
        changed = Batch(change(batch.images), batch.target, batch.index)
        told[name] = script.measure(replace(model, input=spec(model.input)), changed)["told"]
    assert not told["as in training"]
    assert not told["upside down"]
    assert all(told[name] for name in ("BGR", "0 to 255", "not normalized, 0 to 1", "normalized twice"))
