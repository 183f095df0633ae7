"""What the probe costs, in steps of a training and as a share of a run, and which part of a look takes what.

    python benchmarks/probe.py --out benchmarks/results/probe.json

First the matrix work of a look by itself, for projectors up to the widest of the published pairs. Then, for each pair
of models, a step of the training loop (128 images by default, forward and backward of everything, and the optimizer)
and a look at as many images take turns, so what else the machine does falls on both. With a budget of 1% a look that is
worth k steps comes each 100 k steps. Last `fit` is run with the default budget, and the share that the looks took of it
is read off their records: of all, and without the first and the last, which no budget limits.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from limbeck import Distiller, FeatureTerm, LogitTerm, fit, losses, models, norms, projectors
from limbeck.assembly.features import pooled_shape
from limbeck.data.loader import Batch
from limbeck.diagnostics import (
    Probe,
    cka,
    column_normalized,
    fixed_point_distances,
    off_diagonal_energy,
    self_relation,
    singular_values,
)
from limbeck.diagnostics.probe_projectors import quick_singular_values
from limbeck.models import InputTransform
from limbeck.tasks import Classification
from limbeck.training import optim

PAIRS = [
    ("small/cnn-32", "small/cnn-8", 8, 10),
    ("cifar/resnet56", "cifar/resnet20", 32, 100),
    ("timm/resnet34", "timm/resnet18", 64, 100),
]
WIDTHS = [(64, 128), (512, 512), (512, 2048), (2048, 3024)]


def batch(count: int, size: int, classes: int) -> Batch:
    return Batch(torch.rand(count, 3, size, size), torch.randint(classes, (count,)), torch.arange(count))


def distiller(teacher: str, student: str, size: int, classes: int) -> Distiller:
    t, s = (models.build(name, num_classes=classes, size=size) for name in (teacher, student))
    d_s, d_t = (pooled_shape(m, m.penultimate, lambda z: z.flatten(1))[-1] for m in (s, t))
    feature = FeatureTerm(
        s.penultimate,
        t.penultimate,
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        correlation_loss=losses.log_correlation,
    )
    task = Classification(student_input=InputTransform(s.input), teacher_input=InputTransform(t.input))
    return Distiller(s.module, t.module, task, terms={"feature": feature, "logit": LogitTerm()})


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def of_pair(pair: tuple[str, str, int, int], images: int, rounds: int) -> dict[str, object]:
    """Seconds of a step and of a look, by turns."""
    subject = distiller(*pair).train()
    optimizer = optim.sgd(subject)
    seen, held_back = batch(images, *pair[2:]), batch(images, *pair[2:])

    def step() -> None:
        subject(seen).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    made = time.perf_counter()
    probe = Probe(subject, held_back, every=1, optimizer=optimizer)
    made = time.perf_counter() - made
    steps, looks = [], []
    for index in range(rounds + 1):
        steps.append(timed(step))
        looks.append(timed(lambda index=index: probe.run(index, 0.0)))
    ratios = [look / step for look, step in zip(looks[1:], steps[1:], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "pair": f"{pair[0]} to {pair[1]}, {pair[2]} pixels",
        "step_ms": round(1e3 * statistics.median(steps[1:]), 1),
        "steps_a_look": round(middle, 2),
        "quartiles": [round(low, 2), round(high, 2)],
        "steps_when_made": round(made / statistics.median(steps[1:]), 2),
    }


class Loader:
    """The same batch again and again."""

    def __init__(self, one: Batch, count: int) -> None:
        self.one, self.count = one, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return (self.one for _ in range(self.count))

    def set_epoch(self, epoch: int) -> None:
        del epoch

    def shard(self, rank: int, world_size: int) -> "Loader":
        del rank, world_size
        return self


def of_run(pair: tuple[str, str, int, int], images: int, steps: int) -> dict[str, object]:
    """What looks take of a run under the default budget."""
    subject = distiller(*pair)
    optimizer = optim.sgd(subject, lr=0.01)
    probe = Probe(subject, batch(images, *pair[2:]), optimizer=optimizer)
    started = time.perf_counter()
    fit(subject, Loader(batch(images, *pair[2:]), steps), epochs=1, optimizer=optimizer, probe=probe, cpu=True)
    whole = time.perf_counter() - started
    later = sum(record["seconds"] for record in probe.records[1:-1])
    return {
        "pair": f"{pair[0]} to {pair[1]}, {pair[2]} pixels",
        "steps": steps,
        "looks": len(probe.records),
        "percent": round(100 * probe.seconds / whole, 2),
        "percent_without_first_and_last": round(100 * later / whole, 2),
    }


def of_widths(d_s: int, d_t: int, images: int) -> dict[str, object]:
    """Milliseconds of the matrix work, each the least of three."""
    w = nn.Linear(d_s, d_t, bias=False).weight.detach().T
    x, y = torch.randn(images, d_s), torch.randn(images, d_t)
    c_s, c_st = (self_relation(x.double()) / images, (x.double().T @ y.double()) / images)
    work: dict[str, Callable[[], object]] = {
        "spectra, raw and normalized": lambda: [quick_singular_values(each) for each in (w, column_normalized(w))],
        "the same by SVD": lambda: [singular_values(each) for each in (w, column_normalized(w))],
        "fixed points": lambda: fixed_point_distances(w, c_s, c_st, ridge=0.0),
        "redundancy": lambda: off_diagonal_energy(y),
        "cka": lambda: cka(x, y),
    }
    times = {name: round(1e3 * min(timed(each) for _ in range(3)), 1) for name, each in work.items()}
    return {"d_s": d_s, "d_t": d_t, **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="the first so many")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", type=int, default=600, help="of the run under the default budget")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    console = Console(width=100 if not sys.stdout.isatty() else None)
    chosen = PAIRS[: args.pairs]

    def shown(title: str, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
        return rows

    widths = shown("Matrix work, ms", [of_widths(d_s, d_t, args.images) for d_s, d_t in WIDTHS])
    pairs = shown("A look", [of_pair(pair, args.images, args.rounds) for pair in chosen])
    runs = shown("A run", [of_run(pair, args.images, args.steps) for pair in chosen[:2]])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        device = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        found = {"device": device, "looks": pairs, "runs": runs, "widths": widths}
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
