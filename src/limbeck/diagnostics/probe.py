"""The probe: looks at a distiller while it trains, on one batch that it does not train on, and changes nothing."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.diagnostics.equivariance import block_equivariance
from limbeck.diagnostics.probe_outputs import record_balance, record_outputs, record_soundness
from limbeck.diagnostics.probe_projectors import Record, decay_of, learned_weight, seconds_of_spectra
from limbeck.diagnostics.probe_terms import Forces, few_rows, following, plain, record_feature_term, record_other_term
from limbeck.diagnostics.quiet import (
    CPU,
    batch_statistics,
    device_of,
    has_batch_norm,
    is_sharded,
    undisturbed,
    wait_for,
)
from limbeck.diagnostics.recall import Look, Recall, detached, on
from limbeck.distiller import TASK, Distiller, evaluating
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured, Taps
from limbeck.logs.runlog import RunLog
from limbeck.terms import FeatureTerm
from limbeck.training.evaluation import to_device

LEAST = 4  # images: an unbiased CKA of three is not defined
EQUIVARIANCE_IMAGES = 32


@final
class Probe:
    """Measures what a projector learns, on a batch that is held back, from time to time.

    A record has, of each feature term, the spectrum of its projector, its distance from where it could rest, what it
    decorrelates and how well the two sides fit; scores and calibration of both models; the norms and angles of the
    parts' gradients on the student; and of a ViT the translation equivariance of its blocks. What cannot be computed
    (of a projector that has seen no batch yet, of a student without labels) is absent, and so is what is not finite.

    Features and gradients are those that training would see, with the batch norms' own statistics of this batch and
    without dropout; scores are those of evaluation. All is in float32 and not compiled. It leaves no trace: modes,
    random states, buffers, gradients and banks are what they were, and the bytes of a trained student do not tell
    whether it was probed. Of several processes the first one alone looks, and nothing crosses them. A distiller that is
    sharded (FSDP) is not looked at, as no process has the whole of it.

    When it looks. With ``every``: before the first step, and after each step whose number it divides. Without: before
    the first step, and then whenever the looks behind the first, and one more as long as the last, take no more than
    ``budget`` of the time since the first. The loop asks for one more at the end (:meth:`run`). So a run is longer by
    two looks and 1%, and is looked at each time that a hundred times the length of a look has passed. A look costs
    two forward passes of the student in float32, one backward pass for each part, and the singular values of the
    projector; ``docs/guide.md`` has figures. With ``longest``, terms that a look does not come to in time are left out
    from then on, and a note names them; the first term is always measured.

    The teacher is run once, when the probe is made, and its features of this batch are kept in the host's memory. So
    a teacher that is released later (:meth:`limbeck.distiller.Distiller.release_teacher`) is no loss.

    Args:
        distiller: The distiller, with its teacher.
        batch: Images that are not trained on, as its task reads them; 128 are enough for correlations of channels to
            within 0.09.
        every: Steps between two measurements. Default: what the budget allows.
        log: Gets a record of kind "probe" of each look. What a run that goes on after a kill has to find again (the
            first projector) is in ``probe/`` beside the log.
        budget: Share of the time that looks may take.
        longest: Seconds after which a look turns to no further term.
        optimizer: The one that trains; tells the weight decay of the projector, where it is SGD.
        train_batch: Images that are trained on, not augmented, for ``train_top1``.
        blocks: Names of the student's ViT blocks, for equivariance.
        compare_outputs: Whether the teacher's outputs are logits of the student's classes, where they have its shape.
        untrained: The student with random weights. With it each record also says how alike student and teacher are,
            beside what random weights give, and ``figures`` is measured after each epoch. For runs without labels.

    Attributes:
        records: Of this process's looks, oldest first, as in the log.
        figures: How alike student and teacher are (CKA on the batch) after the last epoch; empty without ``untrained``.
        seconds: That all looks took, with what was done when the probe was made.

    Raises:
        UserError: If ``every`` is below 1, the budget is out of its range, or the batch has fewer than four images.

    Example:
        >>> from limbeck.tasks import Classification
        >>> from limbeck.terms import LogitTerm
        >>> from torch import nn
        >>> model = Distiller(nn.Linear(4, 3), nn.Linear(4, 3), Classification(), terms={"logit": LogitTerm()})
        >>> optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.1)
        >>> batch = (torch.randn(8, 4), torch.randint(3, (8,)))
        >>> probe = Probe(model, batch, every=2)
        >>> for step in range(5):  # step is the number of steps done
        ...     _ = probe(step, epoch=0.0)
        ...     model(batch).loss.backward()
        ...     optimizer.step()
        >>> [record["step"] for record in probe.records], sorted(probe.records[0]["balance"]["norms"])
        ([0, 2, 4], ['logit', 'task'])
    """

    def __init__(
        self,
        distiller: Distiller,
        batch: Any,
        *,
        every: int | None = None,
        log: RunLog | None = None,
        budget: float = 0.01,
        longest: float = math.inf,
        optimizer: Optimizer | None = None,
        train_batch: Any = None,
        blocks: Sequence[str] = (),
        compare_outputs: bool = True,
        untrained: nn.Module | None = None,
    ) -> None:
        self.records: list[Record] = []
        self.figures: dict[str, float] = {}
        self.seconds = 0.0
        self._distiller = distiller
        self._batch, self._train_batch = to_device(batch, CPU), to_device(train_batch, CPU)
        self._schedule = Schedule(every=every, budget=budget)
        self._longest = longest
        self._left_out: set[str] = set()
        self._log = log if log is not None else RunLog(progress=False)
        self._optimizer = optimizer
        self._blocks = tuple(blocks)
        self._compare_outputs = compare_outputs
        self._recall = Recall(self._log.path.parent / "probe" if self._log.path is not None else None)
        self._is_off = collectives.rank() > 0 or is_sharded(distiller)
        self._began = False
        self._teacher: Captured | None = None
        self._soundness: Record = {}
        if (count := distiller.task.student_input(batch).shape[0]) < LEAST:
            raise UserError(f"Probe: the batch has {count} images; expected at least {LEAST}")
        if distiller.teacher is None and distiller.terms and distiller.task.teacher_output(batch) is None:
            raise UserError("Probe: the teacher was released; make the probe before, or give it what it computed")
        if self._timed("the probe's measurement of the teacher", self._look_at_teacher) is None:
            self._is_off = True
        self._untrained: float | None = None
        if untrained is not None:
            found = self._timed("the measurement of a student with random weights", lambda b: self._alike(b, untrained))
            self._untrained = (found or {}).get("cka")

    def __call__(self, step: int, epoch: float) -> Record | None:
        """Look if it is time.

        Args:
            step: Steps done.
            epoch: Epochs done.

        Returns:
            The record; None where it was not time, or on another process than the first.
        """
        self._begin(step)
        is_due = self._recall.first is None or self._schedule.is_due(step)
        record = self.run(step, epoch) if is_due and not self._is_off else None
        if self._untrained is not None and epoch > 0 and float(epoch).is_integer():
            found = self._timed("the epoch's measurement", lambda batch: self._alike(batch, self._distiller.student))
            self.figures = plain({"teacher_cka": (found or {}).get("cka", math.nan)})
        return record

    def run(self, step: int, epoch: float) -> Record | None:
        """Look in any case, but not twice at one step.

        Returns:
            The record; None on another process than the first, where the run was looked at here before it was resumed,
            and where the look failed. Where memory did not suffice, nothing is looked at from then on.
        """
        self._begin(step + 1)
        if self._is_off:
            return None
        if self.records and self.records[-1]["step"] == step:
            return self.records[-1]
        if self._recall.last is not None and self._recall.last.step == step:
            return None
        before = self.seconds
        record = self._timed("the probe", lambda batch: self._look(batch, step, epoch))
        seconds = self.seconds - before
        self._schedule.took(seconds)
        if record is None:
            return None
        record = plain({"step": step, "epoch": epoch, "seconds": seconds if self.records else self.seconds, **record})
        self.records.append(record)
        self._log.write("probe", **record)
        return record

    def _begin(self, step: int) -> None:
        """Once: take up what an earlier start of the run has seen before this step."""
        if not self._began and not self._is_off:
            self._recall.find(step)
        self._began = True

    def _timed(self, what: str, look: Callable[[Any], Record]) -> Record | None:
        """What a look at the batch gives; None where it failed, or nothing is looked at. Its time is counted."""
        if self._is_off:
            return None
        device = device_of(self._distiller)
        wait_for(device)
        started = time.perf_counter()
        record: Record | None = None
        with self._log.guarded(what):
            try:
                with undisturbed(self._distiller, device):
                    record = look(to_device(self._batch, device))
                wait_for(device)
            except torch.OutOfMemoryError:
                self._is_off = True
                self._log.note("the probe needs more memory than there is and measures no more; give it fewer images")
        self.seconds += time.perf_counter() - started
        return record

    def _look_at_teacher(self, batch: Any) -> Record:
        """Keep what the teacher gives for the batch, and whether it always would."""
        task, teacher = self._distiller.task, self._distiller.teacher
        count = task.student_input(batch).shape[0]
        self._teacher = brought = task.teacher_output(batch)
        if teacher is not None:
            taps = Taps(teacher.model, [tap for term in self._distiller.terms.values() for tap in term.teacher_taps])
            teacher.model.eval()  # as in training: somebody may hold it and have called train() on it
            self._teacher = brought if brought is not None else taps(task.teacher_input(batch))
            whole = Taps(teacher.model)
            self._soundness = record_soundness(lambda few: whole(task.teacher_input(few)).output, batch, count)
        self._teacher = to_device(self._teacher, CPU)
        return self._soundness

    def _look(self, batch: Any, step: int, epoch: float) -> Record:
        began = time.perf_counter()
        distiller, device = self._distiller, device_of(self._distiller)
        teacher = to_device(self._teacher, device)
        taps = Taps(distiller.student, [tap for term in distiller.terms.values() for tap in term.student_taps])
        target, index = distiller.task.target(batch), distiller.task.index(batch)
        record: Record = {}
        with torch.enable_grad(), batch_statistics([distiller.student, distiller.term_modules]):
            student = taps(distiller.task.student_input(batch))._replace(target=target, index=index)
            if teacher is not None:
                teacher = teacher._replace(target=target, index=index)
            parts = self._parts(student, teacher, batch)
            at_first: dict[str, Tensor] = {}
            at_last: dict[str, Tensor] = {}
            if teacher is not None:
                record["terms"], at_first, at_last = self._look_at_terms(student, teacher, parts, began)
            record["balance"] = self._look_at_balance(parts)
        if has_batch_norm(distiller.student):  # scores are those of evaluation, with running statistics
            output = distiller.student(distiller.task.student_input(batch))
        else:
            output = student.output.detach()
        record["student"] = self._look_at_outputs(batch, output, teacher, device)
        record["teacher"] = self._soundness if self._recall.first is None else {}
        if self._untrained is not None:
            record["following"] = self._alike(batch, distiller.student) | {"untrained": self._untrained}
        if self._blocks and bool(torch.isfinite(output).all()):
            images = distiller.task.student_input(batch)[:EQUIVARIANCE_IMAGES]
            record["equivariance"] = block_equivariance(distiller.student, images, self._blocks)
        # Last, so that a look that fails leaves nothing.
        self._recall.keep(Look(step, epoch, detached(at_first)), Look(step, epoch, detached(at_last)))
        return {"images": output.shape[0], **record}

    def _alike(self, batch: Any, student: nn.Module) -> Record:
        """How alike a student and the teacher see the images, before any projector."""
        distiller = self._distiller
        taps = Taps(student, [tap for term in distiller.terms.values() for tap in term.student_taps])
        if self._teacher is None:
            return {}
        with evaluating(student), batch_statistics([student]):
            seen = taps(distiller.task.student_input(batch))
        value = following(distiller.terms, seen, to_device(self._teacher, device_of(distiller)))
        return {} if value is None else {"cka": value}

    def _parts(self, student: Captured, teacher: Captured | None, batch: Any) -> dict[str, Tensor]:
        """The losses; without those of terms that have seen no batch yet and cannot do without."""
        parts: dict[str, Tensor] = {}
        loss = self._distiller.task.loss(student.output, batch)
        if loss is not None:
            parts[TASK] = loss
        for name, term in self._distiller.terms.items():
            assert teacher is not None
            try:
                parts[name] = term(student, teacher)
            except UserError:
                continue
        return parts

    def _look_at_terms(
        self, student: Captured, teacher: Captured, parts: dict[str, Tensor], began: float
    ) -> tuple[Record, dict[str, Tensor], dict[str, Tensor]]:
        """Records, what is to be remembered of the first look, and what of each."""
        first, last = (on(device_of(self._distiller), look) for look in (self._recall.first, self._recall.last))
        found: Record = {}
        at_first: dict[str, Tensor] = {}
        at_last: dict[str, Tensor] = {}
        late: list[str] = []
        for name, term in self._distiller.terms.items():
            if name not in parts or name in self._left_out:
                continue
            if found and time.perf_counter() - began > self._longest:
                late.append(name)
                continue
            if not isinstance(term, FeatureTerm):
                found[name] = record_other_term(term, student, teacher)
                continue
            with self._log.guarded(f"the probe of {name}"):
                forces = self._forces(name, term, parts[name])
                with torch.no_grad():
                    sides = term.sides(*few_rows(term, student, teacher))
                spectra = seconds_of_spectra(term.projector) <= self._longest / 2
                if not spectra:
                    late.append(f"the spectrum of {name}")
                described = record_feature_term(
                    name, term, sides, first=first, last=last, forces=forces, spectra=spectra
                )
                found[name] = described.record
                at_first |= described.first
                at_last |= described.last
        if new := [each for each in late if each not in self._left_out]:
            self._left_out |= set(new)
            self._log.note(f"the probe leaves out {', '.join(new)}, to take no more than its share of the run")
        return found, at_first, at_last

    def _forces(self, name: str, term: FeatureTerm, loss: Tensor) -> Forces | None:
        weight = learned_weight(term.projector)
        if weight is None:
            return None
        scale = self._distiller.current_weights()[name]
        gradient = torch.autograd.grad(loss, weight, retain_graph=True)[0]
        return Forces(scale * gradient, decay_of(self._optimizer, weight), scale)

    def _look_at_balance(self, parts: dict[str, Tensor]) -> Record:
        parameters = [p for p in self._distiller.student.parameters() if p.requires_grad]
        felt = {name: loss for name, loss in parts.items() if loss.requires_grad}
        return record_balance(felt, self._distiller.current_weights(), parameters) if felt else {}

    def _look_at_outputs(self, batch: Any, output: Tensor, teacher: Captured | None, device: torch.device) -> Record:
        task = self._distiller.task
        logits = any(not term.teacher_taps for term in self._distiller.terms.values())
        taught = teacher.output if teacher is not None and self._compare_outputs else None
        record = record_outputs(task, batch, output, taught, logits=logits)
        if self._train_batch is not None and "top1" in record:
            seen = to_device(self._train_batch, device)
            scores = task.score(self._distiller.student(task.student_input(seen)), seen)
            record["train_top1"] = scores["top1"].mean()
        return record


@final
class Schedule:
    """Says when a look is due.

    With ``every`` at each step that it divides. Without: when the looks behind the first one, and one more as long as
    the last, take no more than ``budget`` of the time since the first. The first one is not counted, being there
    whatever it costs, and the longest: much is done for the first time.

    Args:
        every: Steps between two measurements. Default: what the budget allows.
        budget: Share of the time that looks may take.

    Raises:
        UserError: If ``every`` is below 1 or the budget out of its range.

    Example:
        >>> schedule = Schedule(every=3, budget=0.01)
        >>> [step for step in range(8) if schedule.is_due(step)]
        [0, 3, 6]
    """

    def __init__(self, *, every: int | None, budget: float) -> None:
        if every is not None and every < 1:
            raise UserError(f"Probe: every is {every}; expected at least 1")
        if not 0 < budget <= 1:
            raise UserError(f"Probe: budget is {budget}; expected a number above 0, at most 1")
        self._every = every
        self._budget = budget
        self._since: float | None = None  # when the first look was over,
        self._later = 0.0  # what those behind it took,
        self._latest = 0.0  # and the last one

    def is_due(self, step: int) -> bool:
        """Whether to look after so many steps."""
        if self._every is not None:
            return step % self._every == 0
        if self._since is None:
            return True
        return self._later + self._latest <= self._budget * (time.perf_counter() - self._since)

    def took(self, seconds: float) -> None:
        """A look is over, and took so long."""
        self._latest = seconds
        if self._since is None:
            self._since = time.perf_counter()
        else:
            self._later += seconds
