"""What is told of a step whose numbers are not finite: what was not finite first, and the batch, kept to look at."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.distiller import Distiller, Task
from limbeck.distributed import collectives, sharding
from limbeck.errors import UserError
from limbeck.storage.files import save_json, save_weights
from limbeck.storage.random_state import REWINDING, random_state, set_random_state
from limbeck.training.optim import named

BAD_BATCH = "bad_batch.json"
"""In a run folder: the last step whose numbers were not finite; of process N behind the first ``bad_batch-N.json``.

Its images, labels and numbers are beside it, where they were still there when it was found, in a file that ends in
``.safetensors``.
"""

ADVICE = "the last checkpoint is from before it. Lower the learning rate, or try float32"
OF_TEACHER = "check the teacher's weights, its mean and std, and these images, or try float32"

MOST_BYTES = 256 * 2**20  # of the images that are kept: a batch of 128 at 224 pixels has 77 MB


@dataclass(frozen=True)
class Finding:
    """A step whose numbers are not finite.

    Attributes:
        step: From 1.
        epoch: From 1.
        losses: The weighted sum as ``"loss"``, and the parts by name.
        norm: Of the gradient, over all trainable parameters.
        finite: What the step computes, in its order, and whether it is finite: ``"input"``, ``"parameters"``,
            ``"teacher layer4"``, ``"teacher output"``, ``"student layer4"``, ``"student output"``.
        images: Numbers of the batch's images in the training set; empty where the batch does not say.
        parameters: Names of those that are not finite.
        gradients: Names of those whose gradient is not finite.
        faulty: Numbers of the images for which ``first`` is not finite; empty where that is not known.
    """

    step: int
    epoch: int
    losses: dict[str, float]
    norm: float
    finite: dict[str, bool]
    images: list[int]
    parameters: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    faulty: tuple[int, ...] = ()

    @property
    def first(self) -> str:
        """What is not finite first: one of ``finite``, or the task, a term, the loss (their sum) or the gradient."""
        parts = {_part(name): math.isfinite(value) for name, value in self.losses.items() if name != "loss"}
        steps = {**self.finite, **parts, "loss": math.isfinite(self.losses["loss"])}
        return next((name for name, fine in steps.items() if not fine), "gradient")

    @property
    def is_own(self) -> bool:
        """Whether this process's batch is at fault. Terms, gradients and parameters are those of all processes."""
        return self.first == "task" or (self.first in self.finite and self.first != "parameters")

    @property
    def text(self) -> str:
        """The fault in words."""
        what, how = "gradient", f"its norm is {self.norm}"
        if self.gradients:
            how = f"that of {named(self.gradients)}"
        for name, value in reversed(self.losses.items()):
            if not math.isfinite(value):
                what, how = "loss", f'part "{name}" is {value}' if name != "loss" else f"the weighted sum is {value}"
                break
        said = ""
        whose = images_in_words(self.faulty)
        if self.first == "parameters":
            said = f"; before it {named(self.parameters)} is not"
        elif self.first in self.finite and what == "gradient" and math.isfinite(self.norm) and not self.gradients:
            what, how = self.first, f"NaN{whose}, though the loss is finite"
        elif self.first in self.finite:
            said = f"; the {self.first} is not finite before it{whose}"
        process = f", process {collectives.rank()}" if self.is_own and collectives.world_size() > 1 else ""
        return f"the {what} is not finite at step {self.step} (epoch {self.epoch}{process}): {how}{said}"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return OF_TEACHER if self.first.startswith("teacher") else ADVICE

    def record(self) -> dict[str, Any]:
        """All of it for a JSON file, in which NaN has no place."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "images": self.images,
            "faulty": self.faulty,
            "first": self.first,
            "finite": self.finite,
            "losses": {name: str(value) for name, value in self.losses.items()},
            "gradient_norm": str(self.norm),
            "gradients": self.gradients,
            "parameters": self.parameters,
        }


def _part(name: str) -> str:
    return name if name == "task" else f"term {name}"


@torch.no_grad()
def retrace(
    distiller: Distiller,
    batches: Sequence[Any],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> dict[str, Tensor]:
    """Run the models once more on the batches of a step that has not been taken, and look at all that they compute.

    Draws no random number: the generators are put back. Running statistics move.

    Returns:
        For each name that :attr:`Finding.finite` has: which rows are finite, of all batches.
    """
    found: dict[str, list[Tensor]] = {}

    def look(name: str, value: Tensor, rows: int) -> None:
        finite = value.isfinite().unsqueeze(-1).flatten(1).all(1)
        found.setdefault(name, []).append(finite if len(finite) == rows else finite.all().expand(rows))

    for batch in batches:
        if (images := images_of(batch)) is not None:
            look("input", images, len(images))
    found["parameters"] = [torch.tensor(sharding.finite(distiller.trainable_parameters().values()))]
    with REWINDING:
        before = random_state(device)
        for batch in batches:
            with autocast():
                student, teacher = distiller.capture(batch)
            for side, captured in (("teacher", teacher), ("student", student)):
                for tap, feature in captured.features.items() if captured is not None else ():
                    look(f"{side} {tap}", feature, len(student.output))
                if captured is not None:
                    look(f"{side} output", captured.output, len(student.output))
        set_random_state(before, device)
    return {name: torch.cat(parts).cpu() for name, parts in found.items()}


def at_fault(rows: Mapping[str, Tensor], images: Sequence[int]) -> tuple[int, ...]:
    """Numbers of the images for which the first thing that is not finite is not.

    Args:
        rows: What :func:`retrace` gives.
        images: Numbers of the batch's images; empty where the batch does not say.
    """
    first = next((name for name, sound in rows.items() if not bool(sound.all())), "parameters")
    if first == "parameters" or len(rows[first]) != len(images):
        return ()
    return tuple(image for image, sound in zip(images, rows[first], strict=True) if not bool(sound))


def images_in_words(numbers: Sequence[int]) -> str:
    """Behind what is not finite: for which training images; nothing where none are known."""
    return f" (training images {named([str(number) for number in numbers])})" if numbers else ""


def broken_parameters(distiller: Distiller) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the trainable parameters that are not finite, and of those whose gradient is not."""
    parameters = distiller.trainable_parameters()
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    values = zip(parameters, sharding.finite(parameters.values()), strict=True)
    slopes = zip(gradients, sharding.finite(gradients.values()), strict=True)
    return tuple(name for name, fine in values if not fine), tuple(name for name, fine in slopes if not fine)


def images_of(batch: Any) -> Tensor | None:
    """The images of a batch: the batch itself or its first item, where that is a tensor of numbers with a fraction."""
    found = batch if isinstance(batch, Tensor) else next(iter(batch), None)
    return found if isinstance(found, Tensor) else None


def numbers_of(task: Task, batches: Sequence[Any]) -> list[Tensor]:
    """Which images the batches have, where they say."""
    return [index for batch in batches if (index := task.index(batch)) is not None]


def listed(numbers: Sequence[Tensor]) -> list[int]:
    """The numbers of images as plain ones, read from their device."""
    found: list[int] = []
    for index in numbers:
        found += index.tolist()  # pyright: ignore[reportUnknownMemberType]
    return found


def save(finding: Finding, folder: Path, batches: Sequence[Any], task: Task) -> str:
    """Write a finding into a run folder, with its batches where there are any; where it is, in words.

    A disk that is full must not hide the fault itself, so it is told, and no error.
    """
    rank = collectives.rank()
    path = folder / (BAD_BATCH if rank == 0 else f"{BAD_BATCH[:-5]}-{rank}.json")
    try:
        save_json(finding.record(), path)
        tensors = _tensors(batches, task)
        if tensors:
            save_weights(tensors, path.with_suffix(".safetensors"))
        else:
            path.with_suffix(".safetensors").unlink(missing_ok=True)  # of an earlier step
    except (UserError, OSError) as error:
        return f" ({error})"
    return f", the batch is in {path}"


def _tensors(batches: Sequence[Any], task: Task) -> Mapping[str, Tensor]:
    """Images, labels and numbers of the first rows, as many as ``MOST_BYTES`` hold."""
    columns: dict[str, list[Tensor | None]] = {
        "images": [images_of(batch) for batch in batches],
        "labels": [task.target(batch) for batch in batches],
        "numbers": [task.index(batch) for batch in batches],
    }
    found: dict[str, Tensor] = {}
    rows = 0
    for name, column in columns.items():
        parts = [part for part in column if part is not None]
        if parts and len(parts) == len(batches) and len({part.shape[1:] for part in parts}) == 1:
            whole = torch.cat(parts)
            rows = rows or max(1, MOST_BYTES // max(whole[:1].nbytes, 1))  # those of the images
            found[name] = whole[:rows]
    return found
