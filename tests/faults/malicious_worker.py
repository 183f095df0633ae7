"""Reads what others made, each by the function that Limbeck reads it with, and says what came of it.

Reads lines ``kind path`` and writes a line of JSON for each: the error's kind and text, the seconds, and by how
much the process's memory grew at most meanwhile.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from limbeck.assembly.build import load_student
from limbeck.cache.shards import open_shard
from limbeck.data import arrays, decode, folders, shards
from limbeck.models.weights import fit_weights, read_weights
from limbeck.recipes import Recipe
from limbeck.report.record import read_run
from limbeck.storage.files import load_weights


def fit(path: Path) -> None:
    fit_weights(nn.Linear(2, 2), read_weights(path), heads=(), name="linear", allow_new_head=False)


def image(path: Path) -> None:
    decode.square(decode.rgb(folders.FileReader(str(path.parent), (path.name,))(0)), 32)


READERS = {
    "weights": read_weights,
    "fit": fit,
    "checkpoint": load_weights,
    "shard": open_shard,
    "image": image,
    "tar": lambda path: shards.load(str(path), labels=True),
    "recipe": Recipe.from_yaml,
    "idx": lambda path: arrays._idx(path, 3),
    "run": lambda path: repr(read_run(path)),
    "student": load_student,
}


def peak() -> int:
    """The most memory since it was last reset, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        kind, name = line.rstrip("\n").split(" ", 1)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before = peak()
        error, text, started = "", "", time.perf_counter()
        try:
            READERS[kind](Path(name))
        except Exception as fault:
            error, text = type(fault).__name__, str(fault)
        seconds = time.perf_counter() - started
        print(json.dumps({"error": error, "text": text, "seconds": seconds, "memory": peak() - before}), flush=True)


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
