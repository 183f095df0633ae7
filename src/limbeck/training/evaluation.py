"""Score a model on a loader, over all processes, in float32."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from limbeck.distiller import Distiller, Task, evaluating
from limbeck.distributed import collectives, sharding
from limbeck.training.prefetch import in_background


@runtime_checkable
class SetScored(Protocol):
    """A task whose metric belongs to a set of samples and is no mean over them, as average precision is."""

    def evaluate(self, model: nn.Module, batches: Iterable[tuple[Any, bool]]) -> dict[str, float]:
        """The metrics of a model, over all processes, the same on each.

        Args:
            model: In eval mode, without gradient.
            batches: Each with whether it is to be counted here; it is not where it is another process's, which a
                process without one of its own gets.
        """
        ...


def evaluate(model: nn.Module, task: Task, loader: Iterable[Any], device: torch.device) -> dict[str, float]:
    """Mean of the task's per-sample scores over all batches and processes, in float32 and eval mode.

    Of a task that is :class:`SetScored` what it makes of the set. Empty where the task has no scores or the loader no
    batch.
    """
    batches = shared_batches(loader, device, in_step=sharding.is_sharded(model))
    if isinstance(task, SetScored):
        with evaluating(model):
            return task.evaluate(model, batches)
    # Sums stay on the device, which is read once. MPS has no float64; counts and sums of a share fit float32 there.
    kind = torch.float32 if device.type == "mps" else torch.float64
    totals: dict[str, Tensor] = {}
    count = 0
    with evaluating(model), sharding.explained(model):
        for moved, is_own in batches:
            scores = task.score(model(task.student_input(moved)), moved)
            if not scores:
                return {}
            for name, values in scores.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=kind, device=device))
                totals[name] += values.to(kind).sum() if is_own else 0
            count += next(iter(scores.values())).shape[0] if is_own else 0
    if not totals:
        return {}
    names = sorted(totals)
    packed = torch.stack([torch.full((), count, dtype=kind, device=device), *(totals[name] for name in names)])
    packed = collectives.sum_across(packed).cpu()
    return {name: float(value / packed[0]) for name, value in zip(names, packed[1:], strict=True)}


def evaluate_terms(
    distiller: Distiller, model: nn.Module, loader: Iterable[Any], device: torch.device
) -> dict[str, float]:
    """Mean loss, parts and readings over all batches, for data without labels: the terms measured on unseen images.

    ``model`` takes the place of the distiller's student, whose moving average it may be. Terms cross processes, which
    would only repeat the same batch here, so each process computes by itself, and all of them the same. A last batch
    of one image is left out: batch statistics of one image have no meaning.
    """
    totals: dict[str, Tensor] = {}
    kind = torch.float32 if device.type == "mps" else torch.float64
    count = 0
    judged = distiller.with_student(model)
    with evaluating(judged), collectives.alone():
        for moved in arriving(loader, device):
            if count > 0 and judged.task.student_input(moved).shape[0] == 1:
                continue
            result = judged(moved)
            for name, value in {"loss": result.loss, **result.parts, **result.readings}.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=kind, device=device)) + value.to(kind)
            count += 1
    sums: list[float] = torch.stack(list(totals.values())).tolist() if totals else []  # pyright: ignore
    return {name: total / count for name, total in zip(totals, sums, strict=True)}


def validate(distiller: Distiller, model: nn.Module, loader: Iterable[Any], device: torch.device) -> dict[str, float]:
    """The task's scores of ``model``; where the task has none, the terms' losses on the validation images."""
    scores = evaluate(model, distiller.task, loader, device)
    return scores if scores else evaluate_terms(distiller, model, loader, device)


def shared_batches(loader: Iterable[Any], device: torch.device, *, in_step: bool = False) -> Iterator[tuple[Any, bool]]:
    """The batches of this process on the device, each with whether it is to be counted here (:class:`SetScored`).

    Args:
        loader: All batches.
        device: Where they go.
        in_step: Every process gets as many, for a model whose shares all of them put together.
    """
    return arriving(_own_share(loader, in_step=in_step), device)


def _own_share(loader: Iterable[Any], *, in_step: bool) -> Iterator[tuple[Any, bool]]:
    """The batches of this process; where it would have none, one of another, not to be counted, for its names.

    Args:
        loader: All batches.
        in_step: Every process gets as many, for a model whose shares all of them put together.
    """
    world, rank = collectives.world_size(), collectives.rank()
    lead, rounds, own = None, 0, 0
    for number, batch in enumerate(loader):
        if number % world == 0:
            lead, rounds = batch, rounds + 1
        if number % world == rank:
            own += 1
            yield batch, True
    if own < rounds and (in_step or own == 0):
        yield lead, False


def arriving(batches: Iterable[Any], device: torch.device, *, ahead: bool = True) -> Iterator[Any]:
    """The batches on the device. For a GPU they are made and sent by a thread, while it computes the ones before.

    Not on a CPU, where the step keeps the cores busy that the thread would need, and not without ``ahead``.
    """
    source = iter(batches)
    moved = (to_device(batch, device) for batch in source)
    return in_background(moved) if ahead and device.type == "cuda" else moved


def to_device(value: Any, device: torch.device) -> Any:
    """A batch with its tensors on the device; tuples, named tuples, lists and mappings keep their type.

    On the way to a GPU through pinned memory, so that no thread waits for what the GPU still has to do.
    """
    if isinstance(value, Tensor):
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # pyright: ignore[reportUnknownArgumentType]
        return type(value)(*(to_device(item, device) for item in value))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value
