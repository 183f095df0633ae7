"""Any classification model as the trunk of a detector: the maps at the ends of its stages, and their strides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models._utils import IntermediateLayerGetter

from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.features.taps import Taps
from limbeck.models.build import build
from limbeck.models.built import find_name
from limbeck.models.library import from_timm, from_torchvision, timm_names
from limbeck.models.quiet_timm import timm
from limbeck.models.spec import InputSpec
from limbeck.models.stages import stages

_PROBE = 128  # pixels of the blank image by which strides are found; every known stride divides it
_RESNETS = ("resnet", "resnext", "wide_resnet")


@dataclass(frozen=True)
class Trunk:
    """A classification model without its classifier.

    Attributes:
        module: From images to a list (or a dictionary) of maps, shallow to deep.
        name: Spelt as its family spells it.
        input: Its input.
        taps: Submodule of ``module`` that gives each map.
        widths: Channels of each map.
        strides: Pixels for each position of each map.
        heads: Names that the classifier's layers had, for weights of the classification model.
        pretrained: Whether weights of a library are in it.
    """

    module: nn.Module
    name: str
    input: InputSpec
    taps: tuple[str, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    heads: tuple[str, ...]
    pretrained: bool

    def deepest(self, chosen: Sequence[int]) -> "Trunk":
        """The trunk that gives the chosen maps alone."""
        module = self.module
        if isinstance(module, StageTrunk):
            module = StageTrunk(module.model, [module.names[i] for i in chosen])
        elif isinstance(module, IntermediateLayerGetter):
            wanted = [list(module.return_layers)[i] for i in chosen]
            module = IntermediateLayerGetter(module, {layer: str(place) for place, layer in enumerate(wanted)})
        else:
            module = _timm_features(self.name.removeprefix("timm/"), self.pretrained, tuple(chosen))
        pick = lambda values: tuple(values[i] for i in chosen)  # noqa: E731
        return Trunk(
            module,
            self.name,
            self.input,
            pick(self.taps),
            pick(self.widths),
            pick(self.strides),
            self.heads,
            self.pretrained,
        )


@final
class StageTrunk(nn.Module):
    """A model whose submodules' maps are read by taps; what lies behind the deepest of them is run for nothing.

    Args:
        model: The model, best without its classifier.
        names: The submodules.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.tap()

    def tap(self) -> None:
        """Find the submodules anew, where some were replaced."""
        self._taps = Taps(self.model, self.names)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, in the order of the names."""
        features = self._taps(images).features
        return [features[name] for name in self.names]


def build_trunk(name: str, *, pretrained: bool) -> Trunk:
    """The trunk of ``timm/NAME``, ``torchvision/NAME``, ``cifar/NAME``, ``small/NAME`` or ``module:function``.

    Raises:
        UserError: There is no such model, or it has no maps of falling resolution.
    """
    family, _, rest = name.partition("/")
    if family == "torchvision" and rest.lower().startswith(_RESNETS):
        built = from_torchvision(rest, num_classes=1000, size=None, pretrained=pretrained)
        layers = {f"layer{number}": str(number - 1) for number in range(1, 5)}
        return _probed(IntermediateLayerGetter(built.module, layers), built.name, built.input, ("fc",), pretrained)
    if family == "timm":
        found = find_name(rest, timm_names(), family="timm")
        built = from_timm(found, num_classes=1, size=None, pretrained=False)  # its statistics and its heads
        module = _timm_features(found, pretrained, None)
        return _probed(module, built.name, built.input, built.heads or (), pretrained)
    model = build(name, num_classes=0, pretrained=pretrained)
    head = build(name, num_classes=1).penultimate.removesuffix(":input")
    trunk = StageTrunk(model.module, stages(model))
    _freeze_unread(trunk)
    return _probed(trunk, model.name, model.input, (head,), pretrained)


def _freeze_unread(trunk: StageTrunk) -> None:
    """Freeze the layers after the last stage (MobileNetV2's last convolution): no head reads them."""
    with evaluating(trunk), torch.enable_grad():
        torch.stack([feature.sum() for feature in trunk(torch.zeros(1, 3, _PROBE, _PROBE))]).sum().backward()
    for parameter in trunk.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    trunk.zero_grad(set_to_none=True)


def as_list(maps: Any) -> list[Tensor]:
    """What a module gives, as a list: of maps by their names, of several, or of the one tensor."""
    if isinstance(maps, Tensor):
        return [maps]
    return list(maps.values()) if isinstance(maps, Mapping) else list(maps)


def shapes(module: nn.Module, frame: tuple[int, int]) -> list[tuple[int, ...]]:
    """The shapes of what a module gives for one image of a frame, found without computing it."""
    held = {name: value.to("meta") for name, value in [*module.named_parameters(), *module.named_buffers()]}
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            maps = functional_call(module, held, (torch.empty(1, 3, *frame, device="meta"),))
    finally:
        for part, training in modes.items():
            part.training = training
    return [tuple(feature.shape) for feature in as_list(maps)]


def _timm_features(name: str, pretrained: bool, chosen: tuple[int, ...] | None) -> nn.Module:
    options: dict[str, Any] = {} if chosen is None else {"out_indices": chosen}
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **options)
    except (RuntimeError, AttributeError, TypeError, AssertionError, KeyError) as error:
        raise UserError(f"timm/{name} gives no maps of its stages: {str(error).splitlines()[0]}") from error


def _probed(module: nn.Module, name: str, spec: InputSpec, heads: tuple[str, ...], pretrained: bool) -> Trunk:
    """Taps, widths and strides, from one forward pass of a blank image."""
    outputs: list[tuple[str, Any]] = []
    hooks = [
        part.register_forward_hook(lambda _, __, output, path=path: outputs.append((path, output)))
        for path, part in module.named_modules()
        if path
    ]
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            maps = as_list(module(torch.zeros(1, 3, _PROBE, _PROBE)))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{name} does not run as the trunk of a detector: {str(error).splitlines()[0]}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for part, training in modes.items():
            part.training = training
    if any(feature.ndim != 4 or feature.shape[2] != feature.shape[3] or _PROBE % feature.shape[2] for feature in maps):
        kinds = ", ".join(str(tuple(feature.shape)) for feature in maps)
        raise UserError(f"{name} gives no maps (n, c, h, w) whose sides divide those of the image: {kinds}")
    taps = tuple(next((path for path, output in reversed(outputs) if output is feature), "") for feature in maps)
    strides = tuple(_PROBE // feature.shape[2] for feature in maps)
    return Trunk(module, name, spec, taps, tuple(feature.shape[1] for feature in maps), strides, heads, pretrained)
