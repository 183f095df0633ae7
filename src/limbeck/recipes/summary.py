"""What is written down of a run besides what it learned: figures, sizes, versions, the machine."""

import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import limbeck
from limbeck.recipes.build import Parts
from limbeck.recipes.preflight import Preflight
from limbeck.records import number
from limbeck.runlog import RunLog
from limbeck.train import FitResult
from limbeck.untrusted import records_of

Summary = dict[str, Any]


def summarize(parts: Parts, checked: Preflight, result: FitResult, log: RunLog, device: torch.device) -> Summary:
    """The figures of a finished run, and what is needed to trust them."""
    recipe, data, counters = parts.recipe, parts.data, result.counters
    return {
        "recipe": recipe.name,
        "method": recipe.method,
        "seed": recipe.seed,
        "metric": "top1" if "top1" in result.last else "loss",
        "last": result.last,
        "best": result.best,
        "teacher": checked.teacher_scores or None,
        "teacher_weights": parts.teacher.weights if parts.teacher is not None else None,
        "seconds": round(counters.seconds, 3),
        "images_per_second": round(counters.images / max(counters.seconds, 1e-9), 1),
        "skipped_steps": counters.skipped,
        "probe": _probe_cost(log, counters.seconds),
        "peak_memory_mib": peak_memory(device),
        "parameters": parameter_counts(parts),
        "data": {
            "name": data.name,
            "train": data.train_count,
            "val": data.val_count,
            "fingerprint": data.fingerprint,
        },
        "versions": versions(),
        "commit": commit(),
        "device": device_name(device),
    }


def _probe_cost(log: RunLog, seconds: float) -> dict[str, float] | None:
    """How often the run was probed and what that took, over all its starts; None where it was not."""
    if log.path is None or not log.path.is_file():
        return None
    # A line that was damaged must not cost the run its end.
    records = records_of(log.path.read_text(encoding="utf-8", errors="replace"))
    found = [number(record, "seconds") for _, record in records if record.get("kind") == "probe"]
    spent = [seconds for seconds in found if seconds is not None]
    if not spent:
        return None
    return {"count": len(spent), "seconds": round(sum(spent), 3), "share": round(sum(spent) / max(seconds, 1e-9), 5)}


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
    packages = ("torch", "torchvision", "timm", "accelerate")
    found = {name: metadata.version(name) for name in packages}
    return {"limbeck": limbeck.__version__, "python": platform.python_version(), **found}


def peak_memory(device: torch.device) -> float | None:
    """The most memory so far, in MiB: of a GPU what tensors took, else what the process had; None if it is not told."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if (status := Path("/proc/self/status")).is_file():  # ru_maxrss begins with what the starting process had
        return round(int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))[0]) / 1024, 1)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def device_name(device: torch.device) -> str:
    """The device in words, of a CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def commit() -> str | None:
    """Commit of the checkout that Limbeck runs from; None for an installed package."""
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return None
    got = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return got.stdout.strip() or None
