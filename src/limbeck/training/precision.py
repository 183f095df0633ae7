"""Which number format and memory layout are quick on this machine: timed on the run's own step, where it matters."""

import contextlib
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from limbeck.distiller import Clock, Distiller, beside, evaluating
from limbeck.errors import UserError

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SMALL = 5e8  # floating point operations of one forward pass below which calls, not arithmetic, cost the time
MARGIN = 0.95  # bf16 has to take less than this share of float32's time: float32 is the safer one
SHARE = 0.02  # of a run that timing may take
ROUNDS = 8  # at most
SIGNS = 5  # rounds that a sign test needs
SAMPLE = 0.05  # seconds: shorter steps are timed several at once
AGREEMENT = 1.03  # two times this close confirm each other
OUT = 1.2  # a candidate that takes this much of the best one's time is not timed any further
DISTURBED = 0.05  # share of a step that our threads waited for a core


@dataclass(frozen=True)
class Arithmetic:
    """Chosen arithmetic, by the names that a recipe uses, and the reason in words.

    Attributes:
        precision: A name in ``PRECISIONS``.
        memory_format: "contiguous" or "channels_last".
        single_thread: Whether operations are too small to be worth splitting over cores.
        reason: Why, for the log.
        seconds: What each candidate took for a step, by its name; empty where nothing was timed.
    """

    precision: str
    memory_format: str
    single_thread: bool
    reason: str
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def name(self) -> str:
        """Number format and layout, as the keys of ``seconds`` have it."""
        return f"{self.precision} {self.memory_format}"


def obvious(
    distiller: Distiller, batch: Any, *, precision: str, memory_format: str, device: torch.device
) -> Arithmetic | None:
    """The settings where they need no timing, both being given or the models small; else None.

    Models so small that on a CPU conversions and hand-overs cost more than they save get float32 in the ordinary layout
    and one thread, by a rule on the counted operations of a forward pass.

    Args:
        distiller: Student, teacher and terms; not changed.
        batch: A typical batch, on the device.
        precision: "auto" or a name in ``PRECISIONS``.
        memory_format: "auto", "contiguous" or "channels_last".
        device: Where training will run.
    """
    forced = [name for name in (precision, memory_format) if name != "auto"]
    flops = _forward_flops(distiller, batch) if device.type == "cpu" else math.inf
    if len(forced) == 2:
        return Arithmetic(precision, memory_format, flops < SMALL, "as the recipe says")
    if flops >= SMALL:
        return None
    return Arithmetic(
        precision if precision != "auto" else "float32",
        memory_format if memory_format != "auto" else "contiguous",
        True,
        "; ".join(
            [
                f"the models are small, {flops / 1e9:.2g} GFLOP forward a batch",
                *(f"{name} as the recipe says" for name in forced),
            ]
        ),
    )


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it is emulated and slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # pyright: ignore[reportPrivateUsage]
    return False


def apply_arithmetic(module: nn.Module, arithmetic: Arithmetic, device: torch.device) -> None:
    """Lay out the weights, and choose the form of attention that is quick here; no weight and no name changes.

    timm's blocks call the fused attention, whose bf16 backward is slow on CPUs: written out, the step of a ViT of width
    96 on 64 tokens took 0.53 of the time (AMD EPYC, one thread, torch 2.15). In float32 the fused form is quicker.
    """
    module.to(memory_format=LAYOUTS[arithmetic.memory_format])  # pyright: ignore[reportCallIssue]
    if device.type == "cpu" and arithmetic.precision == "bf16":
        for part in _fused_attentions(module):
            setattr(part, "fused_attn", False)  # noqa: B010  (timm declares no type for it)


def candidates(precision: str, memory_format: str, device: torch.device) -> list[Arithmetic]:
    """What may be chosen."""
    precisions = ["float32", *(["bf16"] if bf16_is_native(device) else [])] if precision == "auto" else [precision]
    layouts = list(LAYOUTS) if memory_format == "auto" else [memory_format]
    return [Arithmetic(p, m, False, "") for p, m in itertools.product(precisions, layouts)]


@dataclass(frozen=True)
class Measurement:
    """What timing the candidates gave.

    Attributes:
        seconds: The least time of a step, by the name of each candidate that fits into memory.
        spread: The second least time over the least, of undisturbed steps, of candidates that have two.
        waited: The share of their time in which our threads were ready to run and had no core, median over all steps.
        is_sure: Whether every candidate's time is confirmed, or clearly too long: only this is worth remembering.
    """

    seconds: dict[str, float]
    spread: dict[str, float]
    waited: float
    is_sure: bool


def is_too_short(choice: Sequence[Arithmetic], steps: int) -> bool:
    """Whether a warm-up and one step of each candidate are more than timing may take of a run."""
    return SHARE * steps < 2 * len(choice)


def measure(
    distiller: Distiller, batch: Any, choice: Sequence[Arithmetic], device: torch.device, *, steps: int
) -> Measurement | None:
    """Time a step with each candidate, in rounds that take turns, until the order is clear or the budget ends.

    A step is forward and backward of a whole batch in training mode: on fewer rows the order may be another one. Other
    processes only add time, so that a candidate's time is its least. A second one within 3% confirms it, and steps in
    which our threads waited for a core confirm nothing. A candidate that is 20% slower than the best in two rounds is
    out; on a machine that stays busy, one that loses five rounds of five. Timing takes about 2% of the run at most, and
    no more than eight rounds.

    Args:
        distiller: Not changed; a copy of student and terms is timed.
        batch: A batch, on the device.
        choice: The settings.
        device: Where training will run.
        steps: How many steps the run has.

    Returns:
        What was found; None if no candidate fits into memory.
    """
    try:
        samples = _rounds(distiller, batch, choice, device, steps)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    fitting = {name: taken for name, taken in samples.items() if all(math.isfinite(one.seconds) for one in taken)}
    if not fitting:
        return None
    quiet = {name: _quiet(taken) for name, taken in fitting.items()}
    return Measurement(
        {name: min(one.seconds for one in taken) for name, taken in fitting.items()},
        {name: times[1] / times[0] for name, times in quiet.items() if len(times) > 1},
        statistics.median(one.waited for taken in fitting.values() for one in taken),
        not _unconfirmed(samples),
    )


class _Sample(NamedTuple):
    seconds: float  # of a step
    waited: float  # share of it, over all threads


def _rounds(
    distiller: Distiller, batch: Any, choice: Sequence[Arithmetic], device: torch.device, steps: int
) -> dict[str, list[_Sample]]:
    started = time.perf_counter()
    samples: dict[str, list[_Sample]] = {one.name: [] for one in choice}
    with trial(distiller, device) as subject:
        fused = _fused_attentions(subject)

        def sample(one: Arithmetic, repeats: int) -> _Sample:
            for part in fused:
                setattr(part, "fused_attn", True)  # noqa: B010
            apply_arithmetic(subject, one, device)
            step = step_of(subject, batch, PRECISIONS[one.precision], device)
            delayed = run_delay()
            seconds = sum(timed(step, device) for _ in range(repeats))
            return _Sample(seconds / repeats, (run_delay() - delayed) / seconds)

        once = {one.name: sample(one, 1).seconds for one in choice}  # warms up
        for _ in range(ROUNDS):
            names = _open(samples)
            for one in choice:
                if one.name in names:
                    samples[one.name].append(sample(one, max(1, math.ceil(SAMPLE / once[one.name]))))
            least = min(taken.seconds for every in samples.values() for taken in every)
            if not _open(samples) or time.perf_counter() - started > SHARE * steps * least:
                break
    return samples


def _open(samples: Mapping[str, Sequence[_Sample]]) -> list[str]:
    """The candidates that need more rounds: neither confirmed, nor clearly too long, nor beaten."""
    if not any(samples.values()):
        return list(samples)
    leader = min(samples, key=lambda name: min(one.seconds for one in samples[name]))
    return [name for name in _unconfirmed(samples) if name == leader or not _is_beaten(samples[name], samples[leader])]


def _unconfirmed(samples: Mapping[str, Sequence[_Sample]]) -> list[str]:
    least = min(one.seconds for taken in samples.values() for one in taken)
    found: list[str] = []
    for name, taken in samples.items():
        quiet = _quiet(taken)
        fits = all(math.isfinite(one.seconds) for one in taken)
        if fits and (len(quiet) < 2 or (quiet[1] > AGREEMENT * quiet[0] and quiet[0] < OUT * least)):
            found.append(name)
    return found


def _is_beaten(taken: Sequence[_Sample], by: Sequence[_Sample]) -> bool:
    """Whether it was slower in each of five rounds or more: a sign test at 3%, busy cores or not."""
    pairs = [one.seconds > other.seconds for one, other in zip(taken, by, strict=False)]
    return len(pairs) >= SIGNS and all(pairs)


def _quiet(taken: Sequence[_Sample]) -> list[float]:
    return sorted(sample.seconds for sample in taken if sample.waited < DISTURBED)


def run_delay() -> float:
    """Seconds in which this process's threads were ready to run and waited for a core; 0 if the system does not say.

    Linux counts them for each thread (``schedstat``). On two cores, a quiet step waits for 1% of its time, and beside
    one busy process for half of it.
    """
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # a thread that has just ended
            total += int(path.read_text(encoding="ascii").split()[1])
    return total / 1e9


def in_words(seconds: Mapping[str, float]) -> str:
    """Times of candidates relative to the least of them.

    Example:
        >>> in_words({"float32 contiguous": 0.2, "bf16 contiguous": 0.3})
        'float32 contiguous 1.00, bf16 contiguous 1.50'
    """
    least = min(seconds.values())
    return ", ".join(f"{name} {value / least:.2f}" for name, value in seconds.items())


def chosen(choice: Sequence[Arithmetic], seconds: dict[str, float], reason: str) -> Arithmetic:
    """The quickest candidate, with the reason and the seconds of all."""
    return replace(next(one for one in choice if one.name == fastest(seconds)), reason=reason, seconds=seconds)


def by_rule(choice: Sequence[Arithmetic], device: torch.device, reason: str) -> Arithmetic:
    """A candidate without timing: bf16 on a GPU that multiplies it in hardware, float32 on other devices."""
    prefers = "bf16" if device.type == "cuda" and bf16_is_native(device) else "float32"
    return replace(next((one for one in choice if one.precision == prefers), choice[0]), reason=reason)


def fastest(seconds: dict[str, float]) -> str:
    """The name with the least time, but bf16 only where it saves enough.

    Example:
        >>> fastest({"float32 contiguous": 1.0, "float32 channels_last": 0.98, "bf16 channels_last": 0.94})
        'float32 channels_last'
        >>> fastest({"float32 contiguous": 1.0, "bf16 contiguous": 0.94})
        'bf16 contiguous'
    """
    safe = {name: value for name, value in seconds.items() if not name.startswith("bf16")}
    quick = min(seconds, key=lambda name: seconds[name])
    if not safe or quick in safe:
        return quick
    safest = min(safe, key=lambda name: safe[name])
    return quick if seconds[quick] < MARGIN * safe[safest] else safest


def rows(batch: Any, count: int, kept: int) -> Any:
    """The first rows of a batch of ``count``: of every tensor in it that has so many."""

    def first(value: Any) -> Any:
        return value[:kept] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value

    return tree_map(first, batch)


@contextlib.contextmanager
def trial(distiller: Distiller, device: torch.device) -> Generator[Distiller, None, None]:
    """Copies of student and terms in training mode, beside the same teacher, which is as large as all else.

    Random numbers that are drawn meanwhile are drawn again afterwards, and the teacher gets its layout back.
    """
    on_gpu = device.type == "cuda"
    teacher = distiller.teacher if distiller.teacher is not None else nn.Module()
    maps = [(p, _layout_of(p)) for p in (*teacher.parameters(), *teacher.buffers()) if p.ndim == 4]
    fused = _fused_attentions(teacher)
    with torch.random.fork_rng([device] if on_gpu else []):  # pyright: ignore[reportUnknownMemberType]
        subject = beside(distiller).train()
        subject.clock = Clock()
        try:
            yield subject
        finally:
            for tensor, layout in maps:
                tensor.data = tensor.data.contiguous(memory_format=layout)
            for part in fused:
                setattr(part, "fused_attn", True)  # noqa: B010
    if on_gpu:
        torch.cuda.empty_cache()  # the run's own sizes may be others


def _layout_of(tensor: Tensor) -> torch.memory_format:
    return next(
        (name for name in LAYOUTS.values() if tensor.is_contiguous(memory_format=name)), torch.contiguous_format
    )


def step_of(subject: Distiller, batch: Any, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """A step, forward and backward, that leaves no gradient."""

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = subject(batch).loss
        loss.backward()
        subject.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of a step; infinite where it does not fit into memory."""
    started = time.perf_counter()
    try:
        step()
        if device.type != "cpu":
            torch.accelerator.synchronize()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    return time.perf_counter() - started


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator found no memory; that of the CPU has no error type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory(error: RuntimeError, distiller: Distiller, batch: Any, step: int) -> UserError | None:
    """An allocation that failed, in one line: how much was asked for, and what to set; None for any other error.

    Args:
        error: From the step.
        distiller: What is trained.
        batch: A batch of this process.
        step: The step that was being made.
    """
    if not is_out_of_memory(error):
        return None
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    left = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", str(error))
    words = [f"{asked[1]} more were needed"] if asked else []
    words += [f"{left[2]} of {left[1]} were free"] if left else []
    rows = len(distiller.task.student_input(batch))
    said = f" ({', '.join(words)})" if words else ""
    return UserError(
        f"out of memory in step {step} with {rows} images in a batch{said}; use --batch-size {max(1, rows // 2)} "
        "with --accumulate 2, or --precision bf16; the last checkpoint is kept, and --resume continues from it"
    )


def _fused_attentions(module: nn.Module) -> list[nn.Module]:
    """The attention layers of timm that call the fused kernel."""
    return [part for part in module.modules() if getattr(part, "fused_attn", False)]


def _forward_flops(distiller: Distiller, batch: Any) -> int:
    with evaluating(distiller), FlopCounterMode(display=False) as counter:
        distiller.capture(batch)
    return int(counter.get_total_flops())
