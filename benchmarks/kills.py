"""Kill trainings of every kind again and again, resume them, and compare what they end with with an unbroken run.

A training is a child of this process. It dies by SIGKILL at a random moment, or behind its n-th step of writing
(opening, flushing, renaming, removing a file or folder), at once or a moment later, so that every point of the writing
of a checkpoint, a teacher cache and a result is met; or it is asked to stop by SIGTERM or SIGINT. What it left is
resumed, up to some times killed again, and run to its end. Run from the repository::

    python benchmarks/kills.py --kills 200
    python benchmarks/kills.py --kills 5 --only cached --seed 7 --work kept

lost: a run that cannot be resumed, or goes on from an older checkpoint or with fewer shards than there were.
different: a run that ends with another byte in its weights, its samples, its cache, or, clocks apart, its log.
"""

import argparse
import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from deaths import AREAS, Death, halves, live, newest, results

AGAIN = 4  # times that a run is killed at most
BASE = {
    "data": "digits",
    "teacher": "small/cnn-8",
    "student": "small/cnn-2",
    "method": "projector",
    "epochs": 5,
    "batch_size": 32,
    "train_limit": 320,
    "augmentation": "standard",
    "probe": 8,
    "probe_images": 16,
    "device": "cpu",
    "precision": "float32",
    "memory_format": "contiguous",
    "compile": "off",
}
VIT = {"student": "small/vit-32", "size": 16, "teacher_size": 8, "optimizer": "adamw", "lr": 0.002}
KINDS: dict[str, dict[str, Any]] = {
    "cnn": {"method": "projector+kd"},
    "vit": {**VIT, "augmentation": "strong", "epochs": 3},
    "label-free": {"labels": False, "feature_loss": "log_sum"},
    "cached": {"cache_views": 3, "method": "projector+kd", "cache_precision": "exact"},
    "cached-mixed": {"cache_views": 2, "augmentation": "strong", "batch_size": 40},
    "ema": {
        "ema": 0.9,
        "checkpoint_every": 4,
        "clip": 1.0,
        "schedule": "step",
        "milestones": (2.0, 3.5),
        "warmup_epochs": 1.5,
    },
    "accumulation": {"accumulate": 3, "method": "projector+kd", "optimizer": "adamw"},
    "whitening": {"input_norm": "zca", "feature_loss": "mean_squared_error", "projector": "mlp"},
    "crd": {"method": "crd", "checkpoint_every": 3},
    "teacher-first": {"teacher_weights": None, "teacher_epochs": 3, "epochs": 2, "method": "kd"},
    "workers": {"data": "IMAGES", "train_limit": None, "size": 8, "workers": 2, "epochs": 2},
}
"""Kind -> how its recipe differs from the one above."""


@dataclass
class Counts:
    """What happened to the runs of a kind."""

    runs: int = 0
    kills: int = 0
    in_checkpoint: int = 0
    in_cache: int = 0
    in_other: int = 0
    signals: int = 0
    mid_epoch: int = 0
    from_start: int = 0
    from_checkpoint: int = 0
    lost: list[str] = field(default_factory=list[str])
    different: list[str] = field(default_factory=list[str])


def broken(recipe: Any, place: Path, deaths: Callable[[], Death | None], counts: Counts, expected: Any) -> None:
    """One run: killed for as long as there are deaths, then run to its end, and compared."""
    folder = place / "run"
    place.mkdir(parents=True)
    counts.runs += 1
    said: list[str] = []
    code = -1
    while code != 0:
        death = deaths() if len(said) < AGAIN else None
        seen, left = newest(place), halves(place)
        code = live(recipe, folder, death)
        said.append(f"{death} -> {code}")
        now, new = newest(place), halves(place) - left
        if any(now.get(name, "") < state for name, state in seen.items()):
            counts.lost.append(f"{place}: {seen} became {now}; {said}")
        if code == 0:
            break
        if death is None or code not in (-death.signum, 128 + death.signum):
            last = (place / "said.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            counts.lost.append(f"{place}: {said}; {' '.join(last)}")
            return
        _count(counts, death, new, now.get(str(folder / "checkpoint")), folder)
    found = results(place)
    if wrong := [name for name in expected | found if expected.get(name) != found.get(name)]:
        counts.different.append(f"{place}: {', '.join(sorted(wrong))}; {said}")
    elif not counts.lost:
        shutil.rmtree(place)


def _count(counts: Counts, death: Death, new: set[Path], state: str | None, folder: Path) -> None:
    """Where it died, by what it left, and where it will go on."""
    if death.signum == signal.SIGKILL:
        counts.kills += 1
        parts = [path.parts for path in new]
        in_checkpoint, in_cache = (any(area in names for names in parts) for area in ("checkpoint", "caches"))
        counts.in_checkpoint += in_checkpoint
        counts.in_cache += in_cache
        counts.in_other += bool(new) and not in_checkpoint and not in_cache
    else:
        counts.signals += 1
    if state is None:
        counts.from_start += 1
        return
    counts.from_checkpoint += 1
    where = json.loads((folder / "checkpoint" / state / "counters.json").read_text(encoding="utf-8"))
    counts.mid_epoch += death.signum != signal.SIGKILL and where.get("batches", 0) > 0


def drawn(rng: random.Random, seconds: float, points: dict[str, int], can_stop: bool) -> Death:
    """A random death: a quarter at random moments, a half at points of writing, the others by signals to be obeyed."""
    choice = rng.random()
    moment = rng.uniform(0.05, 1.0) * seconds
    if choice < 1 / 4 or (choice > 3 / 4 and not can_stop):
        return Death(seconds=moment)
    if choice > 3 / 4:
        return Death(rng.choice((signal.SIGTERM, signal.SIGINT)), seconds=rng.uniform(0.3, 0.9) * seconds)
    area = rng.choice([area for area in AREAS if points[area] for _ in range(1 if area == "other" else 3)])
    delay = rng.choice((0.0, rng.uniform(0.0, 0.003)))
    return Death(area=area, point=rng.randint(1, points[area]), delay=delay)


def prepare(work: Path) -> dict[str, Any]:
    """A teacher, and images in files; the recipe that they give."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from limbeck.recipes import Recipe

    digits: Any = load_digits()
    for number in range(240):
        path = work / "images" / ("train" if number < 192 else "val") / str(digits.target[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(digits.images[number] * 15)).save(path)
    alone = {"teacher": None, "method": "alone", "student": BASE["teacher"], "probe": "off"}
    teacher = work / "teacher" / "run"
    teacher.parent.mkdir(parents=True, exist_ok=True)
    if live(Recipe(**BASE).changed(alone), teacher, None) != 0:
        raise SystemExit((teacher.parent / "said.txt").read_text(encoding="utf-8"))
    return {**BASE, "teacher_weights": str(teacher)}


SWEEPS = (("cnn", "checkpoint"), ("cached", "cache"), ("cnn", "other"), ("teacher-first", "other"))
"""Every point of a third of the writing of these, one run each, beside what is drawn."""


def swept(points: dict[str, int], area: str) -> list[Death]:
    """Deaths at each point of one checkpoint or shard, and of what is written at the beginning and in the end."""
    count = points[area]
    if area == "other":
        chosen = [*range(1, min(12, count) + 1), *range(max(13, count - 12), count + 1)]
    else:
        chosen = range(count // 3, 2 * count // 3 if area == "cache" else count // 3 + count // BASE["epochs"] + 1)
    return [Death(area=area, point=point) for point in chosen]


def kill_kind(name: str, base: dict[str, Any], work: Path, flags: Any, tick: Callable[[int], None]) -> Counts:
    """All runs of a kind."""
    from limbeck.recipes import Recipe

    settings = {**base, **KINDS[name]}
    settings["data"] = settings["data"].replace("IMAGES", str(work / "images"))
    recipe, counts = Recipe(**settings), Counts()
    whole = work / name / "unbroken"
    whole.mkdir(parents=True)
    began = time.monotonic()
    if live(recipe, whole / "run", None) != 0:
        raise SystemExit(f"{name}: {(whole / 'said.txt').read_text(encoding='utf-8')}")
    seconds = time.monotonic() - began
    points, expected = json.loads((whole / "points.txt").read_text(encoding="utf-8")), results(whole)
    rng = random.Random(f"{name} {flags.seed}")
    quota = -(-flags.kills // len(flags.only or KINDS))
    if "workers" in KINDS[name]:
        quota = -(-quota // 3)  # its processes take most of a minute to start

    def draw() -> Death | None:
        return drawn(rng, seconds, points, flags.signals) if counts.kills + counts.signals < quota else None

    while counts.kills + counts.signals < quota and not counts.lost:
        before = counts.kills + counts.signals
        broken(recipe, work / name / f"drawn-{counts.runs}", draw, counts, expected)
        tick(counts.kills + counts.signals - before)
    for kind, area in SWEEPS if flags.sweep else ():
        for death in swept(points, area) if kind == name else ():
            once = iter([death])
            broken(recipe, work / name / f"{area}-{death.point}", lambda once=once: next(once, None), counts, expected)
            tick(1)
    return counts


HEADER = ("runs", "kills", "checkpoint", "cache", "other", "signals", "midway", "start", "state", "lost", "different")


def row(counts: Counts) -> list[int]:
    return [len(value) if isinstance(value, list) else value for value in asdict(counts).values()]


def main() -> int:
    """Kill, print a table and what is wrong; 1 where a run was lost or ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=220, help="drawn at random, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="kinds")
    parser.add_argument("--no-sweep", dest="sweep", action="store_false", help="only what is drawn")
    parser.add_argument("--work", type=Path, help="where the runs go; by default a temporary folder")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    flags = parser.parse_args()
    if not hasattr(os, "fork") or not Path("/proc/self/fd").is_dir():
        parser.error("it forks its trainings and looks into /proc: Linux is needed")
    work = (flags.work or Path(tempfile.mkdtemp(prefix="kills-"))).absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork copies one thread alone
    os.environ["LIMBECK_CACHE"] = str(work / "downloads")
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from limbeck.cache import store
    from limbeck.data import dataset
    from limbeck.runs.summary import versions
    from limbeck.training import meter

    for name in ("limbeck.runs.run", "timm", "torchvision", "sklearn.datasets"):  # once, for all children
        importlib.import_module(name)
    torch.set_num_threads(1)
    meter.LOG_EVERY = 3  # a log that is ahead of its checkpoint
    store.SHARD_IMAGES = 100  # several shards a view
    flags.signals = importlib.util.find_spec("limbeck.training.stopping") is not None
    began = time.monotonic()
    base = prepare(work)
    total: dict[str, Counts] = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    print(f"{'kind':<14} " + " ".join(f"{name:>{max(5, len(name))}}" for name in HEADER), flush=True)
    # Without a thread of its own: a fork copies its locks, and not the thread that would open them.
    hidden = not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, auto_refresh=False, transient=True) as bar:
        for name in flags.only or KINDS:
            task = bar.add_task(name, total=None)

            def tick(count: int, task: Any = task) -> None:
                bar.advance(task, count)
                bar.refresh()

            in_memory = 0 if "workers" in KINDS[name] else 1 << 30  # bytes; else they are decoded by workers
            with mock.patch.object(dataset, "_allowed", return_value=in_memory):
                total[name] = kill_kind(name, base, work, flags, tick)
            bar.remove_task(task)
            print(line(name, row(total[name])), flush=True)
    sums = [sum(column) for column in zip(*map(row, total.values()), strict=True)]
    seconds = time.monotonic() - began
    print(line("all", sums) + f"\n{seconds:.0f} seconds")
    wrong = [text for counts in total.values() for text in (*counts.lost, *counts.different)]
    for text in wrong:
        print(text)
    if flags.out is not None:
        kinds = {name: dict(zip(HEADER, row(counts), strict=True)) for name, counts in total.items()}
        record = {"seed": flags.seed, "seconds": round(seconds), "versions": versions(), "kinds": kinds, "wrong": wrong}
        record["all"] = dict(zip(HEADER, sums, strict=True))
        flags.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if wrong:
        print(f"what they left is in {work}")
    elif flags.work is None:
        shutil.rmtree(work)
    return 1 if wrong else 0


def line(name: str, values: list[int]) -> str:
    cells = (f"{value:>{max(5, len(head))}}" for head, value in zip(HEADER, values, strict=True))
    return f"{name:<14} " + " ".join(cells)


if __name__ == "__main__":
    sys.exit(main())
