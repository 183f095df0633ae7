"""Find the taps of a model that a method of several layers wants."""

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.features.taps import INPUT_SUFFIX, Taps
from limbeck.models.spec import Model


class Layout(NamedTuple):
    """How the positions of a feature lie."""

    size: tuple[int, int]
    prefix: int = 0
    channels_last: bool = False


class Shape(tuple[int, ...]):
    """The shape of a feature, which also has the number of its tokens before the patches (:func:`shapes_of`)."""

    prefix: int | None = None


def layout_of(shape: tuple[int, ...]) -> Layout | None:
    """How the positions lie in a feature of a square image; None of a vector.

    Maps have equal sides, after the channels or before them (Swin). Of tokens, a :class:`Shape` knows how many
    come before the patches. Of a plain shape it is a guess: the largest square is patches, which is wrong where a class
    token and registers are more than twice a side.

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
            prefix = shape.prefix if isinstance(shape, Shape) else None
            side = math.isqrt(tokens - (prefix or 0))
            return Layout((side, side), prefix=tokens - side**2)
        case _:
            return None


def shapes_of(model: Model, taps: Sequence[str]) -> tuple[Shape, ...]:
    """Shapes of tapped features for two images, from one forward pass in eval mode.

    How many tokens come before the patches is what timm's model says (``num_prefix_tokens``), or what the grids of the
    model's own convolutions leave over, the patch embedding's among them.
    """
    grids: set[int] = set()
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output: grids.add(output.shape[2:].numel()))
        for layer in model.module.modules()
        if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1
    ]
    try:
        with evaluating(model.module):
            features = Taps(model.module, taps)(_images(model)).features
    finally:
        for hook in hooks:
            hook.remove()
    found = tuple(Shape(features[tap].shape) for tap in taps)
    for shape in found:
        if len(shape) == 3:
            shape.prefix = _prefix(shape[1], getattr(model.module, "num_prefix_tokens", 0), grids)
    return found


def reads_first_token(model: Model) -> bool:
    """Whether the model returns what its classifier makes of the first of several tokens, and not of their mean."""
    head = model.penultimate.removesuffix(INPUT_SUFFIX)
    if head == model.penultimate:
        return False
    with evaluating(model.module):
        captured = Taps(model.module, [head])(_images(model))
    logits = captured.features[head]
    return logits.ndim == 3 and torch.equal(logits[:, 0], captured.output)


def _prefix(tokens: int, named: int, grids: set[int]) -> int | None:
    """How many of the tokens are no patches."""
    if tokens in grids:
        return 0
    if 0 < named < tokens and math.isqrt(tokens - named) ** 2 == tokens - named:
        return named
    return next((tokens - grid for grid in sorted(grids, reverse=True) if grid < tokens), None)


def stages(model: Model, *, count: int = 4) -> tuple[str, ...]:
    """The ends of a model's stages, shallow to deep, as taps.

    Of a model of timm these are the features that its ``forward_intermediates`` gives, found by their values: the last
    of each resolution, or, if all have one resolution (ViTs), those at even depths: ``blocks.2``, ``blocks.5``,
    ``blocks.8`` and ``blocks.11`` of twelve. If no submodule returns such a feature, the input of the next one is it.

    Of other models it is a guess, made in two forward passes on two images that leave no trace in the model. All that
    the output has of the image must have passed through a stage, so nothing in attention, in an MLP or in a residual
    branch is one. Of a model of maps, the last such submodule at each resolution, looking into a submodule only if its
    parts have three resolutions or more (``features``, ``stages``), so not into blocks: ``layer1`` to ``layer4`` of a
    ResNet. A stem, one convolution alone at its resolution, is skipped if three more stages follow, and so are maps
    that are finer than earlier ones. Of a model whose tokens become fewer (LeViT, Twins), the same. Of other models of
    tokens, blocks at even depths out of the alike ones that lie least deep. Vectors and single tokens are never among
    them, nor is what :class:`limbeck.features.taps.Taps` refuses: a submodule that runs twice, or whose output is
    overwritten in place. If a submodule returns several values, the input of the next one is its end.

    Args:
        model: From :func:`limbeck.models.build`.
        count: Most stages that are given, the deepest ones.

    Returns:
        Names for :class:`limbeck.features.taps.Taps`; at least one.

    Raises:
        UserError: If count is below 1, or the model has neither maps nor tokens.

    Example:
        >>> from limbeck.models import build
        >>> stages(build("cifar/resnet20", num_classes=10))
        ('layer1', 'layer2', 'layer3')
    """
    if count < 1:
        raise UserError(f"stages: count is {count}; expected at least 1")
    found = (_known if hasattr(model.module, "forward_intermediates") else _guessed)(model, count)
    if not found:
        raise UserError(
            f"stages: {model.name} has no submodule that gives maps or tokens and that the whole of the image passes "
            "through; name the taps yourself with --method projector"
        )
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


def _images(model: Model) -> Tensor:
    """Two images of noise as a model takes them, the same ones each time."""
    images = torch.rand(2, 3, model.input.size, model.input.size, generator=torch.Generator().manual_seed(0))
    return images.to(next(model.module.parameters(), images))


@contextlib.contextmanager
def _watching(module: nn.Module, see: Callable[[str, Any, Any], None]) -> Generator[None]:
    """Shows ``(tap, value, input)``: of each submodule its first input before it runs, and its output after that."""
    hooks: list[RemovableHandle] = []

    def watch(path: str, layer: nn.Module) -> None:
        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs:
                see(f"{path}{INPUT_SUFFIX}", inputs[0], None)

        def after(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            see(path, output, inputs[0] if inputs else None)

        hooks.extend((layer.register_forward_pre_hook(before), layer.register_forward_hook(after)))

    for path, layer in module.named_modules():
        if path:
            watch(path, layer)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# What timm knows


def _known(model: Model, count: int) -> tuple[str, ...]:
    """Taps of the features that a model of timm gives itself: outputs, or inputs if no submodule returns one.

    Those that are in neither are left out: all but the last of TNT, and of Hiera, whose tokens are in another order.
    """
    module, images = model.module, _images(model)
    runs: dict[str, int] = defaultdict(int)
    with evaluating(module):
        give: Any = module.forward_intermediates
        features = _chosen(give(images, intermediates_only=True), count)
        found: list[list[str]] = [[] for _ in features]

        def see(tap: str, value: Any, given: Any) -> None:
            runs[tap] += 1
            for feature, taps in zip(features, found, strict=True):
                if isinstance(value, Tensor) and value is not given and _is(value, feature):  # an identity is no layer
                    taps.append(tap)

        with _watching(module, see):
            module(images)
    found = [[tap for tap in taps if runs[tap] == 1] for taps in found]
    outputs = [[tap for tap in taps if not tap.endswith(INPUT_SUFFIX)] for taps in found]
    levels = [{tap.count(".") for tap in taps} for taps in outputs if taps] or [{0}]
    shared = set[int].intersection(*levels)  # blocks.11 and not blocks, if the others are blocks.2 to blocks.8
    ends = (_at_level(out, shared) or taps[:1] for out, taps in zip(outputs, found, strict=True))
    return tuple(dict.fromkeys(tap for end in ends for tap in end))


def _at_level(taps: list[str], levels: set[int]) -> list[str]:
    """The last of the taps that lie least deep, on one of these levels if there are any."""
    level = min(levels or {tap.count(".") for tap in taps}, default=0)
    return [tap for tap in taps if tap.count(".") == level][-1:]


def _chosen(features: Sequence[Tensor], count: int) -> list[Tensor]:
    """The last ones, of more than that the last of each resolution; at even depths if all have one resolution."""
    features = [feature for feature in features if feature.shape[2:].numel() > 1] or features
    ends = {feature.shape[2:]: feature for feature in features}
    if len(ends) > 1:
        return list(features if len(features) <= count else ends.values())[-count:]
    number = min(count, len(features))
    return [features[-(-len(features) * place // number) - 1] for place in range(1, number + 1)]


def _is(value: Tensor, feature: Tensor) -> bool:
    """Whether a tensor has the values of a map at the same places: as a map, channels last, or as tokens."""
    n, c, h, w = feature.shape
    if value.shape == (n, c, h, w):
        laid_out = value
    elif value.shape == (n, h, w, c):
        laid_out = value.movedim(3, 1)
    elif value.ndim == 3 and value.shape[::2] == (n, c) and value.shape[1] >= h * w:
        laid_out = value[:, value.shape[1] - h * w :].transpose(1, 2).unflatten(2, (h, w))
    else:
        return False
    # A model without memory (meta) has shapes alone.
    return feature.is_meta or torch.allclose(laid_out, feature, rtol=0, atol=0, equal_nan=True)


# What is guessed of other models

_Edge = tuple[Any, int]  # a node of the graph of gradients, and which of its outputs


@dataclass
class _Call:
    """What a tap reads."""

    tap: str
    tensor: Tensor
    version: int  # of the tensor when it was seen: a later one means that it was overwritten in place
    several: bool  # the submodule gave more than this tensor
    place: int  # in the order in which they were seen
    kernels: tuple[int, ...]  # of the convolutions that had run by then
    edge: _Edge

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def size(self) -> tuple[int, ...]:
        if len(self.shape) == 3 and self.shape[2] == 1:
            return (1, 1)  # channels that were averaged over the tokens, as AdaptiveAvgPool1d gives them
        layout = layout_of(self.shape)
        return layout.size if layout is not None else ()


def _guessed(model: Model, count: int) -> tuple[str, ...]:
    """Taps by the shapes of what passes through a model."""
    calls = _dry_run(model)
    line = [call for call in _line(model.module, "", calls) if len(call.shape) in (3, 4)]
    wide = {path: call for path, call in calls.items() if call.size != (1, 1)}
    if line and len(line[-1].shape) == 3:  # if the image is one patch, one token is all that there is
        return _of_tokens(model.module, line, wide, count) or _of_tokens(model.module, line, calls, count)
    return _resolutions([call for call in line if len(call.shape) == 4 and call.size != (1, 1)], count)


def _resolutions(line: list[_Call], count: int) -> tuple[str, ...]:
    """The last call of each resolution, without a stem, a head, and what is finer than something before it."""
    last: dict[tuple[int, ...], _Call] = {}
    for call in _without_head(line):
        if last and call.size > min(last):
            continue
        before = last.pop(call.size, None)
        # An identity behind a stage gives the stage's own tensor: the stage is meant.
        last[call.size] = before if before is not None and before.tensor is call.tensor else call
    ends = list(last.values())
    if len(ends) > 3 and len(ends[0].kernels) == 1 < len(ends[1].kernels):
        del ends[0]
    return tuple(call.tap for call in ends[-count:])


def _without_head(line: list[_Call]) -> list[_Call]:
    """Without a lone 1x1 convolution after the last block and its norm: it belongs to the head (MobileNet)."""
    for index in range(len(line) - 1, 0, -1):
        block, before = line[index], line[index - 1]
        after = line[-1].kernels[len(block.kernels) :]
        if len(block.kernels) - len(before.kernels) > 1:
            return line[: index + 1] if after == (1,) and line[-1].size == block.size else line
    return line


def _of_tokens(module: nn.Module, line: list[_Call], calls: dict[str, _Call], count: int) -> tuple[str, ...]:
    """Stages of a model that ends with tokens, out of some of its calls."""
    taps = {call.tap for call in calls.values()}
    among = [call for call in line if call.tap in taps]
    tokens = [call for call in among if len(call.shape) == 3]
    sizes = list(dict.fromkeys(call.size for call in tokens))
    # Clearly coarser, each of them: tokens in front of the patches change the guessed side by little.
    if len(sizes) > 1 and all(3 * after[0] <= 2 * before[0] for before, after in pairwise(sizes)):
        return _resolutions([call for call in among if call.size in sizes], count)
    return _blocks(module, calls, count) or (_resolutions(among, count) if tokens else ())


def _blocks(module: nn.Module, calls: dict[str, _Call], count: int) -> tuple[str, ...]:
    """Submodules at even depths that give tokens: of the classes with several, the one that lies least deep.

    Layers without parts (a norm, a linear map) are no blocks.
    """
    groups: dict[tuple[int, type[nn.Module]], list[str]] = defaultdict(list)
    for path, call in calls.items():
        part = module.get_submodule(path)
        if len(call.shape) == 3 and any(part.children()):
            groups[path.count("."), type(part)].append(call.tap)
    ranked = sorted(groups.items(), key=lambda each: (each[0][0], -len(each[1])))
    # Two alike may be no more than the embeddings of two branches.
    alike = next((taps for least in (3, 2) for _, taps in ranked if len(taps) >= least), [])
    number = min(count, len(alike))
    return tuple(alike[-(-len(alike) * place // number) - 1] for place in range(1, number + 1))


def _line(module: nn.Module, path: str, calls: dict[str, _Call]) -> list[_Call]:
    """The calls of a module's parts in order, those parts opened that hold several stages or give no tensor alone."""
    found: list[_Call] = []
    for name, part in module.named_children():
        inner = f"{path}.{name}" if path else name
        parts = [calls[f"{inner}.{below}"] for below, _ in part.named_children() if f"{inner}.{below}" in calls]
        own = calls.get(inner)
        # Two resolutions are the two sides of a downsampling.
        whole = own is not None and len({call.size for call in parts if len(call.shape) in (3, 4)}) < 3
        if own is not None and whole:
            found.append(own)
        if own is None or own.several or not whole:
            found += _line(part, inner, calls)
    return sorted(found, key=lambda call: call.place)


def _dry_run(model: Model) -> dict[str, _Call]:
    """Path to call of the submodules that ran once and through which all of the image passes, in their order.

    Of a submodule that returns several values it is the input of whatever runs next with the first of them.
    """
    module, images = model.module, _images(model)
    copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with evaluating(module), torch.random.fork_rng(devices=[]):
        module.train()  # as it will run: some layers work in place only there
        seen, _ = _seen(module, copies, images)
        overwritten = {call.tap for call in seen if call.tensor._version != call.version}
        module.eval()  # every layer runs, also of those that are dropped at random
        with torch.enable_grad():
            seen, output = _seen(module, copies, images.requires_grad_())
    whole = _bottlenecks(output, images)
    alone = {call.edge for call in seen if not call.several and not call.tap.endswith(INPUT_SUFFIX)}
    overwritten |= {call.tap for call in seen if call.tensor._version != call.version}
    runs = Counter(call.tap for call in seen)
    calls: dict[str, _Call] = {}
    waiting: list[str] = []
    for call in seen:
        # What folds its parts of an image into the batch has other rows than the images.
        fine = runs[call.tap] == 1 and call.tap not in overwritten and call.shape[:1] == (2,)
        if call.edge not in whole:
            continue
        if call.tap.endswith(INPUT_SUFFIX):
            if fine and call.edge not in alone:
                call.several = True
                calls |= dict.fromkeys(waiting, call)
            waiting = []
        elif call.several:
            waiting.append(call.tap)
        elif fine:
            calls[call.tap] = call
    return calls


def _seen(module: nn.Module, buffers: dict[str, Tensor], images: Tensor) -> tuple[list[_Call], Tensor]:
    """Every tensor, or first of several, that goes into a submodule or comes out of it, and what the model returns."""
    layers = dict(module.named_modules())
    found: list[_Call] = []
    kernels: list[int] = []

    def see(tap: str, value: Any, _: Any) -> None:
        layer = layers[tap.removesuffix(INPUT_SUFFIX)]
        if isinstance(layer, nn.Conv2d) and not tap.endswith(INPUT_SUFFIX):
            kernels.append(max(layer.kernel_size))
        several = not isinstance(value, Tensor)
        if several:
            values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
            value = next(iter(values), None)
        if isinstance(value, Tensor):
            edge = (value.grad_fn, value.output_nr)
            found.append(_Call(tap, value, value._version, several, len(found), tuple(kernels), edge))

    with _watching(module, see):
        output = functional_call(module, buffers, (images * 1,))  # a leaf of the graph cannot be overwritten
    return found, output


def _bottlenecks(output: Tensor, image: Tensor) -> set[_Edge]:
    """What all that an output has of an image has passed through: it lies on every way from one to the other."""
    order: list[Any] = []  # each node after those that it was computed from
    entered: set[Any] = set()
    stack = [(output.grad_fn, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node is not None and node not in entered:
            entered.add(node)
            stack.append((node, True))
            stack += [(below, False) for below, _ in node.next_functions]
    ways: dict[Any, int] = {}  # to the image
    for node in order:
        is_image = getattr(node, "variable", None) is image
        ways[node] = int(is_image) + sum(ways.get(below, 0) for below, _ in node.next_functions)
    arriving: dict[Any, int] = defaultdict(int, {output.grad_fn: 1})
    along: dict[_Edge, int] = defaultdict(int, {(output.grad_fn, output.output_nr): 1})
    for node in reversed(order):
        for below, number in node.next_functions:
            arriving[below] += arriving[node]
            along[below, number] += arriving[node]
    return {
        edge for edge, count in along.items() if edge[0] is not None and count * ways[edge[0]] == ways[output.grad_fn]
    }
