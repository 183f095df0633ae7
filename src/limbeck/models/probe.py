"""Look at a model by running it once: does it run at this size, and which layer is its classifier."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.features.taps import Taps
from limbeck.models.spec import Model

WEIGHTED = (nn.Linear, nn.Conv2d)


def run_once(module: nn.Module, name: str, size: int) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """One forward pass on two blank images, in training mode, that leaves no trace in the model.

    Args:
        module: the model.
        name: how messages call it.
        size: height and width of the images.

    Returns:
        The output, and name and output of each Linear and Conv2d in the order in which they were called.

    Raises:
        UserError: if the model does not run at this size or does not return one tensor with a row per image.
    """
    output, calls = raw_output(module, name, size, training=True)
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise UserError(f"{name} returns a {kind}{keys} in training mode: a model must return one tensor (of logits)")
    if output.ndim != 2 or output.shape[0] != 2:
        raise UserError(f"{name} returns shape {tuple(output.shape)} for 2 images: (2, classes) is wanted")
    return output, calls


def raw_output(module: nn.Module, name: str, size: int, *, training: bool) -> tuple[object, list[tuple[str, Tensor]]]:
    """As `run_once`, whatever the output is, in training or in evaluation mode: some models return a tuple in one only.

    Buffers are replaced by copies during the pass, so running statistics stay as they were, and the random state is put
    back.

    Raises:
        UserError: if the model does not run at this size.
    """
    calls: list[tuple[str, Tensor]] = []
    paths: dict[nn.Module, str] = {layer: path for path, layer in module.named_modules() if isinstance(layer, WEIGHTED)}

    def note(layer: nn.Module, _inputs: object, result: Tensor) -> None:
        calls.append((paths[layer], result))

    hooks = [layer.register_forward_hook(note) for layer in paths]
    first = next(module.parameters(), torch.empty(0))
    images = torch.zeros(2, 3, size, size, device=first.device, dtype=first.dtype)
    copies = {key: buffer.clone() for key, buffer in module.named_buffers()}
    modes = {layer: layer.training for layer in module.modules()}
    try:
        module.train(training)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = functional_call(module, copies, (images,))
    except Exception as error:  # also of a user's own code, which may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} does not run on images of {size}x{size}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes.items():
            layer.training = training
    return output, calls


def classifiers(name: str, output: Tensor, calls: list[tuple[str, Tensor]]) -> tuple[str, ...]:
    """The layers whose output is the model's output.

    That is the Linear layer that was called last, if its result is what the model returns; a convolution that was
    called last and has one channel per class, which the model then pools (SqueezeNet); or the two Linear layers that
    were called last, if the model returns their mean (DeiT of transformers), that of the labels first.

    Raises:
        UserError: if there is none.
    """
    if calls:
        path, result = calls[-1]
        if result is output or (result.shape[1] == output.shape[1] and (result.ndim == 4 or _same(result, output))):
            return (path,)
        if len(calls) > 1 and all(each.shape == output.shape for _, each in calls[-2:]):
            (first, labels), (second, taught) = calls[-2:]
            if torch.equal(output, (labels + taught) / 2):
                return (first, second)
    last = f'the last one called, "{calls[-1][0]}", is not' if calls else "it calls none"
    raise UserError(f"{name} has no linear layer whose output is the model's output ({last})")


def entrance(module: nn.Module, path: str, calls: list[tuple[str, Tensor]]) -> str:
    """The first layer with weights of a classifier that a library names: the hidden one of an MLP (CAFormer)."""
    if isinstance(module.get_submodule(path), nn.ModuleList):
        return path
    return next((called for called, _ in calls if called.startswith(f"{path}.")), path)


def weighted(module: nn.Module, path: str, calls: list[tuple[str, Tensor]]) -> tuple[str, ...]:
    """The layers with weights that make up a classifier which a library names.

    The layer itself, if it is one; each of a list (CrossViT has one per branch, EfficientViM one per stage), the last
    and deepest first; else the one that was called last inside it, since what comes before (pooling in Sequencer, a
    batch norm in LeViT) is no part of the decision.
    """
    layer = module.get_submodule(path)
    if isinstance(layer, WEIGHTED):
        return (path,)
    if isinstance(layer, nn.ModuleList):
        items = [f"{path}.{index}" for index in reversed(range(len(layer)))]
        return tuple(found for item in items for found in weighted(module, item, calls))
    return tuple(called for called, _ in calls if called.startswith(f"{path}."))[-1:]


def _same(result: Tensor, output: Tensor) -> bool:
    # A view (squeeze, flatten) is another object on the same memory; tensors without memory (meta) are told by `_base`.
    return result is output._base or (result.device.type != "meta" and result.data_ptr() == output.data_ptr())


def unused_parameters(model: Model, taps: Sequence[str] = ()) -> list[str]:
    """Trainable parameters that the output and the tapped features do not depend on, in training and in evaluation.

    No gradient reaches them, and both are the same with NaN in their place. They leave no trace of it.
    """
    module, read = model.module, Taps(model.module, taps)
    images = torch.zeros(2, 3, model.input.size, model.input.size).to(next(module.parameters(), torch.empty(0)))
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    rest = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    kept: dict[str, Tensor] = {}
    try:
        for training in (True, False):
            with evaluating(module), torch.random.fork_rng(devices=[]), torch.enable_grad():
                module.train(training)
                captured = read(images)
                total = torch.stack([x.float().sum() for x in (captured.output, *captured.features.values())]).sum()
                if total.requires_grad:
                    total.backward()  # and not autograd.grad, which re-entrant checkpointing refuses
            rest = {name: parameter for name, parameter in rest.items() if parameter.grad is None}
            module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in rest.items():
                kept[name] = parameter.clone()
                parameter.fill_(torch.nan)
        for training in (True, False) if rest else ():
            with evaluating(module), torch.random.fork_rng(devices=[]):
                module.train(training)
                captured = read(images)
                if any(x.isnan().any() for x in (captured.output, *captured.features.values())):
                    return []
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                module.get_parameter(name).copy_(value)
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    return list(rest)


def name_of(module: nn.Module, layer: nn.Module) -> str | None:
    """The dotted name of a layer, found by identity; None if the model does not hold it."""
    return next((path for path, candidate in module.named_modules() if candidate is layer), None)
