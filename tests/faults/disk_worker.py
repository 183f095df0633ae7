"""Runs commands in children of its own, on disks that fail.

Reads a JSON object a line and writes one: ``words`` (a command of Limbeck's) with a fault gives ``code`` and ``said``,
what was on stderr; ``mount`` gives ``problem``, what was in the way. It has imported what a training needs, so that a
command takes a second, and it can be started in a mount namespace of its own.
"""

import contextlib
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from deaths import Points

from limbeck.cache import store
from limbeck.cli import main as limbeck
from limbeck.training import meter


def acting(fault: dict[str, Any]) -> Callable[[str, int], None]:
    """What happens at a point of writing: an error from there on, or a folder that is removed."""
    broken = False

    def act(area: str, number: int) -> None:
        nonlocal broken
        if area == fault.get("area") and number == fault["point"]:
            broken = True
            if "remove" in fault:
                fault_ = dict(fault)
                fault.clear()  # removing is writing, too
                shutil.rmtree(fault_["remove"])
        if broken and "errno" in fault:
            raise OSError(fault["errno"], os.strerror(fault["errno"]))

    return act


def run(words: list[str], folder: str, fault: dict[str, Any], out: Path) -> dict[str, Any]:
    """A command's exit code and what it said."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with (out / "said.txt").open("w", encoding="utf-8") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            if "bytes" in fault:  # of a file, at most
                resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))
            points = Points(Path(folder), acting(fault))
            code = limbeck(words)
            (out / "points.json").write_text(json.dumps(points.counts), encoding="utf-8")
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            with contextlib.suppress(ValueError):
                sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    points = out / "points.json"
    counts = json.loads(points.read_text(encoding="utf-8")) if code == 0 else {}
    return {"code": code, "said": (out / "said.txt").read_text(encoding="utf-8", errors="replace"), "points": counts}


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    meter.LOG_EVERY = 2
    store.SHARD_IMAGES = 60
    for name in ("limbeck.runs.run", "limbeck.report", "torch._dynamo"):
        importlib.import_module(name)  # once, for all children

    for line in sys.stdin:
        given = json.loads(line)
        if "mount" in given:
            done = subprocess.run(["mount", *given["mount"]], capture_output=True, text=True, check=False)
            found: dict[str, Any] = {"problem": done.stderr.strip() if done.returncode else ""}
        else:
            found = run(given["words"], given["folder"], given["fault"], out)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
