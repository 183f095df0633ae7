"""Models that come from no library: the CIFAR nets, the small CNN, DeiT behind a stem, and a function of the user's."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.own import current_folder, find_function
from limbeck.errors import UserError
from limbeck.features.compiler import uncompiled
from limbeck.models.built import IMAGENET_MEAN, IMAGENET_STD, Built, check_size, find_name, input_of
from limbeck.models.cifar import NETS
from limbeck.models.probe import raw_output, run_once
from limbeck.models.small import SmallCNN
from limbeck.models.spec import InputSpec
from limbeck.models.weights import WeightsUnavailable

# Mean and deviation of the training images of CIFAR-100, as in the CRD code (dataset/cifar100.py), for every data set.
CIFAR = InputSpec(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), size=32)
# To [-1, 1], whatever the data: these nets are for grey digits and for tests, where no data set's statistics are apt,
# and a transform that does not depend on the data lets one net be used on another set.
SMALL = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=8)
# A ViT for images of 32 to 64 pixels, where the patches of 16x16 of the usual ones leave 4 to 16 tokens.
VIT_SIZE, VIT_PATCH, VIT_DEPTH, VIT_HEAD = 32, 4, 6, 32
# A user's function says nothing of its input, so it gets what most models have.
UNKNOWN = InputSpec(mean=IMAGENET_MEAN, std=IMAGENET_STD, size=224)
FUNCTION = "function"
_MOSTLY = 0.5  # of the weights: less is no pretrained model, but one with a constant in it


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
    from limbeck.models.quiet_timm import timm

    name = f"small/vit-{width}"
    if width % VIT_HEAD:
        raise UserError(f"{name}: the width has to be a multiple of {VIT_HEAD}, the channels of a head")
    check_size(name, size, VIT_PATCH)
    module = timm.models.VisionTransformer(
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


def from_function(name: str, *, num_classes: int, pretrained: bool = False) -> Built:
    """`module:function`, imported from the current folder or PYTHONPATH, called as `function(num_classes=...)`.

    A function without that argument is called without it. What it returns says its input in an attribute `input_spec`
    (an `InputSpec`) or, as the models of timm, `pretrained_cfg`; else ImageNet's statistics and 224 pixels are taken.
    A module in another precision runs in float32.

    Args:
        name: the module and the function.
        num_classes: how many logits are wanted.
        pretrained: keep the weights that the function has loaded. It is called a second time, with another seed: what
            is then the same was loaded.

    Raises:
        WeightsUnavailable: if its weights are random.
        UserError: if it cannot be imported or called, or returns no module.
    """
    with current_folder():
        function = find_function(name)
        options, notes = _options(function, name, num_classes)
        module = _called(function, options, name)
        kept = 1.0
        if pretrained:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch.initial_seed() + 1)
                kept = _same_share(module, _called(function, options, name))
            if kept < _MOSTLY:
                raise WeightsUnavailable(f"the weights that {name} returns are random")
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if kinds:
        module = module.float()
        notes += (f"its weights are {' and '.join(sorted(str(kind)[6:] for kind in kinds))}: it runs in float32",)
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name}: {key} in its state dict is a {type(value).__name__}, and a tensor is wanted")
    spec, said = _input(module, name)
    new_head = pretrained and kept < 1
    return Built(module, name, spec, None, pretrained, new_head, origin=FUNCTION, notes=notes + said)


def function_classes(name: str) -> int | None:
    """How many logits the model of `module:function` has by itself; None if that is for the caller to say."""
    with current_folder():
        asked = inspect.signature(find_function(name)).parameters.get("num_classes")
    if asked is not None:
        return asked.default if isinstance(asked.default, int) else None
    built = from_function(name, num_classes=1)
    output, _ = run_once(with_one_output(built, built.input.size).module, name, built.input.size)
    return output.shape[1]


def with_one_output(built: Built, size: int) -> Built:
    """The model with logits as its output: those of a dict or an object that has them, or the first of a tuple."""
    outputs = [raw_output(built.module, built.name, size, training=mode)[0] for mode in (True, False)]
    odd = next((output for output in outputs if not isinstance(output, Tensor)), None)
    if odd is None:
        return built
    built.module.register_forward_hook(_logits)
    taken = "the first item" if isinstance(odd, tuple | list) and not hasattr(odd, "logits") else '"logits"'
    return replace(built, notes=(*built.notes, f"it returns a {type(odd).__name__}: {taken} is its output"))


def _logits(_module: nn.Module, _inputs: object, output: Any) -> Any:
    """A forward hook, so that names and weights stay those of the user's own model."""
    if isinstance(output, Mapping):
        return output.get("logits", output)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(output, Tensor) and hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple | list) and output else output  # pyright: ignore[reportUnknownVariableType]


def _options(function: Callable[..., Any], name: str, num_classes: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """The arguments of the call, and a note where it is made without the number of classes."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of something built in, which has none
        return {"num_classes": num_classes}, ()
    try:
        signature.bind(num_classes=num_classes)
    except TypeError as error:
        try:
            signature.bind()
        except TypeError:
            raise UserError(f"{name} is called with num_classes={num_classes} alone: {error}") from error
        return {}, ("it takes no num_classes, and is called without",)
    return {"num_classes": num_classes}, ()


def _called(function: Callable[..., Any], options: dict[str, int], name: str) -> nn.Module:
    try:
        module = function(**options)
    except UserError:
        raise
    except Exception as error:  # the user's own code may raise anything
        first = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(f"{name} failed: {type(error).__name__}: {first}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{name} returned a {type(module).__name__}: a torch.nn.Module is wanted")
    return uncompiled(module)


def _same_share(one: nn.Module, other: nn.Module) -> float:
    """The share of the weights that two calls have in common; vectors, which may begin as constants, do not count."""
    pairs = [(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=False) if a.ndim > 1]
    same = sum(a.numel() for a, b in pairs if a.shape == b.shape and torch.equal(a, b))
    return same / max(1, sum(a.numel() for a, _ in pairs))


def _input(module: nn.Module, name: str) -> tuple[InputSpec, tuple[str, ...]]:
    """What a module says of its input, and a note where it says nothing."""
    spec: Any = getattr(module, "input_spec", None)
    if isinstance(spec, InputSpec):
        return spec, ()
    if spec is not None:
        raise UserError(f"{name}: input_spec is a {type(spec).__name__}, a limbeck.models.InputSpec is wanted")
    config: Any = getattr(module, "pretrained_cfg", None)
    if isinstance(config, Mapping) and "mean" in config and "std" in config:
        size = int(config.get("input_size", (3, UNKNOWN.size, UNKNOWN.size))[-1])  # pyright: ignore
        return input_of(name, config, size), ()  # pyright: ignore[reportUnknownArgumentType]
    return UNKNOWN, ("it has no input_spec and no pretrained_cfg: its input is normalized by ImageNet's mean and std",)
