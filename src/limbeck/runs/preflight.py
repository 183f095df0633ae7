"""What can be known to be wrong before hours are spent: the checks that run before every training."""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.assembly.build import CARD, batch_size_of
from limbeck.assembly.tasks import Parts, kind_of
from limbeck.distiller import TASK, Distiller, StepResult
from limbeck.distributed import sharding
from limbeck.errors import UserError
from limbeck.models import Model
from limbeck.report.term_rules import LOGITS
from limbeck.storage.untrusted import read_object
from limbeck.terms import FeatureTerm, LossForm
from limbeck.training.bad_batch import OF_TEACHER, at_fault, images_in_words, listed, numbers_of, retrace
from limbeck.training.evaluation import evaluate, to_device
from limbeck.training.optim import check_gradients, check_optimizer

Level = Literal["ok", "note", "warning", "error"]

# Ratios of a term's weighted gradient norm to the task's before training, beyond which one of the two hardly counts.
TOO_LIGHT = 1 / 30

FORMS = {
    LossForm.DIRECT: "direct: all rows are projected and normalized, the quickest for few rows",
    LossForm.MOMENTS: "moments: from covariances, without the projected features, the quickest for many rows",
    LossForm.CHUNKED: "chunked: block of rows by block of rows, so that memory does not grow with them",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        level: "ok", "note", "warning", or "error", which keeps the run from starting.
        name: What was checked.
        message: What was found.
        advice: What to do about it; empty when there is nothing to do.
    """

    level: Level
    name: str
    message: str
    advice: str = ""


@dataclass(frozen=True)
class Preflight:
    """What the checks found.

    Attributes:
        findings: One of each check.
        teacher_scores: The teacher's validation scores; empty without a teacher or labels.
        step_seconds: What a forward and a backward pass of a batch took; 0 if there was an error.
        linear_probe: Validation scores of the student with a new head, before its trunk is trained; empty without one.
    """

    findings: list[Finding]
    teacher_scores: dict[str, float]
    step_seconds: float = 0.0
    linear_probe: dict[str, float] = field(default_factory=dict[str, float])


def preflight(
    parts: Parts, optimizer: torch.optim.Optimizer, device: torch.device, *, teacher_is_ready: bool = True
) -> Preflight:
    """Check teacher, labels, inputs, shapes, gradients and balance on one batch; nothing is changed by it.

    Args:
        parts: What the run is made of, on the device.
        optimizer: The optimizer that will be used.
        device: Where the run will be.
        teacher_is_ready: False leaves out what can only be known of a teacher that has its weights.
    """
    distiller = parts.distiller
    models = {"student": parts.student, "teacher": parts.teacher}
    findings = [Finding("note", role, note) for role, model in models.items() if model for note in model.notes]
    scores: dict[str, float] = {}
    if parts.teacher is not None and distiller.teacher is not None:
        if teacher_is_ready:
            scores = _teacher_scores(parts, device)
            findings += _check_teacher(parts, parts.teacher, scores)
            findings += _check_labels(parts)
        findings += _check_inputs(parts.student, parts.teacher)
    findings += _check_shapes(parts)
    found, seconds = _check_first_step(parts, optimizer, device)
    return Preflight([*findings, *found], scores, seconds)


def _teacher_scores(parts: Parts, device: torch.device) -> dict[str, float]:
    """The teacher's own accuracy, where its classes are the data's."""
    teacher = parts.teacher
    if teacher is None or not parts.recipe.labels or teacher.new_head or teacher.num_classes != len(parts.data.classes):
        return {}
    loader = parts.data.val_loader(batch_size=parts.recipe.batch_size)
    return evaluate(teacher.module.to(device), kind_of(parts.recipe.task).build_scorer(teacher, device), loader, device)


def _check_teacher(parts: Parts, teacher: Model, scores: Mapping[str, float]) -> list[Finding]:
    findings: list[Finding] = []
    held = parts.distiller.teacher
    assert held is not None
    frozen = not any(p.requires_grad for p in held.parameters()) and not any(m.training for m in held.modules())
    findings.append(
        Finding("ok", "teacher state", "frozen, in eval mode")
        if frozen
        else Finding("error", "teacher state", "the teacher trains or is in training mode", "report this as a bug")
    )
    if teacher.weights == "random":
        findings.append(Finding("error", "teacher weights", "random", "give --teacher-weights FILE or RUN"))
    else:
        findings.append(Finding("ok", "teacher weights", teacher.weights))
    if not scores:
        return [*findings, Finding("note", "teacher accuracy", "not measured: its head is not for these labels")]
    text, fault = kind_of(parts.recipe.task).judge_teacher(scores, parts.data)
    if fault:
        return [*findings, Finding("error", "teacher accuracy", f"{text}: {fault}", _cure(teacher))]
    return [*findings, Finding("ok", "teacher accuracy", text)]


def _cure(teacher: Model) -> str:
    """What to do about a teacher that knows nothing: weights from elsewhere may not fit, those of a run do."""
    if teacher.weights.startswith("run:"):
        run = teacher.weights.removeprefix("run:")
        return (
            f'Limbeck trained it, as "{run}": train it for longer, or at another rate (--teacher-epochs, --teacher-lr)'
        )
    return "check its weights, the order of its labels and its input statistics"


def _check_inputs(student: Model, teacher: Model) -> list[Finding]:
    def describe(model: Model) -> str:
        mean, std = (" ".join(f"{v:.3f}" for v in values) for values in (model.input.mean, model.input.std))
        return f"{model.input.size} pixels, mean {mean}, std {std}"

    text = f"student {describe(student)}; teacher {describe(teacher)}"
    return [Finding("ok", "input statistics", text)]


def _check_labels(parts: Parts) -> list[Finding]:
    """Compare the classes of a teacher that Limbeck trained, by their names and order, with those of these data."""
    card = Path(parts.recipe.teacher_weights or "") / CARD
    if not parts.recipe.labels or not parts.recipe.uses_logits or not card.is_file():
        return []
    ours, theirs = list(parts.data.classes), list(read_object(card, "classes")["classes"])
    if theirs == ours:
        return [Finding("ok", "label map", f"the teacher's {len(ours)} classes are the data's, in the same order")]
    pairs = [(index, a, b) for index, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    named = 'class {} is "{}" here and "{}" there'.format(*pairs[0]) if pairs else f"{len(ours)} here"
    message = f"the teacher was trained on {len(theirs)} other classes: {named}"
    return [Finding("error", "label map", message, "use a teacher of these classes, or distil features only")]


def _check_shapes(parts: Parts) -> list[Finding]:
    if parts.teacher is None:
        return []
    describe = kind_of(parts.recipe.task).describe_taps
    return [
        Finding("ok", f"shapes of {name}", describe(term, parts.student, parts.teacher))
        for name, term in parts.distiller.terms.items()
        if term.student_taps and term.teacher_taps
    ]


def _check_first_step(
    parts: Parts, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[list[Finding], float]:
    """One forward and one backward pass a part, and the seconds of such a pair.

    Module states (batch norm) and the random state are put back.
    """
    distiller = parts.distiller
    check_optimizer(distiller, optimizer)
    batch = first_batch(parts, device)
    saved = {name: value.clone() for name, value in distiller.state_dict().items()}
    random_state = torch.get_rng_state()
    distiller.train()
    try:
        result: StepResult = distiller(batch)
        result.loss.backward()
        check_gradients(distiller, lambda: distiller(batch).loss)
        bad = [name for name, value in result.parts.items() if not math.isfinite(float(value))]
        if bad or (result.unsound is not None and bool(result.unsound.any())):
            return [_not_finite(distiller, batch, bad, result.parts)], 0.0
        norms, seconds = _gradient_norms(distiller, batch)
    except UserError as error:
        return [Finding("error", "first step", str(error))], 0.0
    finally:
        distiller.zero_grad(set_to_none=True)
        distiller.load_state_dict(sharding.versioned(saved, distiller))
        torch.set_rng_state(random_state)
    count = len(distiller.trainable_parameters())
    findings = [Finding("ok", "gradients", f"all {count} trainable tensors are in the optimizer and get a gradient")]
    findings.append(Finding("ok", "losses at step 0", _in_words(result.parts)))
    for name, term in distiller.terms.items():
        if isinstance(term, FeatureTerm):
            findings.append(Finding("ok", f"form of {name}", FORMS[term.form_used]))
    kind = kind_of(parts.recipe.task)
    # A new head is fitted first and leaves the task little gradient: logits that pulled 110 times as hard helped.
    is_tuned = parts.student.weights != "random" and not parts.student.new_head
    of_logits = kind.too_heavy_when_tuned if is_tuned else kind.too_heavy
    return findings + _check_balance(norms, distiller.current_weights(), kind.too_heavy, of_logits), seconds


def _not_finite(distiller: Distiller, batch: Any, bad: list[str], parts: Mapping[str, Tensor]) -> Finding:
    """What is not finite first, and for which images; the models run once more."""
    rows = retrace(distiller, [batch], next(distiller.student.parameters()).device, nullcontext)
    first = next((name for name, sound in rows.items() if not bool(sound.all())), None)
    text = f"{', '.join(bad)} not finite at step 0 ({_in_words(parts)})" if bad else ""
    if first is not None:
        images = listed(numbers_of(distiller.task, [batch]))
        text += f"{'; ' if text else ''}the {first} is not finite{images_in_words(at_fault(rows, images))}"
    is_teacher = first is not None and first.startswith("teacher")
    return Finding("error", "losses", text, OF_TEACHER if is_teacher else "check weights and images for NaN")


def _in_words(parts: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in parts.items())


def _gradient_norms(distiller: Distiller, batch: Any) -> tuple[dict[str, float], float]:
    """Norm of each unweighted part's gradient on the student's parameters, and the seconds of the quickest part.

    The forward pass of the student runs once a part: a part is a sum with every other weight at zero.
    """
    student = [p for p in distiller.student.parameters() if p.requires_grad]
    names = list(distiller(batch).parts)
    weights = distiller.weights
    found: dict[str, float] = {}
    seconds = math.inf
    try:
        for chosen in names:
            began = time.perf_counter()
            distiller.weights = {name: float(name == chosen) for name in weights}
            distiller.zero_grad(set_to_none=True)
            loss: Tensor = distiller(batch).loss
            loss.backward()  # not autograd.grad, which re-entrant checkpointing refuses
            found[chosen] = math.sqrt(sum(float(p.grad.double().square().sum()) for p in student if p.grad is not None))
            seconds = min(seconds, time.perf_counter() - began)
    finally:
        distiller.weights = weights
    return found, seconds


def _check_balance(
    norms: Mapping[str, float], weights: Mapping[str, float], heavy: float, of_logits: float
) -> list[Finding]:
    """Compare each term's weighted gradient with the task's, or with the largest where there is no task.

    Args:
        norms: Of each part, unweighted.
        weights: Of each part.
        heavy: Ratio above which a term may be too heavy.
        of_logits: The same of logits, which have ruined students that start from weights.
    """
    weighted = {name: norm * weights[name] for name, norm in norms.items() if weights[name] > 0}
    if len(weighted) < 2:
        return []
    message = "weighted gradient norms on the student: " + ", ".join(f"{n} {v:.3g}" for n, v in weighted.items())
    against = TASK if TASK in weighted else max(weighted, key=lambda name: weighted[name])
    advice: list[str] = []
    for name in weighted.keys() - {against}:
        unfelt = next((each for each in (name, against) if weighted[each] == 0), None)
        if unfelt is not None:
            advice.append(f"{unfelt} gives the student no gradient, whatever its weight: nothing before it trains")
            continue
        ratio = weighted[name] / weighted[against]
        most = of_logits if name in LOGITS else heavy
        if ratio > most:
            advice.append(
                f"{name} pulls {ratio:.2g} times as hard as {against}; such runs have ended below the student alone. "
                f"Compare with it (limbeck compare --methods alone METHOD), or lower the weight of {name} by steps of 4"
            )
        elif ratio < TOO_LIGHT:
            advice.append(f"{name} pulls {ratio:.2g} times as hard as {against} and hardly counts; raise its weight")
    return [Finding("warning" if advice else "ok", "balance", message, "; ".join(sorted(set(advice))))]


def first_batch(parts: Parts, device: torch.device) -> Any:
    """The first training batch, on the device."""
    loader = parts.data.train_loader(batch_size=batch_size_of(parts.recipe, parts.data), seed=parts.recipe.seed)
    return to_device(next(iter(loader)), device)
