"""Several batches that count as one: the loss of all their rows, with the activations of one batch at a time."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.distiller import Distiller, StepResult, UpstreamGradients
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.storage.random_state import REWINDING, random_state, set_random_state

Context = Callable[[], AbstractContextManager[Any]]


class Accumulation:
    """Give the gradient of one large batch, from batches that do not fit into memory together.

    Averaging the gradients of batches is not that, for terms: a batch norm, a LogSum or a relation between samples then
    sees one batch at a time. With output and features ``f_i`` of batch i the gradient of the whole batch's loss is::

        dL/dw = sum_i (dL/df_i) (df_i/dw)          L = L(f_1, ..., f_k)

    and three steps compute it:

    1. every batch goes through student and teacher without gradient, and what the terms read of it is kept;
    2. the terms and the task loss see all rows at once and give the loss, ``g_i = dL/df_i``, and the gradient of the
       terms' own parameters;
    3. every batch goes through the student again, now with gradient, for the surrogate loss ``sum_i <g_i, f_i>``.

    Both passes draw the same numbers from torch's generators (dropout), and the student's buffers (running statistics)
    move in the second one only. The batch norms *inside the student* see one batch at a time, as they see one
    process's share of it elsewhere. Costs a forward pass of the student, and memory for features and images of all
    batches. Without terms there is nothing between the batches, and their gradients are averaged by their rows.

    Args:
        distiller: Student, teacher, task and terms.
        model: The distiller, or what wraps it (``DistributedDataParallel``): gradients go through its ``forward``.
        scaler: Scales the loss; gradients are left scaled.
        autocast: Makes the context of a forward pass.
        no_sync: Makes the context in which gradients stay on this process.

    Deviates from: the usual accumulation, which averages gradients.

    References:
        L. Gao, Y. Zhang, J. Han, J. Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
        RepL4NLP 2021, section 3 (gradient cache).

    Example:
        >>> from limbeck.tasks import Classification
        >>> from limbeck.terms import LogitTerm
        >>> distiller = Distiller(nn.Linear(4, 3), nn.Linear(4, 3), Classification(), terms={"logit": LogitTerm()})
        >>> accumulate = Accumulation(distiller, distiller, torch.amp.GradScaler("cpu", enabled=False))
        >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,))), (torch.randn(5, 4), torch.randint(3, (5,)))]
        >>> result = accumulate(batches)
        >>> sorted(result.parts), len(result.output)
        (['logit', 'task'], 13)
    """

    def __init__(
        self,
        distiller: Distiller,
        model: nn.Module,
        scaler: torch.amp.GradScaler,
        *,
        autocast: Context = nullcontext,
        no_sync: Context = nullcontext,
    ) -> None:
        self._distiller = distiller
        self._model = model
        self._scaler = scaler
        self._autocast = autocast
        self._no_sync = no_sync

    def __call__(self, batches: Sequence[Any]) -> StepResult:
        """Add the gradient of the whole batch to the parameters, which have none yet.

        Args:
            batches: At least one, on the device; their rows may differ in number.

        Returns:
            Loss (detached), parts, readings and output of the whole batch.

        Raises:
            UserError: If a loss cannot be computed, or the batches' features differ in more than their rows.
        """
        if not self._distiller.terms:
            return self._averaging(batches)
        with REWINDING:
            return self._exactly(batches)

    def _exactly(self, batches: Sequence[Any]) -> StepResult:
        states, result, gradients = self._look(batches)
        after = random_state(self._device())  # terms may have drawn, too
        for state, batch, upstream in zip(states, batches, gradients, strict=True):
            with nullcontext() if upstream is gradients[-1] else self._no_sync():
                set_random_state(state, self._device())
                with self._autocast():
                    surrogate: Tensor = self._model(batch, upstream).loss
                if surrogate.requires_grad:  # of a frozen student only the last one does, by the terms' parameters
                    surrogate.backward()  # pyright: ignore[reportUnknownMemberType]
        set_random_state(after, self._device())
        return result

    def _look(self, batches: Sequence[Any]) -> tuple[list[dict[str, Any]], StepResult, list[UpstreamGradients]]:
        """The loss of the whole batch, and its gradients with respect to what the student computed for each batch."""
        states: list[dict[str, Any]] = []
        students: list[Captured] = []
        teachers: list[Captured] = []
        buffers = {name: buffer.clone() for name, buffer in self._distiller.student.named_buffers()}
        for batch in batches:
            states.append(random_state(self._device()))
            # An autocast of its own: it keeps the weights that it cast, and these have no gradient.
            with torch.no_grad(), self._autocast():
                student, teacher = self._distiller.capture(batch)
            assert teacher is not None  # there are terms
            students.append(_leaves(student))
            teachers.append(teacher)
        with torch.no_grad():
            for name, buffer in self._distiller.student.named_buffers():
                buffer.copy_(buffers[name])
        with self._autocast():
            losses = [self._distiller.task.loss(s.output, batch) for s, batch in zip(students, batches, strict=True)]
            task_loss = _mean(losses, [len(student.output) for student in students])
            target, index = _joined_labels(students)
            student = _joined(students)._replace(target=target, index=index)
            teacher = _joined(teachers)._replace(target=target, index=index)
            result = self._distiller.compare(student, teacher, task_loss)
        gradients = self._upstream(self._scaler.scale(result.loss), students)
        return states, replace(result, loss=result.loss.detach(), output=student.output.detach()), gradients

    def _upstream(self, loss: Tensor, students: Sequence[Captured]) -> list[UpstreamGradients]:
        """Gradients for each batch; those of the terms' parameters go with the last, which DDP synchronizes."""
        named = self._distiller.term_modules.named_parameters()
        parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        leaves = [leaf for student in students for leaf in (student.output, *student.features.values())]
        # Not backward: DDP watches the parameters, and would take this for the backward pass of its own forward.
        found = iter(torch.autograd.grad(loss, [*leaves, *parameters.values()], allow_unused=True))
        gradients: list[UpstreamGradients] = []
        for student in students:
            output = next(found)
            features = {name: next(found) for name in student.features}
            gradients.append(UpstreamGradients(output, _reached(features), {}))
        gradients[-1] = gradients[-1]._replace(terms=_reached(dict(zip(parameters, found, strict=True))))
        return gradients

    def _averaging(self, batches: Sequence[Any]) -> StepResult:
        parameters = list(self._distiller.trainable_parameters().values())
        results: list[StepResult] = []
        rows: list[Tensor | int] = []  # of all processes, for each batch
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            with nullcontext() if is_last else self._no_sync():
                with self._autocast():
                    result: StepResult = self._model(batch)
                results.append(replace(result, loss=result.loss.detach(), output=result.output.detach()))
                rows.append(len(result.output) if result.rows is None else result.rows)
                share = rows[-1] / sum(rows)  # a running mean: how many rows will follow is not known
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad.mul_(1 - share)
                self._scaler.scale(result.loss * share).backward()  # pyright: ignore[reportUnknownMemberType]
        return _averaged(results, rows)

    def _device(self) -> torch.device:
        return next(iter(self._distiller.trainable_parameters().values())).device


def _leaves(captured: Captured) -> Captured:
    """The same values as leaves of a graph, each one by itself also where two taps gave the same tensor."""
    features = {name: feature.detach().requires_grad_() for name, feature in captured.features.items()}
    return captured._replace(output=captured.output.detach().requires_grad_(), features=features)


def _joined(captured: Sequence[Captured]) -> Captured:
    """The rows of all batches, in their order, without labels."""
    features = {name: _rows(f'feature "{name}"', [c.features[name] for c in captured]) for name in captured[0].features}
    return Captured(_rows("output", [c.output for c in captured]), features)


def _joined_labels(captured: Sequence[Captured]) -> tuple[Tensor | None, Tensor | None]:
    """Target and index of all batches; None where a batch has none."""
    targets = [c.target for c in captured if c.target is not None]
    indices = [c.index for c in captured if c.index is not None]
    return (
        _rows("target", targets) if len(targets) == len(captured) else None,
        _rows("index", indices) if len(indices) == len(captured) else None,
    )


def _rows(what: str, parts: list[Tensor]) -> Tensor:
    for part in parts:
        if part.shape[1:] != parts[0].shape[1:]:
            raise UserError(
                f"batches that count as one differ in {what}: {tuple(parts[0].shape)} and {tuple(part.shape)}; "
                "expected the same shape after the first dimension"
            )
    return torch.cat(parts)


def _mean(losses: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    """Mean by rows over the batches that have a loss; None where none has."""
    # Over no rows, as one of several processes may have them, it is no number, but has to reach the student: DDP waits.
    found = [
        (loss if count else torch.nan_to_num(loss), count)
        for loss, count in zip(losses, rows, strict=True)
        if loss is not None
    ]
    if not found:
        return None
    return torch.stack([loss * count for loss, count in found]).sum() / max(1, sum(count for _, count in found))


def _averaged(results: Sequence[StepResult], rows: Sequence[Tensor | int]) -> StepResult:
    """Mean by rows of results without terms."""

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([value * count for value, count in zip(values, rows, strict=True)]).sum() / sum(rows)

    parts = {name: mean([result.parts[name] for result in results]) for name in results[0].parts}
    output = torch.cat([result.output for result in results])
    return StepResult(mean([result.loss for result in results]), parts, output)


def _reached(gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Without those that the loss does not depend on."""
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}
