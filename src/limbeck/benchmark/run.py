"""One pair of models, every loop that can train it, in one interleaved run."""

import copy
import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck import models
from limbeck.assembly.arithmetic import Settled, settle
from limbeck.assembly.build import build_optimizer
from limbeck.assembly.classification import build_distiller, build_task
from limbeck.benchmark.loops import Step, by_hand, repeated, with_fit
from limbeck.benchmark.peers import peers
from limbeck.benchmark.timing import Loop, Timing, compare, interleave
from limbeck.cache import TaughtBatch
from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.models import Model
from limbeck.recipes.recipe import Recipe
from limbeck.runs.run import device_of
from limbeck.runs.summary import device_name
from limbeck.tasks import Classification
from limbeck.training.precision import LAYOUTS, PRECISIONS, Arithmetic, apply_arithmetic, candidates

FLOOR, FULL = "floor", "limbeck"
ALONE_FLOOR, ALONE, GIVEN = "student alone, by hand", "student alone, limbeck", "limbeck, teacher's outputs given"
WRITTEN = "as usually written"
ROUNDS_BY_HAND = 3
LONG = 10**6  # steps of a run in which every measurement pays
LEARNING_RATE = 1e-3  # small: after many steps on one batch the numbers are still ordinary ones

Say = Callable[[str], None]


@dataclass(frozen=True)
class Benchmark:
    """What an interleaved run gave.

    Attributes:
        settings: Which pair, which settings, which machine.
        timings: Loop to its timing against the floor.
        alone: The loops without a teacher's pass, against the student alone by hand.
        by_hand: Each setting of the plain loop, to its milliseconds a step in a few rounds; the least is the floor.
    """

    settings: dict[str, Any]
    timings: dict[str, Timing]
    alone: dict[str, Timing]
    by_hand: dict[str, float]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "settings": self.settings,
            "against the floor": {name: asdict(timing) for name, timing in self.timings.items()},
            "against the student alone": {name: asdict(timing) for name, timing in self.alone.items()},
            "by hand, ms": self.by_hand,
        }

    def table(self) -> str:
        """As lines for people."""
        rows = [("", "ms a step", "ratio", "quartiles")]
        for timings in (self.timings, self.alone):
            rows += [
                (name, f"{1000 * timing.seconds:.1f}", f"{timing.ratio:.3f}", f"{timing.low:.3f} to {timing.high:.3f}")
                for name, timing in timings.items()
            ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        settings = ", ".join(f"{name} {ms:.1f}" for name, ms in self.by_hand.items())
        said = f"floor: {self.settings['floor']}, the quickest by hand of (ms): {settings}"
        return "\n".join([*lines[: len(self.timings) + 1], "", *lines[len(self.timings) + 1 :], "", said])


def benchmark(
    recipe: Recipe, *, classes: int, rounds: int, with_peers: bool, say: Say, on_round: Callable[[int, int], None]
) -> Benchmark:
    """Time a recipe's training step on random images, on one device.

    The floor is the two networks and the optimizer alone: teacher forward without gradient, student forward and
    backward on cross entropy, optimizer. A plain loop is timed by hand in every number format, layout and form of
    attention, on a GPU compiled as well, and the quickest is the floor, whatever Limbeck chose: a wrong choice shows as
    a ratio above 1.
    ``limbeck`` is :func:`limbeck.fit` with all that a run has: input transforms, taps, terms, checks, meter. The same
    pair "as usually written" is in float32 and the ordinary layout. With the teacher's outputs given, as by a
    cache, the step is measured against the student's alone; reading a cache is a part of ``benchmarks/epoch.py``.

    Args:
        recipe: Models, terms, batch and settings; its data are not read.
        classes: How many the random labels have.
        rounds: Rounds that count.
        with_peers: Also time other packages on copies of the models.
        say: Told what was chosen, and which peer is left out.
        on_round: Told after each round how many are done, and of how many.

    Raises:
        UserError: The recipe has no teacher, or models that do not fit each other.
    """
    if recipe.teacher is None or recipe.student is None or recipe.method == "alone":
        raise UserError("a benchmark needs --teacher and --student")
    device = device_of(recipe)
    torch.manual_seed(recipe.seed)
    student = models.build(recipe.student, num_classes=classes, size=recipe.size)
    teacher = models.build(recipe.teacher, num_classes=classes, size=recipe.teacher_size or recipe.size)
    side = max(student.input.size, teacher.input.size)
    images = torch.rand(recipe.batch_size, 3, side, side, device=device)
    batch = (images, torch.randint(classes, (recipe.batch_size,), device=device))
    timed_peers: dict[str, Step] = {}
    for model in (student, teacher):
        model.module.to(device)
    if with_peers:
        if student.input.size != teacher.input.size:
            say("peers: skipped: they give both models the same input, and these differ in size")
        else:
            timed_peers = peers(student, teacher, say=say)
    distiller = build_distiller(recipe, student, teacher, None).to(device).train()
    settled = settle(recipe, distiller, batch, device, steps=LONG)
    for line in settled.lines:
        say(line)
    arithmetic = settled.arithmetic
    threads = torch.get_num_threads()
    if arithmetic.single_thread:
        torch.set_num_threads(1)
    written = Pair(student, teacher).copied()
    others = {WRITTEN: by_hand(written.student.module, written.frozen(), _sgd(recipe, written.student)), **timed_peers}
    pair = Pair(student, teacher)
    try:
        settings = _settings(recipe, pair, device)
        milliseconds = _milliseconds(recipe, pair, batch, settings)
        floor = min(milliseconds, key=lambda name: milliseconds[name])
        loops = _floors(recipe, pair, batch, settings[floor]) | _loops(recipe, pair, batch, settled)
        loops |= {name: repeated(step, *batch) for name, step in others.items()}
        seconds = interleave(loops, rounds=rounds, device=device, said=on_round)
    finally:
        torch.set_num_threads(threads)
    without = {name: seconds.pop(name) for name in (ALONE_FLOOR, ALONE, GIVEN)}
    described = {
        "student": recipe.student,
        "teacher": recipe.teacher,
        "method": recipe.method,
        "size": [student.input.size, teacher.input.size],
        "batch_size": recipe.batch_size,
        "classes": classes,
        "rounds": rounds,
        "floor": floor,
        "precision": arithmetic.precision,
        "memory_format": arithmetic.memory_format,
        "compiled": settled.compiles,
        "device": device_name(device),
        "threads": 1 if arithmetic.single_thread else threads,
        "torch": torch.__version__,
    }
    return Benchmark(described, compare(seconds, FLOOR), compare(without, ALONE_FLOOR), milliseconds)


@dataclass(frozen=True)
class Pair:
    """A student and a teacher."""

    student: Model
    teacher: Model

    def copied(self) -> "Pair":
        """Copies, so that one loop does not train what another one is timed with."""
        student, teacher = (replace(each, module=copy.deepcopy(each.module)) for each in (self.student, self.teacher))
        return Pair(student, teacher)

    def frozen(self) -> nn.Module:
        """The teacher as a loop written by hand has it."""
        return self.teacher.module.eval().requires_grad_(False)


@dataclass(frozen=True)
class Setting:
    """How a plain loop computes."""

    arithmetic: Arithmetic
    fused_attention: bool | None  # None: the models have none
    compiled: bool

    def __str__(self) -> str:
        words = [self.arithmetic.name]
        if self.fused_attention is not None:
            words.append("fused attention" if self.fused_attention else "written attention")
        return ", ".join([*words, "compiled"] if self.compiled else words)


def _settings(recipe: Recipe, pair: Pair, device: torch.device) -> dict[str, Setting]:
    """How a plain loop can compute here, by name."""
    parts = [*pair.student.module.modules(), *pair.teacher.module.modules()]
    forms = [True, False] if any(hasattr(part, "fused_attn") for part in parts) else [None]
    compiled = [False, True] if device.type == "cuda" and recipe.compile != "off" else [False]
    found = (Setting(*each) for each in itertools.product(candidates("auto", "auto", device), forms, compiled))
    return {str(setting): setting for setting in found}


def _milliseconds(
    recipe: Recipe, pair: Pair, batch: tuple[Tensor, Tensor], settings: Mapping[str, Setting]
) -> dict[str, float]:
    """A step of the plain loop in each setting: medians of a few rounds that take turns."""
    loops = {name: _floors(recipe, pair, batch, setting)[FLOOR] for name, setting in settings.items()}
    seconds = interleave(loops, rounds=ROUNDS_BY_HAND, device=batch[0].device)
    return {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}


def _floors(recipe: Recipe, pair: Pair, batch: tuple[Tensor, Tensor], setting: Setting) -> dict[str, Loop]:
    """The plain loops with and without the teacher, each on models of its own."""
    images, labels = batch
    dtype = PRECISIONS[setting.arithmetic.precision]
    floor, alone = pair.copied(), pair.copied()
    for model in (floor.student, floor.teacher, alone.student):
        apply_arithmetic(model.module, setting.arithmetic, images.device)
        for part in model.module.modules():
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", setting.fused_attention)  # noqa: B010
        if setting.compiled:
            model.module.compile()
    hands = {
        FLOOR: by_hand(floor.student.module, floor.frozen(), _fused(recipe, floor.student), precision=dtype),
        ALONE_FLOOR: by_hand(alone.student.module, None, _fused(recipe, alone.student), precision=dtype),
    }
    laid_out = images.contiguous(memory_format=LAYOUTS[setting.arithmetic.memory_format])
    return {name: repeated(step, laid_out, labels) for name, step in hands.items()}


def _loops(recipe: Recipe, pair: Pair, batch: tuple[Tensor, Tensor], settled: Settled) -> dict[str, Loop]:
    """Limbeck's loops, as it chose to compute, each on models of its own."""
    device, arithmetic = batch[0].device, settled.arithmetic
    dtype = PRECISIONS[arithmetic.precision]
    loops: dict[str, Loop] = {}
    recipe = recipe.changed({"lr": LEARNING_RATE})
    full, own, given = pair.copied(), pair.copied(), pair.copied()
    distillers = {
        FULL: build_distiller(recipe, full.student, full.teacher, None),
        ALONE: Distiller(own.student.module, None, build_task(recipe, own.student, None)),
        GIVEN: build_distiller(recipe, given.student, given.teacher, None),
    }
    for name, distiller in distillers.items():
        apply_arithmetic(distiller.to(device).train(), arithmetic, device)
        if settled.compiles:
            distiller.compile_parts(batch)
        taught = _taught(distiller, batch, dtype) if name == GIVEN else batch
        optimizer = build_optimizer(recipe, distiller)
        loops[name] = with_fit(distiller, optimizer, taught, precision=dtype, cpu=device.type == "cpu")
    return loops


def _taught(distiller: Distiller, batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> TaughtBatch:
    """The batch with what the teacher says to it."""
    images, labels = batch
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        teacher = distiller.capture_teacher(batch)
    assert teacher is not None
    distiller.release_teacher()
    return TaughtBatch(images, labels, torch.arange(len(images), device=images.device), teacher)


def _fused(recipe: Recipe, student: Model) -> Optimizer:
    """The optimizer of a run over a bare model."""
    return build_optimizer(recipe.changed({"lr": LEARNING_RATE}), Distiller(student.module, None, Classification()))


def _sgd(recipe: Recipe, student: Model) -> Optimizer:
    """The recipe's kind of optimizer over a bare model, as torch makes it by default."""
    parameters = student.module.parameters()
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, LEARNING_RATE, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
