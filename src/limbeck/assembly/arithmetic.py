"""Settle how this machine runs a recipe: measured once for each kind of step, remembered, one answer for all processes.

What was measured is kept in ``arithmetic.json`` beside the downloads, by the machine (device, threads, torch) and by
what is run (models, terms, shapes of a batch). So equal recipes get equal arithmetic on one machine, although timings
differ. Runs that start together measure in turn, and find what the first has found.
"""

import contextlib
import datetime
import hashlib
import json
import platform
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils._pytree import tree_map

from limbeck.data.sources import cache_folder
from limbeck.distiller import Distiller
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.storage.files import save_json
from limbeck.storage.untrusted import parse_json
from limbeck.training import precision as hardware
from limbeck.training.compiling import Compiling, may_pay, measure_compiling, pays
from limbeck.training.precision import Arithmetic

FILE = "arithmetic.json"
WAIT = 300.0  # seconds for another process to finish measuring
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Settled:
    """What was settled.

    Attributes:
        arithmetic: Number format and layout.
        compiles: Whether models and terms are compiled.
        lines: What to tell the user: the last one says what was chosen and why.
    """

    arithmetic: Arithmetic
    compiles: bool
    lines: list[str]


def settle(recipe: Recipe, distiller: Distiller, batch: Any, device: torch.device, *, steps: int) -> Settled:
    """Settle what the recipe leaves on "auto"; the first process does, and tells the others.

    Args:
        recipe: What it says is taken.
        distiller: Student, teacher and terms; not changed.
        batch: A global batch, on the device.
        device: Where training will run.
        steps: How many steps the run has.
    """
    if recipe.shard:
        return _in_shares(recipe, device)
    count = distiller.task.student_input(batch).shape[0]
    share = hardware.rows(batch, count, max(2, count // collectives.world_size()))
    answer = ""
    if collectives.rank() == 0:
        with collectives.alone():
            answer = json.dumps(asdict(_settle(recipe, distiller, share, device, steps)))
    found = json.loads(collectives.from_first(answer, device))
    return Settled(**{**found, "arithmetic": Arithmetic(**found["arithmetic"])})


def _in_shares(recipe: Recipe, device: torch.device) -> Settled:
    """What needs no timing, for no process can run the models by itself."""
    choice = hardware.candidates(recipe.precision, "contiguous", device)
    arithmetic = hardware.by_rule(choice, device, "not measured in shards")
    line = f"{device.type}: {arithmetic.precision}, contiguous, not compiled ({arithmetic.reason})"
    return Settled(arithmetic, False, [line])


def _settle(recipe: Recipe, distiller: Distiller, batch: Any, device: torch.device, steps: int) -> Settled:
    lines: list[str] = []
    given = {"precision": recipe.precision, "memory_format": recipe.memory_format}
    arithmetic = hardware.obvious(distiller, batch, **given, device=device)
    measures_compiling = recipe.compile == "auto" and device.type == "cuda"
    compiles, why = recipe.compile == "on", ""
    if arithmetic is None or measures_compiling:
        choice = hardware.candidates(**given, device=device)
        key = _key(distiller, batch, choice, device)
        with _one_after_the_other(lines):
            memory = _recall(lines)
            arithmetic, known = _measured(memory.get(key), distiller, batch, choice, device, steps)
            if measures_compiling and arithmetic.seconds:
                compiles, why, known = _compiling(known, distiller, batch, arithmetic, device, steps)
            if "measured" in known and known != memory.get(key):
                _remember({**memory, key: known}, lines)
    if recipe.compile == "auto" and not measures_compiling:
        why = f"; not compiled, which saves little on {device.type}"
    words = [arithmetic.precision, arithmetic.memory_format]
    words += ["one thread"] if arithmetic.single_thread else []
    words += ["compiled"] if compiles else []
    return Settled(arithmetic, compiles, [*lines, f"{device.type}: {', '.join(words)} ({arithmetic.reason}{why})"])


def _measured(
    known: dict[str, Any] | None,
    distiller: Distiller,
    batch: Any,
    choice: Sequence[Arithmetic],
    device: torch.device,
    steps: int,
) -> tuple[Arithmetic, dict[str, Any]]:
    """The arithmetic, and what to remember of it: nothing if the measurement is not sure."""
    if known is not None:
        words = hardware.in_words(known["seconds"])
        return hardware.chosen(choice, known["seconds"], f"measured on {known['measured']}: {words}"), known
    if hardware.is_too_short(choice, steps):
        return hardware.by_rule(choice, device, f"not measured: {steps:,} steps are too few"), {}
    began = time.perf_counter()
    found = hardware.measure(distiller, batch, choice, device, steps=steps)
    if found is None:
        return hardware.by_rule(choice, device, "not measured, for lack of memory"), {}
    took = time.perf_counter() - began
    reason = f"measured in {took:.1f} s: {hardware.in_words(found.seconds)}"
    if not found.is_sure:
        disturbed = (
            f"; {found.waited:.0%} of the time other processes had our cores"
            if found.waited > hardware.DISTURBED
            else ""
        )
        return hardware.chosen(choice, found.seconds, f"{reason}; not sure, so not remembered{disturbed}"), {}
    record = {"measured": str(datetime.date.today()), "seconds": found.seconds}
    return hardware.chosen(choice, found.seconds, reason), record | {"spread": found.spread, "waited": found.waited}


def _compiling(
    known: dict[str, Any], distiller: Distiller, batch: Any, arithmetic: Arithmetic, device: torch.device, steps: int
) -> tuple[bool, str, dict[str, Any]]:
    """Whether to compile, why, and what is to be remembered of it."""
    if "compiling" not in known:
        if not may_pay(arithmetic.seconds[arithmetic.name], steps):
            return False, f"; not compiled, too little to win in {steps:,} steps", known
        try:
            found = measure_compiling(distiller, batch, arithmetic, device)
        except UserError as error:
            return False, f"; not compiled: {error}", known
        except RuntimeError as error:
            if not hardware.is_out_of_memory(error):
                raise
            return False, "; not compiled: no memory to measure it", known
        known = {**known, "compiling": asdict(found)}
    cost = Compiling(**known["compiling"])
    why = f"takes {cost.start:.0f} s and makes {cost.step / cost.plain:.2f} of a step, {steps:,} steps"
    return pays(cost, steps), f"; compiling {why}", known


def _key(distiller: Distiller, batch: Any, choice: Sequence[Arithmetic], device: torch.device) -> str:
    """Hash of all that the timing depends on."""
    shapes = tree_map(lambda x: [list(x.shape), str(x.dtype)] if isinstance(x, Tensor) else None, batch)
    words = {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "models": re.sub(r"0x[0-9a-f]+", "", repr(distiller)),  # a function's address says nothing
        "parameters": [list(p.shape) for p in distiller.parameters()],
        "terms": [[name, type(term).__name__, *term.student_taps] for name, term in distiller.terms.items()],
        "batch": shapes,
        "choice": [one.name for one in choice],
    }
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def name_of(device: torch.device) -> str:
    """The device's own name; that of a CPU with its model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and CPUINFO.is_file():
        found = re.search(r"^model name\s*: (.*)$", CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
        if found is not None:
            return found[1]
    return f"{device.type} {platform.processor() or platform.machine()}"


@contextlib.contextmanager
def _one_after_the_other(lines: list[str]) -> Generator[None, None, None]:
    """Wait for other processes that measure; without a lock where the folder cannot be written."""
    path = cache_folder() / FILE
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT)
    except OSError as error:  # a timeout is one, too
        lines.append(f"measured arithmetic is not shared: {path.parent} cannot be locked ({error})")
    try:
        yield
    finally:
        lock.release()


def _recall(lines: list[str]) -> dict[str, dict[str, Any]]:
    """What is remembered; what cannot be read, is not."""
    path = cache_folder() / FILE
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, Any]] = parse_json(path.read_text(encoding="utf-8"))
        return {key: _checked(entry) for key, entry in found.items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        lines.append(f"{path} cannot be read and is replaced ({type(error).__name__})")
        return {}


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        "measured": str(entry["measured"]),
        "seconds": {str(name): float(value) for name, value in entry["seconds"].items()},
        "spread": {str(name): float(value) for name, value in entry["spread"].items()},
        "waited": float(entry["waited"]),
    }
    if "compiling" in entry:
        kept["compiling"] = asdict(Compiling(**{name: float(value) for name, value in entry["compiling"].items()}))
    return kept


def _remember(memory: dict[str, dict[str, Any]], lines: list[str]) -> None:
    try:
        save_json(memory, cache_folder() / FILE)
    except UserError as error:
        lines.append(f"measured arithmetic is not remembered: {error}")
