"""Train for hours in one process, and see whether memory, open files, threads or processes grow.

Two forms: the demo over and over, with a run each from a teacher cache and with worker processes that decode
images; and (`--long`) one training that is never done, a state of which grows with its steps, if any does::

    python benchmarks/soak.py --minutes 120 --out soak
    python benchmarks/soak.py --minutes 120 --long --out soak-long
    python benchmarks/soak.py --read soak

`samples.jsonl` has a line for each sample, `commands.txt` what the commands said, `soak.json` the slopes, which are
Theil and Sen's (medians, which an outlier does not move) behind the warm-up. What the C library holds is told apart:
"in use" are bytes that were asked for and not given back, where a leak would be; "free" are those kept for later.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

UNITS = {
    "resident": "MiB",
    "anonymous": "MiB",
    "in_use": "MiB",
    "free": "MiB",
    "handles": "",
    "threads": "",
    "processes": "",
}
GROWTH = 0.01  # of the median, from the warm-up to the end: more than that is not flat
EVERY = 15.0  # seconds between two samples of a long training
TEACHER = ("--teacher", "small/cnn-32", "--student", "small/cnn-4")
SHORT = (*TEACHER, "--epochs", "3", "--batch-size", "64", "--device", "cpu")


class _Allocator(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns: bytes, over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def allocator() -> dict[str, float]:
    """MiB in use and kept free; nothing where the C library does not tell."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return {}
    ask.restype = _Allocator
    found = ask()
    return {"in_use": (found.uordblks + found.hblkhd) / 2**20, "free": found.fordblks / 2**20}


def sample() -> dict[str, float]:
    """What this process takes now."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    lines = dict(line.split(":", 1) for line in status)
    children = sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))
    return {
        "resident": int(lines["VmRSS"].split()[0]) / 1024,
        "anonymous": int(lines["RssAnon"].split()[0]) / 1024,
        "handles": len(os.listdir("/proc/self/fd")) - 1,  # without the one that lists them
        "threads": int(lines["Threads"]),
        "processes": children,
        **allocator(),
    }


class Samples:
    """Collects samples of so many minutes, and shows how far it is."""

    def __init__(self, out: Path, minutes: float, bar: Progress) -> None:
        self.file = (out / "samples.jsonl").open("a", encoding="utf-8")
        self.began = time.monotonic()
        self.end = self.began + 60 * minutes
        self.bar = bar
        self.task = bar.add_task("soak", total=60 * minutes, now="")

    def take(self, **more: float) -> bool:
        """One more; whether there is time left."""
        now = time.monotonic()
        taken = {"seconds": round(now - self.began, 1), **more, **sample()}
        self.file.write(json.dumps(taken) + "\n")
        self.file.flush()
        words = f"{taken['resident']:.0f} MiB, {taken['handles']} handles, {taken['threads']} threads"
        self.bar.update(self.task, completed=now - self.began, now=words)
        return now < self.end


def write_images(folder: Path) -> None:
    """Digits as files, for a run whose images are decoded by worker processes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    for number in range(320):
        path = folder / ("train" if number < 256 else "val") / str(digits.target[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(digits.images[number] * 15)).save(path)


@contextlib.contextmanager
def from_disk() -> Iterator[None]:
    """As if no image fitted into memory."""
    from limbeck.data import dataset

    allowed, dataset._allowed = dataset._allowed, lambda: 0
    try:
        yield
    finally:
        dataset._allowed = allowed


def one_round(work: Path, images: Path, command: Callable[..., None]) -> None:
    """The demo with one seed, a run from a cache, and one with two worker processes."""
    command("compare", "--recipe", "digits", "--seeds", "1", "--device", "cpu", "--out", str(work / "demo"))
    weights = next((work / "demo" / "teachers").iterdir())
    cached = ("--cache-views", "2", "--ema", "0.9", "--accumulate", "2", "--teacher-weights", str(weights))
    command("distill", "--data", "digits", *SHORT, *cached, "--out", str(work / "cached"))
    with from_disk():
        given = ("--size", "8", "--workers", "2", "--teacher-weights", str(weights), "--augmentation", "none")
        command("distill", "--data", str(images), *SHORT, *given, "--out", str(work / "disk"))
    shutil.rmtree(work)


def soak(out: Path, minutes: float, *, long: bool) -> None:
    from limbeck.cli import main as limbeck

    work, images = out / "work", out / "images"
    shutil.rmtree(work, ignore_errors=True)
    write_images(images)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    with (
        (out / "commands.txt").open("w", encoding="utf-8") as said,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        samples = Samples(out, minutes, bar)

        def command(*words: str) -> None:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = limbeck(words)
            if code != 0:
                raise SystemExit(f"limbeck {' '.join(words)} ended with {code}; see {said.name}")

        if not long:
            rounds = 0
            while samples.take(rounds=rounds):
                one_round(work, images, command)
                rounds += 1
                gc.collect()
            return

        def look(signum: int, frame: FrameType | None) -> None:
            if not samples.take():
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = limbeck(["distill", "--recipe", "digits", "--epochs", "1000000", "--out", str(work)])
        if code != 130:
            raise SystemExit(f"the training ended with {code} before its time; see {said.name}")


def figures(out: Path, warmup: float) -> dict[str, Any]:
    """Slope and growth of each series behind the warm-up, and whether that is flat."""
    from scipy.stats import theilslopes

    taken = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    total = taken[-1]["seconds"]
    kept = [one for one in taken if one["seconds"] >= warmup * total]
    if len(kept) < 3:
        raise SystemExit(f"{len(kept)} samples behind the warm-up; at least 3 are needed")
    hours = [one["seconds"] / 3600 for one in kept]
    found: dict[str, Any] = {"minutes": round(total / 60, 1), "warmup": warmup, "samples": len(kept)}
    found["rounds"] = taken[-1].get("rounds")
    for name in (name for name in UNITS if name in kept[0]):
        values = [one[name] for one in kept]
        fit = theilslopes(values, hours)
        growth = float(fit.slope) * (hours[-1] - hours[0])
        found[name] = {
            "first": values[0],
            "median": statistics.median(values),
            "last": values[-1],
            "least": min(values),
            "most": max(values),
            "per_hour": [round(float(x), 3) for x in (fit.low_slope, fit.slope, fit.high_slope)],
            "growth": round(growth, 3),
            "flat": growth <= max(0.5, GROWTH * statistics.median(values)),
        }
    found["flat"] = all(found[name]["flat"] for name in UNITS if name in found and name != "free")
    return found


def show(found: dict[str, Any]) -> None:
    print(f"{found['minutes']} minutes, {found['samples']} samples behind the first {100 * found['warmup']:.0f}%")
    print(f"{'':<10} {'first':>8} {'median':>8} {'last':>8} {'most':>8} {'an hour (95%)':>26}")
    for name, unit in UNITS.items():
        if name not in found:
            continue
        row = found[name]
        numbers = " ".join(f"{row[key]:>8.{1 if unit else 0}f}" for key in ("first", "median", "last", "most"))
        low, slope, high = row["per_hour"]
        slopes = f"{slope:+.2f} ({low:+.2f} to {high:+.2f})"
        print(f"{name:<10} {numbers} {slopes:>26} {unit:<4}{'flat' if row['flat'] else 'GROWS'}")


def main() -> int:
    """Soak, or read what one has written; 1 where something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=Path("soak"), help="a folder without another soak")
    parser.add_argument("--long", action="store_true", help="one training in place of many")
    parser.add_argument("--warmup", type=float, default=0.25, help="share of the time that is not looked at")
    parser.add_argument("--read", type=Path, help="the folder of a soak that goes on or has ended")
    flags = parser.parse_args()
    if not Path("/proc/self/status").is_file():
        parser.error("this system has no /proc, where the numbers come from")
    out: Path = flags.read or flags.out
    if flags.read is None:
        if (out / "samples.jsonl").exists():
            parser.error(f"{out} holds a soak already; --read it, or choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        os.environ["LIMBECK_CACHE"] = str(out.absolute() / "cache")  # the user's own stays as it is
        soak(out, flags.minutes, long=flags.long)
    found = figures(out, flags.warmup)
    show(found)
    if flags.read is None:
        (out / "soak.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
