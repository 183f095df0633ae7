"""What is written down of a run besides what it learned: figures, sizes, versions, the machine."""

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import limbeck
from limbeck.assembly.arithmetic import name_of
from limbeck.assembly.tasks import Parts
from limbeck.cache import digest_of
from limbeck.distiller import Distiller
from limbeck.distributed import collectives
from limbeck.logs.records import Record, headline, mapping, number
from limbeck.logs.runlog import RunLog
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.runs.images import record_of
from limbeck.runs.preflight import Preflight
from limbeck.storage.untrusted import records_of
from limbeck.training.fit import FitResult

Summary = dict[str, Any]


def summarize(
    parts: Parts,
    checked: Preflight,
    result: FitResult,
    log: RunLog,
    device: torch.device,
    origins: Summary,
    *,
    memory: float | None = None,
) -> Summary:
    """The figures of a finished run, and what is needed to trust them and to make it again."""
    recipe, data, counters = parts.recipe, parts.data, result.counters
    return {
        "recipe": recipe.name,
        "method": recipe.method,
        "seed": recipe.seed,
        "metric": headline(result.last)[0],
        "last": result.last,
        "best": result.best,
        "linear_probe": checked.linear_probe or None,
        "teacher": checked.teacher_scores or None,
        "teacher_weights": parts.teacher.weights if parts.teacher is not None else None,
        "seconds": round(counters.seconds, 3),
        "images_per_second": round(counters.images / max(counters.seconds, 1e-9), 1),
        "skipped_steps": counters.skipped,
        "compiled": _compiled(parts.distiller, log),
        **_costs(recipe, log, counters.seconds),
        "peak_memory_mib": memory,
        "parameters": parameter_counts(parts),
        "data": record_of(data),
        "versions": versions(),
        "commit": commit(),
        "device": device_name(device),
        "machine": machine(),
        "arithmetic": {name: getattr(recipe, name) for name in fields_of("arithmetic")},
        "origins": origins,
    }


def _compiled(distiller: Distiller, log: RunLog) -> dict[str, dict[str, int]] | None:
    """What the compiler did in this start of the run, by part: graphs, calls, and calls in which nothing of it ran."""
    found = {
        name: {"graphs": part.graphs, "calls": part.calls, "plain": part.plain}
        for name, part in distiller.compiled.items()
    }
    for name, part in found.items():
        if part["plain"]:
            log.note(f"{name} ran without the compiler in {part['plain']} of {part['calls']} calls")
    return found or None


def _costs(recipe: Recipe, log: RunLog, seconds: float) -> dict[str, Any]:
    """What the probe and the teacher took of the run, over all its starts; None where there was none."""
    # A line that was damaged must not cost the run its end.
    text = log.path.read_text(encoding="utf-8", errors="replace") if log.path is not None and log.path.is_file() else ""
    records = [record for _, record in records_of(text)]
    probe = _spent(records, "probe", "seconds", seconds)
    teacher = _spent(records, "step", "teacher_seconds", seconds)
    if teacher is None:
        return {"probe": probe, "cost": None}
    origin = {"teacher": "run" if recipe.cache_views is None else "cache"}
    return {
        "probe": probe,
        "cost": origin | {"teacher_seconds": teacher["seconds"], "teacher_share": teacher["share"]},
    }


def _spent(records: Sequence[Record], kind: str, name: str, seconds: float) -> dict[str, float] | None:
    """How many records of a kind have a time, what these add up to, and their share of the run's; None without any."""
    found = [value for record in records if record.get("kind") == kind and (value := number(record, name)) is not None]
    if not found:
        return None
    return {"count": len(found), "seconds": round(sum(found), 3), "share": round(sum(found) / max(seconds, 1e-9), 5)}


def count_parameters(module: nn.Module) -> int:
    """Numbers that a module learns."""
    return sum(p.numel() for p in module.parameters())


def parameter_counts(parts: Parts) -> dict[str, int]:
    """Of the models and the terms."""
    counts = {
        "student": count_parameters(parts.student.module),
        "terms": count_parameters(parts.distiller.term_modules),
    }
    return counts | ({"teacher": count_parameters(parts.teacher.module)} if parts.teacher is not None else {})


def versions() -> dict[str, str]:
    """Of what a run depends on."""
    packages = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow")
    found = {name: metadata.version(name) for name in packages}
    cuda = {"cuda": str(torch.version.cuda)} if torch.cuda.is_available() else {}
    return {"limbeck": limbeck.__version__, "python": platform.python_version(), **found, **cuda}


def changes_since_start(folder: Path, device: str) -> str:
    """What a run that goes on has in another version than when it was last started, as words; empty where nothing."""
    log = folder / "log.jsonl"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    starts = [record for _, record in records_of(text) if record.get("kind") == "start"]
    if not starts:
        return ""
    then: dict[str, Any] = {**mapping(starts[-1], "versions"), "commit of limbeck": starts[-1].get("commit")}
    then["device"] = starts[-1].get("device")
    now: dict[str, Any] = {**versions(), "commit of limbeck": commit(), "device": device}
    both = [name for name in now if now[name] is not None and then.get(name) is not None]
    return ", ".join(f"{name} {then[name]} -> {now[name]}" for name in both if then[name] != now[name])


def machine() -> dict[str, Any]:
    """What of the machine decides bytes and speed, besides the device."""
    return {
        "processor": name_of(torch.device("cpu")),
        "system": f"{platform.system()} {platform.release()}",
        "threads": torch.get_num_threads(),
        "processes": collectives.world_size(),
    }


def origins_of(parts: Parts) -> dict[str, Any]:
    """Where the weights of both models come from when training begins, with digests of all their bytes."""
    found: dict[str, Any] = {"student": {"weights": parts.student.weights, "digest": digest_of(parts.student.module)}}
    if parts.teacher is not None:
        trained = parts.teacher.weights.startswith("run:") and parts.recipe.teacher_weights is None
        trained = trained or parts.recipe.fit_teacher
        digest = digest_of(parts.teacher.module)
        found["teacher"] = {"weights": parts.teacher.weights, "digest": digest, "trained_first": trained}
        # Of a head that nothing reads two runs have two.
        found["teacher"] |= {"classes": parts.teacher.num_classes, "new_head": parts.teacher.new_head}
    return found


def forget_peak_memory(device: torch.device) -> bool:
    """Count the most memory from here on; False where that cannot be done, and the number would be of other runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux alone
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> float | None:
    """The most memory since then, in MiB: of a GPU what tensors took, else what the process had; None if untold."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))):
        return round(int(found[1]) / 1024, 1)
    return None


def device_name(device: torch.device) -> str:
    """The device in words, of a CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def commit() -> str | None:
    """Commit of the checkout that Limbeck runs from, and whether code was changed; None for an installed package."""
    here = Path(__file__).parents[1]
    if shutil.which("git") is None:
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False).stdout

    if not git("ls-files", "--", "__init__.py"):  # installed into a folder of somebody else's checkout
        return None
    found = git("rev-parse", "HEAD").strip()
    return (f"{found} and changes" if git("status", "--porcelain", "--", ".").strip() else found) or None
