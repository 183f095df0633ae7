"""The losses of an epoch: collected, recorded, and meaned."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from limbeck.distiller import Clock, StepResult
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Counters
from limbeck.training.guard import Guard, read_rows
from limbeck.training.precision import run_delay

BUSY = 0.3  # share of an epoch that threads wait for a core, which is worth a line
BRIEF = 5.0  # seconds of an epoch that says nothing of it
LOG_EVERY = 20  # batches between two records; on a GPU the losses are read only then, so that nothing waits for it


class Meter:
    """Takes every result of one epoch and writes a record each ``LOG_EVERY`` batches and at the end.

    Losses in a record are means over its batches and over all processes; readings are those of its last batch. Batches
    that were left out are in none.

    Args:
        log: Receives the records.
        counters: Of the run; images are counted here.
        epoch: From 0.
        device: Where the losses are; they are read at once on the CPU, where that costs nothing.
        guard: Is asked to look at the steps whenever the device is read.
        clock: Of the teacher; what it adds from now on is in the records.
    """

    def __init__(
        self,
        log: RunLog,
        counters: Counters,
        epoch: int,
        device: torch.device,
        guard: Guard,
        clock: Clock | None = None,
    ) -> None:
        self._log = log
        self._counters = counters
        self._epoch = epoch
        self._device = device
        self._guard = guard
        self._pending: list[Tensor] = []  # values of a step each, still on the device
        self._names: list[str] = []
        self._window: list[list[float]] = []
        self._sums: list[float] = []
        self._batches = 0
        self._taken = 0
        self._images = 0
        self._own = 0  # images of this process since the last record
        self._since = 0  # of all of them, if each had as many
        self._started = time.perf_counter()
        self._readings: dict[str, Tensor] = {}
        self._lr = 0.0
        self._began, self._delayed = time.perf_counter(), run_delay()  # of this process, whatever it continues
        self._clock = clock
        self._taught = self._teacher_total() or 0.0

    def add(self, result: StepResult, optimizer: Optimizer, *, taken: bool = True) -> None:
        """A batch is done: count it, unless it was left out, and write a record when it is time.

        Raises:
            UserError: If the numbers of a step are not finite that has not been looked at yet.
        """
        self._batches += 1
        own = result.output.shape[0] if taken else 0
        images = own * collectives.world_size()  # until the next record, which adds up what each process had
        if taken:
            self._names = ["loss", *result.parts]
            self._pending.append(
                torch.stack([result.loss.detach().float(), *(part.float() for part in result.parts.values())])
            )
            self._taken += 1
            self._own += own
            self._since += images
            self._images += images
            self._counters.images += images
            self._readings = result.readings
            self._lr = float(optimizer.param_groups[0]["lr"])
        if self._device.type == "cpu" or self.is_recorded:
            self._read()
        self._log.advance(images, self._window[-1][0] if self._window else None)
        if self.is_recorded:
            self._record()

    def state(self) -> dict[str, Any]:
        """What :meth:`go_on` needs, in the middle of an epoch; sums are those of all processes.

        Raises:
            UserError: If the numbers of a step are not finite.
        """
        self._read()
        return {
            "names": self._names,
            "window": self._window,
            "sums": collectives.mean_across(self._sums, self._device),
            "batches": self._batches,
            "taken": self._taken,
            "images": self._images,
            "seconds": time.perf_counter() - self._started,
            "readings": {name: value.detach().cpu() for name, value in self._readings.items()},
            "lr": self._lr,
            "taught": (self._teacher_total() or 0.0) - self._taught,
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Go on with an epoch from a :meth:`state`."""
        self._names, self._window, self._sums = state["names"], state["window"], state["sums"]
        self._batches, self._taken, self._images = state["batches"], state["taken"], state["images"]
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
            UserError: If the numbers of a step are not finite, or all steps of the epoch have been left out.
        """
        self._record()
        if self._taken == 0:
            raise UserError(f"no step of epoch {self._epoch + 1} could be taken: the numbers of none were finite")
        self._note_a_busy_machine()
        means = collectives.mean_across([total / self._taken for total in self._sums], self._device)
        return dict(zip(self._names, means, strict=True)) | {"images_per_second": self._speed()}

    def _note_a_busy_machine(self) -> None:
        """Say that other processes have our cores: OpenMP's threads wait for each other, and steps take longer."""
        taken = time.perf_counter() - self._began
        waited = (run_delay() - self._delayed) / taken
        if self._device.type == "cpu" and self._epoch == 0 and taken > BRIEF and waited > BUSY:
            fewer = f"; OMP_NUM_THREADS={n // 2} may be faster" if (n := torch.get_num_threads()) > 1 else ""
            self._log.note(f"the machine is busy: threads waited for a core {waited:.0%} of the first epoch{fewer}")

    def _speed(self) -> float:
        return self._images / (time.perf_counter() - self._started)

    def _read(self) -> None:
        self._guard.read()
        if not self._pending:
            return
        for numbers in read_rows(self._pending):
            self._window.append(numbers)
            self._sums = [a + b for a, b in zip(self._sums or [0.0] * len(numbers), numbers, strict=True)]
        self._pending.clear()

    def _record(self) -> None:
        self._read()
        if not self._window:
            return
        readings: dict[str, float] = {}
        if self._readings:
            values = read_rows([torch.stack([value.float() for value in self._readings.values()])])[0]
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
