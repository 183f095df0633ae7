"""Models that come from no library: the CIFAR nets, the small CNN, DeiT behind a stem, and a function of the user's."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.errors import UserError, did_you_mean
from limbeck.models.built import IMAGENET_MEAN, IMAGENET_STD, Built, check_size, find_name
from limbeck.models.cifar import NETS
from limbeck.models.small import SmallCNN
from limbeck.models.spec import InputSpec

# Mean and deviation of the training images of CIFAR-100, as in the CRD code (dataset/cifar100.py), for every data set.
CIFAR = InputSpec(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), size=32)
# To [-1, 1], whatever the data: these nets are for grey digits and for tests, where no data set's statistics are apt,
# and a transform that does not depend on the data lets one net be used on another set.
SMALL = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=8)
# A ViT for images of 32 to 64 pixels, where the patches of 16x16 of the usual ones leave 4 to 16 tokens.
VIT_SIZE, VIT_PATCH, VIT_DEPTH, VIT_HEAD = 32, 4, 6, 32
# A user's function says nothing of its input, so it gets what most models have.
UNKNOWN = InputSpec(mean=IMAGENET_MEAN, std=IMAGENET_STD, size=224)


def cifar_net(name: str, *, num_classes: int) -> Built:
    """`cifar/NAME`: one of `limbeck.models.cifar.NETS`."""
    found = find_name(name, NETS, family="cifar")
    return Built(NETS[found](num_classes=num_classes), f"cifar/{found}", CIFAR)


def small_net(name: str, *, num_classes: int, size: int | None = None) -> Built:
    """`small/cnn-N`: three convolutions of widths N, 2N and 2N; `small/vit-N`: a ViT of width N for small images."""
    kind, number = name.lower()[:3], name[3:].lstrip("-_")
    if kind not in ("cnn", "vit") or not (number.isascii() and number.isdigit()) or int(number) == 0:
        raise UserError(
            f'unknown model "small/{name}": "small/cnn-N" or "small/vit-N" with a width N, as in small/cnn-32'
        )
    width = int(number)
    if kind == "cnn":
        return Built(SmallCNN(width, num_classes=num_classes), f"small/cnn-{width}", SMALL)
    return _small_vit(width, num_classes=num_classes, size=size or VIT_SIZE)


def _small_vit(width: int, *, num_classes: int, size: int) -> Built:
    """Timm's VisionTransformer with patches of 4x4, six blocks, heads of 32 channels and the mean of the patches."""
    from timm.models.vision_transformer import VisionTransformer

    name = f"small/vit-{width}"
    if width % VIT_HEAD:
        raise UserError(f"{name}: the width has to be a multiple of {VIT_HEAD}, the channels of a head")
    check_size(name, size, VIT_PATCH)
    module = VisionTransformer(
        img_size=size,
        patch_size=VIT_PATCH,
        embed_dim=width,
        depth=VIT_DEPTH,
        num_heads=width // VIT_HEAD,
        class_token=False,
        global_pool="avg",
        num_classes=num_classes,
    )
    return Built(module, name, InputSpec(mean=SMALL.mean, std=SMALL.std, size=size), ("head",))


def conv_stem_net(name: str, *, num_classes: int, size: int | None) -> Built:
    """`deit/conv-stem-NAME` or `deit/conv-stem-NAME-distilled`: `limbeck.models.conv_stem.SHAPES`."""
    from limbeck.models.conv_stem import SHAPES, ConvStemViT, published_names

    nets = {f"conv_stem_{key}{end}": (shape, bool(end)) for key, shape in SHAPES.items() for end in ("", "_distilled")}
    found = find_name(name, nets, family="deit")
    shape, distilled = nets[found]
    size = size or UNKNOWN.size
    check_size(f"deit/{found}", size, shape.patch)
    module = ConvStemViT(shape, size=size, num_classes=num_classes, distilled=distilled)
    heads = ("head", "head_conv") if distilled else ("head",)
    return Built(module, f"deit/{found}", replace(UNKNOWN, size=size), heads, rename=published_names)


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
