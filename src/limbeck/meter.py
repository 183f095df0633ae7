"""The losses of an epoch: collected, recorded, and stopped at when one is not a number."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from limbeck import collectives
from limbeck.checkpoint import Counters, save_json
from limbeck.distiller import Clock, StepResult, Task
from limbeck.errors import UserError
from limbeck.runlog import RunLog

LOG_EVERY = 20  # batches between two records; on a GPU the losses are read only then, so that nothing waits for it

BAD_BATCH = "bad_batch.json"
"""In a run folder: the batch whose loss was not finite; of process N behind the first one ``bad_batch-N.json``."""


class _Facts(NamedTuple):
    """What is told of a batch whose loss is not finite, still on the device."""

    images: list[Tensor]
    finite: dict[str, Tensor]


class Meter:
    """Takes every result of one epoch and writes a record each ``LOG_EVERY`` batches and at the end.

    Losses in a record are means over its batches and over all processes; readings are those of its last batch.

    Args:
        log: Receives the records.
        counters: Of the run; images are counted here.
        epoch: From 0.
        device: Where the losses are. On the CPU each is looked at before its backward pass, which costs nothing there.
        clock: Of the teacher; what it adds from now on is in the records.
    """

    def __init__(
        self, log: RunLog, counters: Counters, epoch: int, device: torch.device, clock: Clock | None = None
    ) -> None:
        self._log = log
        self._counters = counters
        self._epoch = epoch
        self._device = device
        self._pending: list[tuple[int, Tensor, _Facts | None]] = []  # step and its values, still on the device
        self._names: list[str] = []
        self._window: list[list[float]] = []
        self._sums: list[float] = []
        self._batches = 0
        self._images = 0
        self._own = 0  # images of this process since the last record
        self._since = 0  # of all of them, if each had as many
        self._started = time.perf_counter()
        self._readings: dict[str, Tensor] = {}
        self._lr = 0.0
        self._clock = clock
        self._taught = self._teacher_total() or 0.0

    def check(self, result: StepResult, task: Task | None = None, batches: Sequence[Any] = ()) -> None:
        """Take the losses of a step, before its backward pass.

        Args:
            result: What the step gave.
            task: Knows which images a batch has.
            batches: Of the step, for what is written of it where a loss is not finite.

        Raises:
            UserError: If one of them, or of those that have not been looked at yet, is not finite.
        """
        self._names = ["loss", *result.parts]
        values = torch.stack([result.loss.detach().float(), *(part.float() for part in result.parts.values())])
        # Elsewhere than on the CPU nothing is read here, and the batch is gone when it is.
        is_told = self._device.type != "cpu" or not bool(values.isfinite().all())
        facts = _facts(result, task, batches) if is_told else None
        self._pending.append((self._counters.step + 1, values, facts))
        if self._device.type == "cpu" or len(self._pending) >= LOG_EVERY:
            self._read()

    def add(self, result: StepResult, optimizer: Optimizer) -> None:
        """A batch is done: count it, and write a record when it is time."""
        own = result.output.shape[0]
        images = own * collectives.world_size()  # until the next record, which adds up what each process had
        self._batches += 1
        self._own += own
        self._since += images
        self._images += images
        self._counters.images += images
        self._readings = result.readings
        self._lr = float(optimizer.param_groups[0]["lr"])
        self._log.advance(images, self._window[-1][0] if self._window else None)
        if self.is_recorded:
            self._record()

    def state(self) -> dict[str, Any]:
        """What :meth:`go_on` needs, in the middle of an epoch; sums are those of all processes.

        Raises:
            UserError: If a loss is not finite.
        """
        self._read()
        return {
            "names": self._names,
            "window": self._window,
            "sums": collectives.mean_across(self._sums, self._device),
            "batches": self._batches,
            "images": self._images,
            "seconds": time.perf_counter() - self._started,
            "readings": {name: value.detach().cpu() for name, value in self._readings.items()},
            "lr": self._lr,
            "taught": (self._teacher_total() or 0.0) - self._taught,
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Go on with an epoch from a :meth:`state`."""
        self._names, self._window, self._sums = state["names"], state["window"], state["sums"]
        self._batches, self._images = state["batches"], state["images"]
        self._started = time.perf_counter() - state["seconds"]
        self._readings, self._lr = state["readings"], state["lr"]
        self._taught = (self._teacher_total() or 0.0) - state["taught"]

    @property
    def is_recorded(self) -> bool:
        """Whether the batch that was added last has been recorded, so that the processes have just talked."""
        return self._batches % LOG_EVERY == 0

    def finish(self) -> dict[str, float]:
        """Mean loss and parts of the epoch, and its speed; a record of the batches that are in none yet.

        Raises:
            UserError: If a loss is not finite.
        """
        self._record()
        means = collectives.mean_across([total / self._batches for total in self._sums], self._device)
        return dict(zip(self._names, means, strict=True)) | {"images_per_second": self._speed()}

    def _speed(self) -> float:
        return self._images / (time.perf_counter() - self._started)

    def _read(self) -> None:
        if not self._pending:
            return
        rows = _numbers([values for _, values, _ in self._pending])
        for (step, _, facts), numbers in zip(self._pending, rows, strict=True):
            for name, number in reversed(list(zip(self._names, numbers, strict=True))):
                if not math.isfinite(number):
                    part = f'part "{name}"' if name != "loss" else "the weighted sum"
                    raise UserError(
                        f"the loss is not finite at step {step} (epoch {self._epoch + 1}): {part} is {number}"
                        f"{self._told(step, numbers, facts)}; "
                        "the last checkpoint is from before it. Lower the learning rate, or try float32"
                    )
            self._window.append(numbers)
            self._sums = [a + b for a, b in zip(self._sums or [0.0] * len(numbers), numbers, strict=True)]
        self._pending.clear()

    def _told(self, step: int, numbers: list[float], facts: _Facts | None) -> str:
        """Write down a batch whose loss is not finite; where that is, and what else is not, in words."""
        if facts is None:
            return ""
        finite = {name: bool(flag) for name, flag in facts.finite.items()}
        first = next((name for name, fine in finite.items() if not fine), "")
        said = f"; the {first} is not finite before it" if first else ""
        if self._log.path is None:
            return said
        name = BAD_BATCH if collectives.rank() == 0 else f"{BAD_BATCH[:-5]}-{collectives.rank()}.json"
        path = self._log.path.parent / name
        images: list[int] = []
        for index in facts.images:
            images += index.tolist()  # pyright: ignore[reportUnknownMemberType]
        record = {
            "step": step,
            "epoch": self._epoch + 1,
            "images": images,
            "first": first or "loss",
            "finite": finite,
            "losses": {key: str(value) for key, value in zip(self._names, numbers, strict=True)},  # NaN is no JSON
        }
        try:
            save_json(record, path)
        except UserError as error:  # a full disk must not hide the fault itself
            return f"{said} ({error})"
        return f"{said}, the batch is in {path}"

    def _record(self) -> None:
        self._read()
        if not self._window:
            return
        readings: dict[str, float] = {}
        if self._readings:
            values = _numbers([torch.stack([value.float() for value in self._readings.values()])])[0]
            readings = dict(zip(self._readings, values, strict=True))
        means = [sum(column) / len(self._window) for column in zip(*self._window, strict=True)]
        *shared, own = collectives.mean_across([*means, *readings.values(), self._own], self._device)
        unequal = round(own * collectives.world_size()) - self._since
        self._images += unequal
        self._counters.images += unequal
        self._own = self._since = 0
        named = dict(zip(self._names, shared, strict=False))
        self._log.write(
            "step",
            step=self._counters.step,
            epoch=self._epoch + 1,
            loss=named.pop("loss"),
            parts=named,
            readings=dict(zip(readings, shared[len(means) :], strict=True)),
            lr=self._lr,
            images_per_second=self._speed(),
            **self._teacher_seconds(),
        )
        self._window.clear()

    def _teacher_total(self) -> float | None:
        return self._clock.seconds if self._clock is not None else None

    def _teacher_seconds(self) -> dict[str, float]:
        """What the teacher has taken since the last record, on the first process; nothing where it is not timed."""
        total = self._teacher_total()
        if total is None:
            return {}
        before, self._taught = self._taught, total
        return {"teacher_seconds": total - before}


def _numbers(rows: list[Tensor]) -> list[list[float]]:
    """The numbers of vectors of one length, in one read from their device."""
    found: list[list[float]] = torch.stack(rows).cpu().tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return found


def _facts(result: StepResult, task: Task | None, batches: Sequence[Any]) -> _Facts:
    found = [index for batch in batches if task is not None and (index := task.index(batch)) is not None]
    inputs = [item for batch in batches for item in ([batch] if isinstance(batch, Tensor) else list(batch)[:1])]
    fine = [item.isfinite().all() for item in inputs if isinstance(item, Tensor)]
    finite = {"input": torch.stack(fine).all()} if fine else {}
    return _Facts(found, {**finite, "student": result.output.detach().isfinite().all()})
