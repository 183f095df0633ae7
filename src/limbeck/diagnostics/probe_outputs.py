"""What a probe writes of both models' outputs, of the teacher's soundness and of the balance of the parts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from limbeck.diagnostics.balance import gradient_balance
from limbeck.diagnostics.fit import expected_calibration_error, mean_confidence, top1_agreement
from limbeck.diagnostics.probe_projectors import Record
from limbeck.distiller import Task
from limbeck.norms.roots import widest

ALONE = 2  # images of a batch that is compared with the whole one: a batch norm of vectors takes no single one
SOUND_BATCHES = 3


def record_outputs(task: Task, batch: Any, student: Tensor, teacher: Tensor | None, *, logits: bool) -> Record:
    """Scores of both models and how far they agree.

    Args:
        task: Scores outputs.
        batch: The batch that the outputs are of.
        student: The student's output.
        teacher: The teacher's; None where there is none, or its output is no row of the same classes.
        logits: Whether outputs are logits also where the task has no labels to score them with.
    """
    scores = {name: float(values.mean()) for name, values in task.score(student, batch).items()}
    if (not scores and not logits) or not bool(torch.isfinite(student).all()):
        return {}
    record: Record = {name: scores[name] for name in ("top1", "loss") if name in scores}
    label = _labels(task, batch) if scores else None
    record["confidence"] = mean_confidence(student)
    if label is not None:
        record["ece"] = expected_calibration_error(student, label)
    if teacher is None or teacher.shape != student.shape or not bool(torch.isfinite(teacher).all()):
        return record
    record["agreement"] = top1_agreement(student, teacher)
    record["teacher_confidence"] = mean_confidence(teacher)
    if label is not None:
        record["teacher_top1"] = task.score(teacher, batch)["top1"].mean()
        record["teacher_ece"] = expected_calibration_error(teacher, label)
    return record


def record_soundness(run: Callable[[Any], Tensor], batch: Any, count: int) -> Record:
    """Whether the teacher's outputs depend on the rest of the batch, or on when it is asked: both 0 if it is sound.

    Args:
        run: Gives the teacher's output of a batch.
        batch: The batch.
        count: Images in it.

    Returns:
        Differences relative to the outputs; rounding gives about 1e-7 for float32.
    """
    if count < ALONE:
        return {}
    whole = run(batch)
    starts = range(0, count - ALONE + 1, ALONE)[:SOUND_BATCHES]
    parts = [run(part(batch, count, slice(start, start + ALONE))) for start in starts]
    again = run(part(batch, count, slice(0, ALONE)))
    together = whole[: ALONE * len(parts)]
    return {
        "batch_dependence": _relative(torch.cat(parts), together),
        "repeatability": _relative(again, parts[0]),
    }


def record_balance(
    parts: Mapping[str, Tensor], weights: Mapping[str, float], parameters: Sequence[nn.Parameter]
) -> Record:
    """The gradient of each part on the student: norms and angles."""
    balance = gradient_balance(parts, weights, parameters)
    return {
        "norms": balance.norms,
        "weighted": balance.weighted,
        "cosines": {f"{a}|{b}": cosine for (a, b), cosine in balance.cosines.items()},
    }


def part(batch: Any, count: int, rows: slice) -> Any:
    """Some rows of a batch of ``count``: of every tensor in it that has so many."""

    def cut(value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value

    return tree_map(cut, batch)


def _labels(task: Task, batch: Any) -> Tensor | None:
    target = task.target(batch)
    return target.argmax(-1) if target is not None and target.ndim == 2 else target


def _relative(a: Tensor, b: Tensor) -> Tensor:
    wide = widest(b.device)
    scale = torch.linalg.vector_norm(b.to(wide))
    return torch.linalg.vector_norm(a.to(wide) - b.to(wide)) / scale.clamp(min=1e-30)
