"""One pair of models, every loop that can train it, in one interleaved run."""

import copy
from collections.abc import Callable
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
from limbeck.training.precision import LAYOUTS, PRECISIONS, apply_arithmetic

FLOOR, FULL = "floor", "limbeck"
ALONE_FLOOR, ALONE, GIVEN = "student alone, by hand", "student alone, limbeck", "limbeck, teacher's outputs given"
WRITTEN = "as usually written"
LEARNING_RATE = 1e-3  # small: after many steps on one batch the numbers are still ordinary ones

Say = Callable[[str], None]


@dataclass(frozen=True)
class Benchmark:
    """What an interleaved run gave.

    Attributes:
        settings: Which pair, which settings, which machine.
        timings: Loop to its timing against the floor.
        alone: The loops without a teacher's pass, against the student alone by hand.
    """

    settings: dict[str, Any]
    timings: dict[str, Timing]
    alone: dict[str, Timing]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "settings": self.settings,
            "against the floor": {name: asdict(timing) for name, timing in self.timings.items()},
            "against the student alone": {name: asdict(timing) for name, timing in self.alone.items()},
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
        return "\n".join([*lines[: len(self.timings) + 1], "", *lines[len(self.timings) + 1 :]])


def benchmark(
    recipe: Recipe, *, classes: int, rounds: int, with_peers: bool, say: Say, on_round: Callable[[int, int], None]
) -> Benchmark:
    """Time a recipe's training step on random images, on one device.

    The floor is the two networks and the optimizer alone, in the number format, layout and form of attention that
    Limbeck chose: teacher forward without gradient, student forward and backward on cross entropy, optimizer.
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
            say("peers: left out: they give both models the same input, and these differ in size")
        else:
            timed_peers = peers(student, teacher, say=say)
    distiller = build_distiller(recipe, student, teacher, None).to(device).train()
    settled = settle(recipe, distiller, batch, device, steps=1)
    for line in settled.lines:
        say(line)
    arithmetic = settled.arithmetic
    threads = torch.get_num_threads()
    if arithmetic.single_thread:
        torch.set_num_threads(1)
    written = Pair(student, teacher).copied()
    others = {WRITTEN: by_hand(written.student.module, written.frozen(), _sgd(recipe, written.student)), **timed_peers}
    loops = _loops(recipe, Pair(student, teacher), batch, settled)
    loops |= {name: repeated(step, *batch) for name, step in others.items()}
    try:
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
        "precision": arithmetic.precision,
        "memory_format": arithmetic.memory_format,
        "compiled": settled.compiles,
        "device": device_name(device),
        "threads": 1 if arithmetic.single_thread else threads,
        "torch": torch.__version__,
    }
    return Benchmark(described, compare(seconds, FLOOR), compare(without, ALONE_FLOOR))


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


def _loops(recipe: Recipe, pair: Pair, batch: tuple[Tensor, Tensor], settled: Settled) -> dict[str, Loop]:
    """The floor and Limbeck's loops, in the same settings, each on models of its own."""
    images, labels = batch
    device, arithmetic = images.device, settled.arithmetic
    dtype = PRECISIONS[arithmetic.precision]
    floor, alone = pair.copied(), pair.copied()
    for model in (floor.student, floor.teacher, alone.student):
        apply_arithmetic(model.module, arithmetic, device)
        if settled.compiles:
            model.module.compile()
    hands = {
        FLOOR: by_hand(floor.student.module, floor.frozen(), _fused(recipe, floor.student), precision=dtype),
        ALONE_FLOOR: by_hand(alone.student.module, None, _fused(recipe, alone.student), precision=dtype),
    }
    laid_out = images.contiguous(memory_format=LAYOUTS[arithmetic.memory_format])
    loops = {name: repeated(step, laid_out, labels) for name, step in hands.items()}
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
