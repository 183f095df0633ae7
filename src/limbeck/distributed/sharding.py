"""Modules of whose parameters each process holds a share (FSDP2): how they are cut up, put together, and measured.

A sharded parameter is a ``DTensor`` that torch's ``fully_shard`` made. Where nothing is sharded every function here
gives what it gets, and nothing crosses processes; where something is, every process calls them.
"""

import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from limbeck.distributed import collectives
from limbeck.errors import UserError

LARGEST, SMALLEST = 1 / 8, 1 / 100  # shares of a module's parameters that are gathered together
_ATOMS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # read their parts' weights


def is_sharded(x: object) -> bool:
    """Whether a tensor, or any parameter of a module, is sharded."""
    if isinstance(x, nn.Module):
        return any(is_sharded(parameter) for parameter in x.parameters())
    return isinstance(x, Tensor) and hasattr(x, "to_local")  # of a DTensor, without the second that its import takes


def local(x: Tensor) -> Tensor:
    """The share of this process, without gradient, in the memory of the tensor."""
    if not is_sharded(x):
        return x.detach()
    cut: Any = x
    with torch.no_grad():
        return cut.to_local()


def whole(x: Tensor) -> Tensor:
    """The tensor of all processes, without gradient."""
    if not is_sharded(x):
        return x.detach()
    cut: Any = x
    with torch.no_grad():
        return cut.full_tensor()


def gathered(state: Any) -> Any:
    """A state dict, or anything of mappings and lists, with whole tensors: on the first process, in its main memory.

    Elsewhere there is None for each tensor that is sharded: one at a time is whole there.
    """

    def gather(value: Any) -> Any:
        if not is_sharded(value):
            return value
        full = whole(value)
        return full.cpu() if collectives.rank() == 0 else None

    return tree_map(gather, state)


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` of whole tensors, of which each process takes its shares.

    Raises:
        RuntimeError: As from ``load_state_dict``, if names or shapes differ.
    """
    own = module.state_dict()
    shares = {name: _share_of(value, own.get(name)) for name, value in state.items()}
    module.load_state_dict(versioned(shares, module), strict=True)


def versioned(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """A state dict with the versions of a module's parts, which files of tensors lack and MNASNet needs to load."""
    held = module.state_dict()  # torch keeps the versions in an attribute of this mapping
    held.clear()
    held.update(state)
    return held


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """``load_state_dict`` of an optimizer in the same way.

    Raises:
        ValueError, KeyError: As from ``load_state_dict``, if groups or parameters differ.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    taken = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=False):
        values: Mapping[str, Any] = taken.get(number, {})
        taken[number] = {name: _share_of(value, parameter) for name, value in values.items()}
    optimizer.load_state_dict({**state, "state": {number: values for number, values in taken.items() if values}})


def _share_of(value: Any, like: Tensor | None) -> Any:
    """The share that a process has of a whole tensor, where its own is sharded and of that shape."""
    if not is_sharded(like) or not isinstance(value, Tensor) or like is None or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor

    cut: Any = like
    shares = value.to(like.device).chunk(collectives.world_size())  # every process has read all of it
    own = shares[collectives.rank()] if collectives.rank() < len(shares) else value[:0].to(like.device)
    shape, stride = value.shape, value.stride()
    return DTensor.from_local(own.clone(), cut.device_mesh, cut.placements, run_check=False, shape=shape, stride=stride)


@torch.no_grad()
def copy_whole(source: nn.Module, target: nn.Module) -> None:
    """Give a module, whole on each process, the parameters and buffers of one that is sharded."""
    state = {name: whole(value) for name, value in source.state_dict().items()}
    target.load_state_dict(versioned(state, target), strict=True)


def finite(tensors: Iterable[Tensor]) -> list[bool]:
    """Which of the tensors are finite, all shares of each included."""
    tensors = list(tensors)
    if not tensors:
        return []
    found = [local(x).isfinite().all() for x in tensors]
    device = next((flag.device for flag in found if flag.device.type != "cpu"), torch.device("cpu"))
    broken = torch.stack([~flag.to(device) for flag in found]).to(torch.uint8)
    if any(is_sharded(x) for x in tensors):
        broken = collectives.max_across(broken)
    return [not flag for flag in broken.cpu().tolist()]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def check_shardable(module: nn.Module, name: str) -> None:
    """Refuse parameters that cannot be cut up.

    Raises:
        UserError: If one is a scalar or not contiguous; it names the first.
    """
    for path, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise UserError(f"shard: {name}.{path} is a scalar, which cannot be cut up; make it a vector of one number")
        if not is_sharded(parameter) and not parameter.is_contiguous():
            raise UserError(f"shard: {name}.{path} is not contiguous (channels_last?); expected the ordinary layout")


def shard(module: nn.Module, device: torch.device, *, keeps: bool) -> None:
    """Cut up the parameters of a module that has not been cut up yet, but for those of units within it.

    Args:
        module: Its ``forward`` is what gathers them, and moves them to the device.
        device: Of the training.
        keeps: Whether they stay whole from the forward to the end of the backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (collectives.world_size(),))
    fully_shard(module, mesh=mesh, reshard_after_forward=not keeps)


def shard_frozen(module: nn.Module, device: torch.device) -> None:
    """Cut up a module that does not train so that no process ever holds all of it on its device.

    Its larger parts become units: one is gathered when it runs, and let go behind that. The module may lie in main
    memory; its units move to the device one by one, with the values of the first process.
    """
    if is_sharded(module):
        return
    check_shardable(module, "teacher")
    with torch.no_grad():
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            moved = tensor.to(device)
            collectives.copy_from_first([moved])
            tensor.copy_(moved)
    for unit in units_of(module):
        shard(unit, device, keeps=False)
    shard(module, device, keeps=False)


@contextmanager
def explained(module: nn.Module) -> Generator[None, None, None]:
    """Inside it, a model that cannot be cut up where it was is told of in one line.

    Raises:
        UserError: If a sharded module computes with a part's weights that nothing has put together.
    """
    try:
        yield
    except RuntimeError as error:
        if (told := reason(module, error)) is None:
            raise
        raise UserError(told) from error


def reason(module: nn.Module, error: RuntimeError) -> str | None:
    """Why a sharded module fails, where it computes with a part's weights that nothing has put together."""
    if not is_sharded(module) or "DTensor" not in str(error):
        return None
    kind = type(module).__name__.removeprefix("FSDP")
    return (
        f"shard: {kind} cannot be cut up, for it reads the weights of a part instead of calling it "
        f"({str(error).splitlines()[0]})"
    )


def units_of(module: nn.Module) -> list[nn.Module]:
    """The parts of a module that are gathered one at a time: from the top, those of at most an eighth of it.

    What is smaller than a hundredth stays with the module around it, for a message costs more than it saves. So does
    what shares a parameter with another part.

    Example:
        >>> model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(10)))
        >>> len(units_of(model))
        10
    """
    total = _numbers(module)
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []

    def walk(part: nn.Module) -> None:
        for child in part.children():
            size = _numbers(child)
            runs = not isinstance(child, (nn.ModuleList, nn.ModuleDict))  # a list of modules is never called
            runs = runs and all(uses[id(parameter)] == 1 for parameter in child.parameters())
            inner = any(_numbers(grandchild) for grandchild in child.children())
            if size < SMALLEST * total or size == 0:
                continue
            if runs and (size <= LARGEST * total or not inner or isinstance(child, _ATOMS)):
                found.append(child)
            else:
                walk(child)

    walk(module)
    return found


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
