"""Student, frozen teacher, terms and their weights in one trainable module."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from limbeck.distiller.frozen import FrozenTeacher, evaluating, narrow_type, refuse_shared
from limbeck.distiller.interface import TASK, StepResult, Task, UpstreamGradients, Weight
from limbeck.distributed import collectives
from limbeck.errors import UserError, did_you_mean
from limbeck.features.compiler import Compiled
from limbeck.features.taps import Captured, Taps
from limbeck.terms import Term

T = TypeVar("T")


class Distiller(nn.Module):
    """A student, a frozen teacher and the terms between them; everything trainable computes in one ``forward``.

    ``forward(batch)`` runs the student through its taps, the teacher through its own without gradient, and returns the
    weighted sum of the task loss and of every term. Wrap the distiller as a whole in DDP, or cut it up by
    :func:`limbeck.distiller.shard_distiller`, and hand ``trainable_parameters()`` to the optimizer: the projectors
    cannot be forgotten. The teacher is in eval mode and frozen by construction and belongs to no checkpoint.

    Args:
        student: The model to train.
        teacher: The model to learn from, with its weights loaded; None to train the student alone.
        task: What a batch, a loss and a metric are, for instance :class:`limbeck.tasks.Classification`.
        terms: Name to term; the names appear in logs and in ``weights``.
        weights: Name to weight for the terms and for ``"task"``; 1.0 where a name is missing.
        frozen_norms: Whether the student's batch norms keep the statistics that they have; their parameters train.

    Attributes:
        clock: How long the teacher has taken in training steps, or the reading of what it computed before.

    Raises:
        UserError: If a weight names no term or is not a finite number of at least 0, a term is called "task", a tap
            does not exist, terms lack a teacher, or student and teacher share a parameter.

    Deviates from: the published code, in which the loss calls parts of the wrapped student and so bypasses DDP.

    Example:
        >>> from limbeck.tasks import Classification
        >>> from limbeck.terms import LogitTerm
        >>> distiller = Distiller(nn.Linear(4, 3), nn.Linear(4, 3), Classification(), terms={"logit": LogitTerm()})
        >>> result = distiller((torch.randn(8, 4), torch.randint(3, (8,))))
        >>> sorted(result.parts)
        ['logit', 'task']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        task: Task,
        *,
        terms: Mapping[str, Term] | None = None,
        weights: Mapping[str, Weight] | None = None,
        frozen_norms: bool = False,
    ) -> None:
        super().__init__()
        self.terms: dict[str, Term] = dict(terms or {})
        weights = dict(weights or {})
        known = [TASK, *self.terms]
        if TASK in self.terms:
            raise UserError('a term cannot be called "task": that name is the task loss')
        for name in weights:
            if name not in known:
                raise UserError(f'weight "{name}" belongs to no term{did_you_mean(name, known)}')
        for name, weight in weights.items():
            if not callable(weight):
                _checked_weight(name, weight)
        if self.terms and teacher is None:
            raise UserError(f"the terms {', '.join(self.terms)} need a teacher")
        self.weights: dict[str, Weight] = {name: weights.get(name, 1.0) for name in known}
        self.task = task
        self.student = student
        if teacher is not None:
            refuse_shared(student, teacher)
        if (narrow := narrow_type(student)) is not None:
            raise UserError(f"the student is {narrow}: train student.float(), with fit(precision=torch.bfloat16)")
        self.teacher = FrozenTeacher(teacher) if teacher is not None else None
        # ModuleDict registers the trainable ones; self.terms keeps the order and those that have no parameters.
        self.term_modules = nn.ModuleDict()
        for name, term in self.terms.items():
            if isinstance(term, nn.Module):
                try:
                    self.term_modules.add_module(name, term)
                except KeyError as error:  # a dot in it, or the name of a method of ModuleDict
                    raise UserError(f'a term cannot be called "{name}": no module can have that name') from error
        student_taps = [tap for term in self.terms.values() for tap in term.student_taps]
        self._student_taps = Taps(student, student_taps, called="student")
        teacher_taps = [tap for term in self.terms.values() for tap in term.teacher_taps]
        self._teacher_taps = Taps(teacher, teacher_taps, called="teacher") if teacher is not None else None
        self._teacher_type = narrow_type(teacher) if teacher is not None else None
        self._calls: dict[str, Compiled] = {}
        self.progress = 0.0
        self.clock = Clock()
        self._frozen_norms = frozen_norms
        if frozen_norms:
            self.train()

    def train(self, mode: bool = True) -> "Distiller":
        """Put student and terms in training mode or out of it; batch norms that are frozen stay out."""
        super().train(mode)
        for module in self.student.modules() if self._frozen_norms else ():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def compile_parts(self, batch: Any) -> None:
        """From now on run student, teacher and terms compiled by ``torch.compile``, each by itself.

        They are compiled when they are first called, and again, for any number of rows, when a batch has fewer. No
        module is replaced: names and state dicts stay, :func:`limbeck.training.evaluation.evaluate`
        runs the student as it is, and a copy of the distiller is not compiled. On several processes the terms are left
        alone: what crosses processes would cut them into pieces.

        Args:
            batch: Is run through both models once, in eval mode and not compiled, for those checks of the taps that
                compiled code cannot make.

        Raises:
            UserError: If a tap cannot be read.
        """
        with evaluating(self):
            self.capture(batch)
        self._student_taps.compile()
        if self._teacher_taps is not None:
            self._teacher_taps.compile()
        if collectives.world_size() == 1:
            self._calls = {name: Compiled(term) for name, term in self.terms.items()}

    @property
    def compiled(self) -> dict[str, Compiled]:
        """The parts that :meth:`compile_parts` has had compiled, by name, with what came of it; none of a copy."""
        taps = {"student": self._student_taps, "teacher": self._teacher_taps}
        models = {name: each.compiled for name, each in taps.items() if each is not None and each.compiled is not None}
        return {**models, **{f"terms.{name}": call for name, call in self._calls.items()}}

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code belongs to these terms, and the seconds to this distiller's steps, not to a copy's.
        return {**super().__getstate__(), "_calls": {}, "clock": Clock()}

    def forward(self, batch: Any, upstream: UpstreamGradients | None = None) -> StepResult:
        """One step on one batch.

        Args:
            batch: What the task reads.
            upstream: Gradients of a loss that was computed before. The step's loss is then ``sum <gradient, value>``,
                whose gradient is that of the other loss, see :mod:`limbeck.training.accumulation`; it has no parts.

        Raises:
            UserError: If there is neither a task loss nor a term, or a term cannot be computed.
        """
        if batch is None:
            raise UserError("the batch is None; expected what the task reads, for instance (images, labels)")
        if upstream is not None:
            return self._surrogate(self.capture_student(batch), upstream)
        student, teacher = self.capture(batch)
        return self.compare(student, teacher, self.task.loss(student.output, batch))

    def compare(self, student: Captured, teacher: Captured | None, task_loss: Tensor | None) -> StepResult:
        """The loss of what student and teacher computed, from the terms and from a task loss, if there is one.

        Students that learn from one teacher side by side can so share its forward pass, if the teacher was tapped
        wherever their terms say. Of several processes the task loss, a mean over rows, is weighted by each one's rows,
        which may be none, so that the mean of the processes is that of the global batch, as it is for the terms.

        Raises:
            UserError: If there is neither a task loss nor a term, or a term cannot be computed.
        """
        parts: dict[str, Tensor] = {}
        rows = None
        if task_loss is not None:
            if collectives.world_size() > 1:
                count = len(student.output)
                # A mean over no rows is no number; the sum over none is 0, and reaches every parameter, as DDP wants.
                task_loss = task_loss if count else student.output.sum()
                task_loss, rows = collectives.share_of_mean(task_loss, count, student.output.device)
            parts[TASK] = task_loss
        readings: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            assert teacher is not None
            parts[name] = self._calls.get(name, term)(student, teacher)
            readings |= {f"{name}/{key}": value for key, value in term.readings.items()}
        if not parts:
            raise UserError("nothing to train on: the task has no loss for this batch and there is no term")
        weights = self.current_weights()
        wide = {name: part.to(torch.promote_types(part.dtype, torch.float32)) for name, part in parts.items()}
        loss = torch.stack([weights[name] * part for name, part in wide.items()]).sum()
        # Every method reports a teacher that gives NaN, also one that reads a sound part of it.
        unsound = teacher.output.isnan().unsqueeze(-1).flatten(1).any(1) if teacher is not None else None
        plain = {name: part.detach() for name, part in parts.items()}
        return StepResult(loss, plain, student.output, readings, rows, unsound)

    def capture(self, batch: Any) -> tuple[Captured, Captured | None]:
        """What student and teacher compute on a batch, the teacher without gradient, or before, where it brings that.

        Raises:
            UserError: If the teacher was released and the batch does not bring what it computed.
        """
        # The teacher first: its activations are gone when the student's, which stay for the backward pass, are made. So
        # the peak is lower, and on a CPU a step of small nets took 0.92 of the time, for memory is not asked for anew.
        teacher = self.task.teacher_output(batch)
        if teacher is None:
            teacher = self.capture_teacher(batch)
        student = self.capture_student(batch)
        if teacher is None:
            return student, None
        return student, teacher._replace(target=student.target, index=student.index)

    def capture_student(self, batch: Any) -> Captured:
        """What the student alone computes on a batch."""
        target, index = self.task.target(batch), self.task.index(batch)
        images = self.task.student_input(batch)
        return self._student_taps(images)._replace(target=target, index=index)

    def capture_teacher(self, batch: Any) -> Captured | None:
        """What the teacher alone computes on a batch, without gradient; None without a teacher.

        Raises:
            UserError: If the teacher was released.
        """
        if self._teacher_taps is None:
            if self.terms:
                raise UserError("the teacher was released, and this batch does not bring what it computed")
            return None
        taps = self._teacher_taps
        taps.model.eval()  # somebody may hold the bare teacher and have called train() on it
        with torch.no_grad():
            images = self.task.teacher_input(batch)
            if self._teacher_type is not None and images.is_floating_point():
                images = images.to(self._teacher_type)
            if not self.training:
                return taps(images)
            return self.clock(images.device, lambda: taps(images))

    def release_teacher(self) -> None:
        """Let go of the teacher, once all that it computes is in a cache: it moves to no device with the distiller."""
        self.teacher = None
        self._teacher_taps = None

    def _surrogate(self, student: Captured, upstream: UpstreamGradients) -> StepResult:
        parameters: dict[str, Tensor] = dict(self.term_modules.named_parameters())
        pairs = [(gradient, student.features[name]) for name, gradient in upstream.features.items()]
        pairs += [(gradient, parameters[name]) for name, gradient in upstream.terms.items()]
        if upstream.output is not None:
            pairs.append((upstream.output, student.output))
        # At least float32, or the sum, which nobody reads, is soon infinite; the gradient goes back in its own type.
        wide = [
            (gradient * value.to(torch.promote_types(value.dtype, torch.float32))).sum() for gradient, value in pairs
        ]
        return StepResult(sum(wide, student.output.new_zeros((), dtype=torch.float32)), {}, student.output)

    def with_student(self, student: nn.Module) -> "Distiller":
        """The same teacher, task, terms and weights around another student, for instance its moving average."""
        teacher = self.teacher.model if self.teacher is not None else None
        other = Distiller(
            student, teacher, self.task, terms=self.terms, weights=self.weights, frozen_norms=self._frozen_norms
        )
        other.progress = self.progress
        return other

    def current_weights(self) -> dict[str, float]:
        """The weights at the current ``progress``, the share of training that is done.

        Raises:
            UserError: If a function gives what is not a finite number of at least 0.
        """
        return {name: _checked_weight(name, w(self.progress)) if callable(w) else w for name, w in self.weights.items()}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name to parameter for everything that is trained: the student's and the terms', never the teacher's."""
        named = [*self.student.named_parameters(prefix="student"), *self.term_modules.named_parameters(prefix="terms")]
        return {name: parameter for name, parameter in named if parameter.requires_grad}


def _checked_weight(name: str, weight: Any) -> float:
    if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise UserError(f'weight "{name}" is {weight!r}; expected a finite number of at least 0')
    return weight


@final
class Clock:
    """Adds up the seconds of one part of every step, such as the teacher's forward pass.

    On a CPU they are those of the process. On a CUDA device they are the device's own, between two events that are read
    once they are past, so that nothing waits for them; what is still to come is counted at a later reading. Other
    devices are not timed, for the time until a call returns says nothing there, nor is code that is being compiled.

    Example:
        >>> clock = Clock()
        >>> clock.seconds is None
        True
        >>> clock(torch.device("cpu"), lambda: sum(range(10)))
        45
        >>> clock.seconds > 0
        True
    """

    def __init__(self) -> None:
        self._total = 0.0  # only grows, so that another thread than the one that times may read it
        self._was_called = False
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def __call__(self, device: torch.device, work: Callable[[], T]) -> T:
        """What ``work`` gives; the seconds that it takes on the device are added."""
        if torch.compiler.is_compiling() or device.type not in ("cpu", "cuda"):
            return work()
        self._was_called = True
        if device.type == "cuda":
            return self._between_events(work)
        started = time.perf_counter()
        found = work()
        self._total += time.perf_counter() - started
        return found

    @property
    def seconds(self) -> float | None:
        """The sum of all that is over by now; None where nothing was timed."""
        self._collect()
        return self._total if self._was_called else None

    def _between_events(self, work: Callable[[], T]) -> T:
        self._collect()  # where nobody reads the sum, the events would pile up
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        found = work()
        after.record()
        self._pending.append((before, after))
        return found

    def _collect(self) -> None:
        while self._pending and self._pending[0][1].query():
            before, after = self._pending.popleft()
            self._total += before.elapsed_time(after) / 1000
