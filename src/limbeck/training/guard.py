"""Steps whose numbers are not finite: found before they are taken, told, and left out where that is asked for."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.distiller import Distiller, StepResult
from limbeck.distributed import collectives, sharding
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Counters
from limbeck.training.bad_batch import (
    ADVICE,
    Finding,
    at_fault,
    broken_parameters,
    images_of,
    listed,
    numbers_of,
    retrace,
    save,
)
from limbeck.training.optim import named

SMALLEST_SCALE = 1.0  # of the loss in float16; below it the gradient overflows that is not scaled up at all


@dataclass(frozen=True)
class Skip:
    """Leave out steps whose loss or gradient is not finite, instead of stopping at the first one.

    Args:
        limit: Steps that a run may leave out; one more stops it. Chosen: one image that is broken costs a step an
            epoch, and is then named ten times; where it is more, the run is at fault and not a batch.
        factor: On the learning rate, from each step that is left out on. 0.5 is what a ``GradScaler`` does to its
            scale.

    Raises:
        UserError: If the limit is below 1, or the factor not above 0 and at most 1.
    """

    limit: int = 10
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.limit < 1 or not 0 < self.factor <= 1:
            raise UserError(
                f"Skip: limit is {self.limit} and factor {self.factor}; expected at least 1, and above 0 up to 1"
            )


class _Seen(NamedTuple):
    """A step that has been taken and not been looked at, still on the device."""

    step: int
    names: list[str]
    values: Tensor  # the losses, the gradient's norm, and 1 for an input and for outputs that are finite
    images: list[Tensor]
    unsound: Tensor | None  # rows of the teacher's output


class _Told(NamedTuple):
    """What all processes are told: the fault, where it was written down, and which images the batch had."""

    text: str
    where: str
    images: list[int]
    advice: str


@final
class Buffers:
    """The buffers that belong to a checkpoint, of student and terms, as they were before a step.

    Args:
        distiller: Of the training.
    """

    def __init__(self, distiller: Distiller) -> None:
        self._places: list[tuple[nn.Module, str]] = []
        for root in (distiller.student, distiller.term_modules):
            for path, value in root.state_dict(keep_vars=True).items():
                if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                    module, _, name = path.rpartition(".")
                    self._places.append((root.get_submodule(module), name))
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Take a copy of them, in place of the last one."""
        self._kept = [module.get_buffer(name).clone() for module, name in self._places]

    def put_back(self) -> None:
        """Give them the values of that copy."""
        with torch.no_grad():
            for (module, name), kept in zip(self._places, self._kept, strict=True):
                module.get_buffer(name).copy_(kept)  # the module may have replaced it


@final
class Guard:
    """Looks at loss and gradient of every step of a training, between its backward pass and the optimizer.

    On a CPU, and wherever steps may be left out, that is done before the step is taken: one number is read, and all
    processes agree on it. Elsewhere nothing is read before :meth:`read`, so that no step waits for the device; what is
    then found has been taken, and ends the training before a checkpoint has it.

    In float16 the gradient is the affair of the ``GradScaler``, to which one that overflows is no fault.

    A step that is left out leaves no trace but the random numbers that it drew and its place in the epoch: parameters,
    optimizer and average have not changed, and buffers (running statistics, memory banks) are put back.

    Args:
        distiller: Student, teacher, task and terms.
        checkpointed: What checkpoints keep besides the optimizer, by name.
        optimizer: Of the training.
        skip: Which steps may be left out; None: the first one ends the training.
        log: Is told of each.
        counters: Of the run; steps that are left out are counted here.
        autocast: Makes the context of a forward pass.
        scaler: Scales the loss.

    Attributes:
        reads_at_once: Whether loss and gradient are read in each step, before it is taken.
        buffers: To be kept before each step, where steps may be left out.
        factor: On the learning rate, for all that has been left out so far.
    """

    def __init__(
        self,
        distiller: Distiller,
        checkpointed: Mapping[str, nn.Module],
        optimizer: Optimizer,
        skip: Skip | None,
        log: RunLog,
        counters: Counters,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._distiller = distiller
        self._checkpointed = checkpointed
        self._optimizer = optimizer
        self._masks = set(_broken(checkpointed, optimizer))  # buffers with infinities from the beginning
        self._skip = skip
        self._log = log
        self._counters = counters
        self._device = next(iter(distiller.trainable_parameters().values())).device
        self._autocast = autocast
        self._scaler = scaler
        self.buffers = Buffers(distiller) if skip is not None else None
        self.factor = skip.factor**counters.skipped if skip is not None else 1.0
        self.reads_at_once = self._device.type == "cpu" or skip is not None
        self._pending: list[_Seen] = []

    def allows(self, result: StepResult, batches: Sequence[Any], norm: Tensor, is_fine: bool) -> bool:
        """Whether the step may be taken; the same on every process.

        Args:
            result: What it gave, after the backward pass.
            batches: Of the step.
            norm: Of its gradient.
            is_fine: Whether all of it is finite on this process, where that is read at once.

        Raises:
            UserError: If it may not, and no step may be left out (any more).
        """
        if not self.reads_at_once:
            self._pending.append(_seen(self._counters.step + 1, result, norm, self._distiller, batches))
            return True
        if not self._highest(int(not is_fine)):
            return True
        self._leave_out(result, batches, float(norm), not is_fine)
        return False

    def read(self) -> None:
        """Look at the steps that were taken without that.

        Raises:
            UserError: If numbers of one are not finite, or the scale of the loss has collapsed.
        """
        if self._scaler.is_enabled() and self._scaler.get_scale() < SMALLEST_SCALE:
            raise UserError(
                f"the gradient is not finite in float16 at step {self._counters.step}, however small the loss is made "
                f"(scale {self._scaler.get_scale():g}); {ADVICE} or bf16"
            )
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        rows = read_rows([seen.values for seen in pending])
        bad = next((row for row, numbers in enumerate(rows) if not all(map(math.isfinite, numbers))), len(rows))
        finding = _found(pending[bad], rows[bad], self._counters.epoch + 1) if bad < len(rows) else None
        if (told := self._agreed(finding, [], before=len(rows) - bad)) is not None:
            raise UserError(f"{told.text}{told.where}; {told.advice}")

    def check_state(self) -> None:
        """Refuse a state that is not finite, before it is kept: a finite gradient can lead to one.

        Raises:
            UserError: If a number in the modules or in the optimizer's state is not finite on any process; it names
                the first ones.
        """
        self.read()
        broken = [name for name in _broken(self._checkpointed, self._optimizer) if name not in self._masks]
        world, rank = collectives.world_size(), collectives.rank()
        worst = self._highest(world - rank if broken else 0)
        if worst:
            names = collectives.from_rank(named(broken), -worst % world, self._device)
            raise UserError(
                f"not finite after step {self._counters.step}: {names}; the last checkpoint is from before it. "
                "Lower the learning rate, clip the gradients, or try float32"
            )

    def _highest(self, code: int) -> int:
        if collectives.world_size() == 1:
            return code
        return int(collectives.max_across(torch.tensor([code], device=self._device)))

    def _agreed(self, finding: Finding | None, batches: Sequence[Any], *, before: int = 0) -> "_Told | None":
        """Write down what this process has found, and tell all of them the same of it; None where none has anything.

        Args:
            finding: What was found here.
            batches: Of that step, where they are still there.
            before: Of several steps the one with the largest number is told of.
        """
        world, rank = collectives.world_size(), collectives.rank()
        # Then the process whose batch it was: through terms and gradients it reaches the others; then the first one.
        code = (2 * before + 1 + finding.is_own) * world - rank if finding is not None else 0
        worst = self._highest(code)
        if worst == 0:
            return None
        text = ""
        if finding is not None:
            folder = self._log.path.parent if self._log.path is not None else None
            where = save(finding, folder, batches, self._distiller.task) if folder is not None else ""
            text = json.dumps([finding.text, where, finding.images, finding.advice])
        return _Told(*json.loads(collectives.from_rank(text, -worst % world, self._device)))

    def _leave_out(self, result: StepResult, batches: Sequence[Any], norm: float, is_bad: bool) -> None:
        # On every process: what the models compute may cross processes, and so do the shares of a parameter.
        rows = retrace(self._distiller, batches, self._device, self._autocast)
        broken = broken_parameters(self._distiller)
        if self.buffers is not None:
            self.buffers.put_back()
        step, epoch = self._counters.step + 1, self._counters.epoch + 1
        finding = None
        if is_bad:
            losses = {"loss": float(result.loss.detach())} | {name: float(part) for name, part in result.parts.items()}
            images = listed(numbers_of(self._distiller.task, batches))
            finite = {name: bool(sound.all()) for name, sound in rows.items()}
            finding = Finding(step, epoch, losses, norm, finite, images, *broken, at_fault(rows, images))
        told = self._agreed(finding, batches)
        assert told is not None  # the step is bad on some process
        if self._skip is None:
            raise UserError(f"{told.text}{told.where}; {told.advice}")
        skipped, limit = self._counters.skipped, self._skip.limit
        if skipped >= limit:
            raise UserError(f"{told.text}{told.where}; steps skipped before: {skipped}, and the most is {limit}")
        self._counters.skipped = skipped = skipped + 1
        self.factor = self._skip.factor**skipped
        more = {"text": told.text, "images": told.images}
        self._log.write("bad", step=step, epoch=epoch, skipped=skipped, factor=self.factor, **more)
        slower = f", and the learning rate is {self.factor:.3g} of what it would be" if self.factor < 1 else ""
        self._log.note(f"skipped, {skipped} of at most {limit}{slower}: {told.text}{told.where}")


def _seen(step: int, result: StepResult, norm: Tensor, distiller: Distiller, batches: Sequence[Any]) -> _Seen:
    """What tells of a step once its batch is gone."""
    inputs = [images.isfinite().all() for batch in batches if (images := images_of(batch)) is not None]
    flags = [torch.stack(inputs).all()] if inputs else []
    names = ["loss", *result.parts, "norm", *(["input"] if inputs else [])]
    if result.unsound is not None:
        names.append("teacher output")
        flags.append(~result.unsound.any())
    flags.append(result.output.detach().isfinite().all())
    # A flag that is off becomes infinite, so that one test finds everything.
    values = [result.loss.detach(), *result.parts.values(), norm, *(1 / flag.float() for flag in flags)]
    images = numbers_of(distiller.task, batches)
    stacked = torch.stack([value.float() for value in values])
    return _Seen(step, [*names, "student output"], stacked, images, result.unsound)


def _found(seen: _Seen, numbers: list[float], epoch: int) -> Finding:
    values = dict(zip(seen.names, numbers, strict=True))
    known = ("input", "teacher output", "student output")
    finite = {name: math.isfinite(values.pop(name)) for name in known if name in values}
    norm, images = values.pop("norm"), listed(seen.images)
    sound = {"teacher output": ~seen.unsound.cpu()} if seen.unsound is not None and finite.get("input", True) else {}
    return Finding(seen.step, epoch, values, norm, finite, images, faulty=at_fault(sound, images))


def _broken(checkpointed: Mapping[str, nn.Module], optimizer: Optimizer) -> list[str]:
    """Names of the tensors that a checkpoint would have and that are not finite."""
    states = {part: module.state_dict() for part, module in checkpointed.items()}
    tensors = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    found = {name: x for name, x in tensors.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return [name for name, fine in zip(found, sharding.finite(found.values()), strict=True) if not fine]


def read_rows(rows: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of vectors of one length, in one read from their device."""
    found: list[list[float]] = torch.stack(list(rows)).cpu().tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return found
