"""Run commands with ``--compile on`` in one process, one after the other, as one line of JSON each: words, exit code.

Arguments: the compiler's backend, the names of rows of ``COMMANDS``. In a process without the shape checks of the
tests, which the compiler cannot read.
"""

import json
import sys

import torch

from limbeck.cli import main
from limbeck.features import compiler

TINY = (
    "--recipe digits --train-limit 60 --batch-size 25 --probe off --device cpu --precision bf16 "
    "--memory-format channels_last --compile on"
)
SHORT = f"{TINY} --epochs 1 --teacher-epochs 1"
COMMANDS: dict[str, list[str]] = {
    # The teacher is trained first, compiled too; then what comes after a run.
    "distill": [
        f"distill {SHORT} --out run",
        f"distill {SHORT} --out run --resume",
        "evaluate run",
        "export run --format safetensors",
        "report run",
    ],
    "compare": [f"compare {SHORT} --student small/cnn-4 --seeds 1 --methods alone projector+kd --out table"],
    "rivals": [f"compare {SHORT} --student small/cnn-4 --seeds 1 --methods crd dkd sp at --out table"],
    "train": [f"train {TINY} --epochs 1 --model small/cnn-4 --out alone"],
    "sweep": [f"sweep {SHORT} --space lr=0.01,0.02 --sampler grid --seeds 0 --out sweep"],
    "cache": [f"cache {SHORT} --cache-views 1 --out kept", f"distill {SHORT} --cache-views 1 --out run"],
    "rerun": [f"distill {SHORT} --out run", "rerun run --out again"],
    "fp16": [f"distill {SHORT} --precision fp16 --out run".replace("--precision bf16 ", "")],
}


if __name__ == "__main__":
    if sys.argv[1] != "inductor":
        compiler.lowered = torch._dynamo.lookup_backend(sys.argv[1])
    for name in sys.argv[2:]:
        for words in COMMANDS[name]:
            print(json.dumps([words, main(words.split())]), file=sys.__stdout__, flush=True)
