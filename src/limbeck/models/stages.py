"""Find the taps of a model that a method of several layers wants."""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from limbeck.errors import UserError
from limbeck.models.spec import Model


class Layout(NamedTuple):
    """How the positions of a feature lie."""

    size: tuple[int, int]
    prefix: int = 0
    channels_last: bool = False


def layout_of(shape: tuple[int, ...]) -> Layout | None:
    """How the positions lie in a feature of a square image, guessed from its shape; None of a vector.

    Maps have equal sides, behind the channels or in front of them (Swin). Of tokens, the largest square is patches and
    what is left is in front of them.

    Example:
        >>> layout_of((2, 197, 384)), layout_of((2, 7, 7, 768))
        (Layout(size=(14, 14), prefix=1, channels_last=False), Layout(size=(7, 7), prefix=0, channels_last=True))
    """
    match shape:
        case (_, height, width, channels) if height == width != channels:
            return Layout((height, width), channels_last=True)
        case (_, _, height, width):
            return Layout((height, width))
        case (_, tokens, _):
            side = math.isqrt(tokens)
            return Layout((side, side), prefix=tokens - side**2)
        case _:
            return None


@dataclass
class _Call:
    """What one submodule gave in the dry run."""

    path: str
    output: Tensor
    version: int  # of the output when the module returned it: a later one means that it was overwritten in place
    place: int  # in the order in which the modules returned
    convolutions: int  # how many had run by then

    @property
    def size(self) -> tuple[int, ...]:
        layout = layout_of(tuple(self.output.shape))
        return layout.size if layout is not None else ()


def stages(model: Model, *, count: int = 4) -> tuple[str, ...]:
    """The ends of a model's stages, shallow to deep, as taps.

    Of a model of maps, the last submodule at each resolution, looking into a submodule only where its parts have three
    resolutions or more (``features``, ``stages``), so not into blocks: ``layer1`` to ``layer4`` of a ResNet. A stem,
    one convolution alone at its resolution, is left out where three more stages follow. Of a model whose tokens become
    fewer (LeViT, Twins), the same. Of other models of tokens, blocks at even depths out of the alike ones that lie
    least deep: ``blocks.2``, ``blocks.5``, ``blocks.8`` and ``blocks.11`` of twelve. Vectors and single tokens are
    never among them, nor is what :class:`limbeck.taps.Taps` refuses: a submodule that runs twice, that gives no tensor,
    or whose output is overwritten in place.

    It is a guess by shapes, made in one forward pass on two blank images that leaves no trace in the model.

    Args:
        model: From :func:`limbeck.models.build`.
        count: Most stages that are given, the deepest ones.

    Returns:
        Names for :class:`limbeck.taps.Taps`; at least one.

    Raises:
        UserError: If count is below 1, or the model has neither maps nor tokens.

    Example:
        >>> from limbeck.models import build
        >>> stages(build("cifar/resnet20", num_classes=10))
        ('layer1', 'layer2', 'layer3')
    """
    if count < 1:
        raise UserError(f"stages: count is {count}; expected at least 1")
    calls = _dry_run(model)
    line = [call for call in _line(model.module, "", calls) if call.output.ndim in (3, 4)]
    wide = {path: call for path, call in calls.items() if call.size != (1, 1)}
    if line and line[-1].output.ndim == 3:  # where the image is one patch, one token is all that there is
        found = _of_tokens(model.module, line, wide, count) or _of_tokens(model.module, line, calls, count)
    else:
        found = _resolutions([call for call in line if call.output.ndim == 4 and call.path in wide], count)
    if not found:
        raise UserError(f"stages: {model.name} has no submodule that gives maps or tokens; name the taps yourself")
    return found


def pair_stages(student: Model, teacher: Model) -> list[tuple[str, str]]:
    """The ends of both models' stages, paired from the deep end: as many as the model with fewer has.

    Raises:
        UserError: Of one of them no stages are found.

    Example:
        >>> from limbeck.models import build
        >>> pair_stages(build("cifar/resnet8", num_classes=2), build("cifar/wrn_16_2", num_classes=2))
        [('layer1', 'block1'), ('layer2', 'block2'), ('layer3', 'bn1')]
    """
    both = stages(student), stages(teacher)
    count = min(len(taps) for taps in both)
    return list(zip(*(taps[-count:] for taps in both), strict=True))


def _resolutions(line: list[_Call], count: int) -> tuple[str, ...]:
    """The last call of each resolution that a tap can read."""
    last: dict[tuple[int, ...], _Call] = {}
    for call in line:
        if call.output._version == call.version:
            before = last.pop(call.size, None)
            # An identity behind a stage (norm_pre of ConvNeXt) gives the stage's own tensor: the stage is meant.
            last[call.size] = before if before is not None and before.output is call.output else call
    ends = list(last.values())
    if len(ends) > 3 and ends[0].convolutions == 1 < ends[1].convolutions:
        del ends[0]
    return tuple(call.path for call in ends[-count:])


def _of_tokens(module: nn.Module, line: list[_Call], calls: dict[str, _Call], count: int) -> tuple[str, ...]:
    """Stages of a model that ends with tokens, out of some of its calls."""
    among = [call for call in line if call.path in calls]
    tokens = [call for call in among if call.output.ndim == 3]
    found = _resolutions(tokens, count) if _become_fewer(tokens) else _blocks(module, calls, count)
    return found or (_resolutions(among, count) if tokens else ())


def _become_fewer(tokens: list[_Call]) -> bool:
    """Whether each further resolution is clearly coarser, and there are some; tokens in front change them by little."""
    sides = [size[0] for size in dict.fromkeys(call.size for call in tokens)]
    return len(sides) > 1 and all(3 * after <= 2 * before for before, after in pairwise(sides))


def _blocks(module: nn.Module, calls: dict[str, _Call], count: int) -> tuple[str, ...]:
    """Submodules at even depths that give tokens: of the classes with several, the one that lies least deep.

    Layers without parts (a norm, a linear map) are no blocks.
    """
    groups: dict[tuple[int, type[nn.Module]], list[str]] = defaultdict(list)
    for path, call in calls.items():
        part = module.get_submodule(path)
        if call.output.ndim == 3 and call.output._version == call.version and any(part.children()):
            groups[path.count("."), type(part)].append(path)
    ranked = sorted(groups.items(), key=lambda each: (each[0][0], -len(each[1])))
    # Two alike may be no more than the embeddings of two branches.
    alike = next((paths for least in (3, 2) for _, paths in ranked if len(paths) >= least), [])
    number = min(count, len(alike))
    return tuple(alike[-(-len(alike) * place // number) - 1] for place in range(1, number + 1))


def _line(module: nn.Module, path: str, calls: dict[str, _Call]) -> list[_Call]:
    """The calls of a module's parts in order, those parts opened that hold several stages or do not run."""
    found: list[_Call] = []
    for name, part in module.named_children():
        inner = f"{path}.{name}" if path else name
        parts = [calls[f"{inner}.{below}"] for below, _ in part.named_children() if f"{inner}.{below}" in calls]
        # Two resolutions are the two sides of a downsampling.
        if inner in calls and len({call.size for call in parts if call.output.ndim in (3, 4)}) < 3:
            found.append(calls[inner])
        else:
            found += _line(part, inner, calls)
    return sorted(found, key=lambda call: call.place)


def _dry_run(model: Model) -> dict[str, _Call]:
    """Path to call of every submodule that ran once and gave one tensor, in the order in which they returned."""
    module = model.module
    calls: dict[str, _Call] = {}
    runs: dict[str, int] = defaultdict(int)
    convolutions = 0

    def note(path: str, layer: nn.Module, output: Any) -> None:
        nonlocal convolutions
        convolutions += isinstance(layer, nn.Conv2d)
        runs[path] += 1
        if isinstance(output, Tensor):
            calls[path] = _Call(path, output, output._version, sum(runs.values()), convolutions)

    hooks = [
        layer.register_forward_hook(lambda layer, _inputs, output, path=path: note(path, layer, output))
        for path, layer in module.named_modules()
        if path
    ]
    first = next(module.parameters(), torch.empty(0))
    images = torch.zeros(2, 3, model.input.size, model.input.size, device=first.device, dtype=first.dtype)
    copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = {layer: layer.training for layer in module.modules()}
    try:
        module.train()  # as it will run; some layers work in place only there
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            functional_call(module, copies, (images,))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes.items():
            layer.training = training
    # What folds its parts of an image into the batch has other rows than the images.
    return {path: call for path, call in calls.items() if runs[path] == 1 and call.output.shape[:1] == (2,)}
