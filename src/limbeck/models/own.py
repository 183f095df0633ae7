"""Models that come from no library: the CIFAR nets, the small CNN, and a function of the user's."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.errors import UserError, did_you_mean
from limbeck.models.built import IMAGENET_MEAN, IMAGENET_STD, Built, find_name
from limbeck.models.cifar import NETS
from limbeck.models.small import SmallCNN
from limbeck.models.spec import InputSpec

# Mean and deviation of the training images of CIFAR-100, as in the CRD code (dataset/cifar100.py), for every data set.
CIFAR = InputSpec(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), size=32)
# To [-1, 1], whatever the data: these nets are for grey digits and for tests, where no data set's statistics are apt,
# and a transform that does not depend on the data lets one net be used on another set.
SMALL = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=8)
# A user's function says nothing of its input, so it gets what most models have.
UNKNOWN = InputSpec(mean=IMAGENET_MEAN, std=IMAGENET_STD, size=224)


def cifar_net(name: str, *, num_classes: int) -> Built:
    """`cifar/NAME`: one of `limbeck.models.cifar.NETS`."""
    found = find_name(name, NETS, family="cifar")
    return Built(NETS[found](num_classes=num_classes), f"cifar/{found}", CIFAR)


def small_net(name: str, *, num_classes: int) -> Built:
    """`small/cnn-N`: three convolutions of widths N, 2N and 2N."""
    digits = name.lower().removeprefix("cnn").lstrip("-_")
    if not name.lower().startswith("cnn") or not (digits.isascii() and digits.isdigit()) or int(digits) == 0:
        raise UserError(f'unknown model "small/{name}": "small/cnn-N" with a width N of at least 1, as in small/cnn-32')
    width = int(digits)
    return Built(SmallCNN(width, num_classes=num_classes), f"small/cnn-{width}", SMALL)


def from_function(name: str, *, num_classes: int) -> Built:
    """`module:function`, imported from the current folder or PYTHONPATH, called as `function(num_classes=...)`.

    A module that it returns may say its input in an attribute `input_spec` (an `InputSpec`); else ImageNet's statistics
    and 224 pixels are taken.
    """
    path, _, attribute = name.partition(":")
    with _current_folder():
        function = _find_function(path, attribute, name)
        try:
            inspect.signature(function).bind(num_classes=num_classes)
        except TypeError as error:
            raise UserError(f"{name} is called with num_classes={num_classes} alone: {error}") from error
        module = function(num_classes=num_classes)
    if not isinstance(module, nn.Module):
        raise UserError(f"{name} returned a {type(module).__name__}: a torch.nn.Module is wanted")
    spec = getattr(module, "input_spec", UNKNOWN)
    if not isinstance(spec, InputSpec):
        raise UserError(f"{name}: input_spec is a {type(spec).__name__}, a limbeck.models.InputSpec is wanted")
    return Built(module, name, spec)


def _find_function(path: str, attribute: str, name: str) -> Callable[..., Any]:
    try:
        module = importlib.import_module(path)
    except Exception as error:  # importing runs the user's own code, which may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == path.split(".", maxsplit=1)[0]:
            near = did_you_mean(path, (file.stem for file in Path.cwd().glob("*.py")))
            raise UserError(f'no module "{path}" in the current folder or on PYTHONPATH{near}') from error
        raise UserError(f'importing "{path}" failed: {type(error).__name__}: {error}') from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(f'no function "{attribute}" in module "{path}" (of {name}){did_you_mean(attribute, known)}')
    return function


@contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder first on the path: a console script, unlike `python -m`, does not have it there."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
