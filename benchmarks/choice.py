"""How often Limbeck chooses well how to compute, on a machine that is busy now and then.

First all candidates are timed by hand while the machine is left alone. Then the choice is made afresh, again and again,
beside a load that comes and goes. A choice counts as right if its time by hand is within 5% of the best.

    python benchmarks/choice.py --starts 20 --out choice.json
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck import models
from limbeck.assembly.arithmetic import name_of
from limbeck.assembly.classification import build_distiller
from limbeck.distiller import Distiller
from limbeck.recipes.recipe import Recipe
from limbeck.training import precision

CPU = torch.device("cpu")
PAIRS: dict[str, dict[str, Any]] = {
    "ResNet34 to ResNet18": {"teacher": "timm/resnet34", "student": "timm/resnet18", "size": 64, "batch_size": 64},
    "RegNetY to DeiT-Tiny": {
        "teacher": "timm/regnety_016",
        "student": "benchmarks.pairs:deit_tiny",
        "size": 64,
        "batch_size": 64,
    },
    "ResNet56 to ResNet20": {"teacher": "cifar/resnet56", "student": "cifar/resnet20", "size": 32, "batch_size": 128},
}
BURN = "while True: pass"
ENOUGH = 1.05
CLASSES = 100


@dataclass
class Load:
    """Processes that take cores, for some seconds, and leave them, by a seed."""

    cores: int
    seed: int

    @contextmanager
    def coming_and_going(self) -> Generator[None, None, None]:
        """Run the load beside the block."""
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _run(self, over: threading.Event) -> None:
        chance = random.Random(self.seed)
        while not over.wait(chance.uniform(0.2, 4.0)):
            burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(chance.randint(1, self.cores))]
            over.wait(chance.uniform(0.2, 4.0))
            for process in burning:
                process.kill()
                process.wait()


def subject(pair: dict[str, Any]) -> tuple[Distiller, Any]:
    """A distiller of random weights by the default method, and a batch of random images."""
    torch.manual_seed(0)
    recipe = Recipe(data="folder:none", **pair)
    student = models.build(recipe.student or "", num_classes=CLASSES, size=recipe.size)
    teacher = models.build(recipe.teacher or "", num_classes=CLASSES, size=recipe.size)
    rows, size = pair["batch_size"], pair["size"]
    batch = (torch.rand(rows, 3, size, size), torch.randint(CLASSES, (rows,)))
    return build_distiller(recipe, student, teacher, None).train(), batch


def tried(distiller: Distiller, batch: Any, starts: int, steps: int, cores: int) -> dict[str, Any]:
    """The candidates by hand, and what each start chose and cost."""
    choice = precision.candidates("auto", "auto", CPU)
    quiet = precision.measure(distiller, batch, choice, CPU, steps=sys.maxsize)
    assert quiet is not None
    best = min(quiet.seconds.values())
    made: list[dict[str, Any]] = []
    for seed in range(starts):
        with Load(cores, seed).coming_and_going():
            began = time.perf_counter()
            found = precision.measure(distiller, batch, choice, CPU, steps=steps)
            took = time.perf_counter() - began
        assert found is not None
        name = precision.fastest(found.seconds)
        made.append(
            {
                "chosen": name,
                "of the best": quiet.seconds[name] / best,
                "remembered": found.is_sure,
                "waited": found.waited,
                "seconds": took,
                "share of the run": took / (steps * quiet.seconds[name]),
            }
        )
        print(f"  start {seed}: {name}, {made[-1]['of the best']:.2f} of the best, {took:.1f} s", file=sys.stderr)
    return {
        "by hand": quiet.seconds,
        "by hand is sure": quiet.is_sure,
        "starts": made,
        "right": sum(start["of the best"] <= ENOUGH for start in made),
        "remembered and wrong": sum(start["remembered"] and start["of the best"] > ENOUGH for start in made),
        "median share of the run": statistics.median(start["share of the run"] for start in made),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20, help="starts of each pair (default: 20)")
    parser.add_argument(
        "--steps", type=int, default=5000, help="steps of the run that is about to start (default: 5000)"
    )
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS), help="default: all")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    args = parser.parse_args()
    cores = torch.get_num_threads()
    found: dict[str, Any] = {
        "device": name_of(CPU),
        "threads": cores,
        "torch": torch.__version__,
        "steps": args.steps,
        "bf16 in hardware": precision.bf16_is_native(CPU),
    }
    for name in args.pairs:
        print(name, file=sys.stderr)
        found[name] = tried(*subject(PAIRS[name]), args.starts, args.steps, cores)
        row = found[name]
        print(
            f"{name}: {row['right']} of {args.starts} within 5% of the best; "
            f"{row['remembered and wrong']} wrong ones remembered"
        )
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
