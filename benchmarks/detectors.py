"""What distilling a detector costs above training it: the recipes of COCO, built and stepped at their true shapes.

    python benchmarks/detectors.py --out docs/results/benchmark/detection.json

Of each pair of the full-scale recipes, with random weights and drawn images and boxes, one training step of: the
student alone (the floor); the student with a dense projector loss written by hand in torch (teacher's trunk, 1x1
convolution, batch norm of both sides, einsum for the diagonal); Limbeck's step with its terms in the direct form; and
in the moment form, which it chooses by itself. All four hold the same student and teacher. Rounds alternate between
them, so what else the machine does falls on all. Ratios are of the time that the process computed, which other load
disturbs less than the clock, and of each round by itself. Memory is the largest resident size during a step above
that before it, gradients and the optimizer's state being there already. Linux.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from limbeck.detection import DetectionBatch
from limbeck.detection.assembly import build_detection_distiller
from limbeck.detection.kind import random_boxes
from limbeck.detection.models import build_detector
from limbeck.recipes.published import named
from limbeck.terms import FeatureTerm, LossForm

PAIRS = ("coco-fasterrcnn-r50-mv2", "coco-fasterrcnn-r101-r18", "coco-fasterrcnn-r101-r50")
FLOOR, BY_HAND, DIRECT, MOMENTS = "student alone", "by hand", "Limbeck, direct", "Limbeck, moments"
CLASSES = 80  # of COCO

Step = Callable[[], Tensor]


class ByHand(nn.Module):
    """The step as one writes it for a pair of torchvision's detectors: a projector a level, log of the correlations."""

    def __init__(self, student: Any, teacher: Any, *, weight: float) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        count, widths = (
            len(student.levels),
            [(a.width, b.width) for a, b in zip(student.levels, teacher.levels, strict=True)],
        )
        self.projectors = nn.ModuleList([nn.Conv2d(a, b, 1, bias=False) for a, b in widths])
        self.student_norms = nn.ModuleList([nn.BatchNorm2d(b, affine=False) for _, b in widths])
        self.teacher_norms = nn.ModuleList([nn.BatchNorm2d(b, affine=False) for _, b in widths])
        self.weight = weight / count

    def forward(self, batch: DetectionBatch) -> Tensor:
        frame = (batch.images.shape[2], batch.images.shape[3])
        maps = self.student.backbone(batch.images)
        with torch.no_grad():
            theirs = self.teacher.backbone(batch.images)
        total = batch.images.new_zeros(())
        for place, (project, norm_s, norm_t) in enumerate(
            zip(self.projectors, self.student_norms, self.teacher_norms, strict=True)
        ):
            a, t = norm_s(project(maps[str(place)])).float(), norm_t(theirs[str(place)]).float()
            c = torch.einsum("nchw,nchw->c", a, t) / (a.numel() / a.shape[1])
            total = total + torch.log((c - 1).abs().pow(4.0).sum() + 1e-5)
        targets = [
            {"boxes": boxes, "labels": labels + 1} for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]
        with torch.autocast("cpu", enabled=False):
            images = ImageList(batch.images, [frame] * len(batch.images))
            wide = type(maps)((name, one.float()) for name, one in maps.items())
            proposals, first = self.student.rpn(images, wide, targets)
            _, second = self.student.roi_heads(wide, proposals, images.image_sizes, targets)
        return torch.stack([*first.values(), *second.values()]).sum() + self.weight * total


def steps(name: str, batch: DetectionBatch, precision: torch.dtype) -> dict[str, Step]:
    """The four steps of a recipe; each computes a loss, its gradients, and updates the student."""
    recipe = named(name)
    student, teacher = (
        build_detector(str(model), num_classes=CLASSES, frozen_norms=recipe.frozen_norms)
        for model in (recipe.student, recipe.teacher)
    )
    for model in (student, teacher):
        model.module.to(memory_format=torch.channels_last)
    by_hand = ByHand(student.module, teacher.module, weight=recipe.full_feature_weight)
    alone = build_detection_distiller(recipe.changed({"method": "alone", "teacher": None}), student, None)
    direct, moments = (build_detection_distiller(recipe, student, teacher) for _ in range(2))
    for distiller, form in ((direct, LossForm.DIRECT), (moments, LossForm.MOMENTS)):
        for term in distiller.terms.values():
            assert isinstance(term, FeatureTerm)
            term.form = form

    def step_of(module: nn.Module, loss_of: Callable[[Any], Tensor]) -> Step:
        own = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(own, lr=1e-5, momentum=0.9)

        def step() -> Tensor:
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                loss = loss_of(module(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            return loss.detach()

        return step

    found = {FLOOR: step_of(alone, lambda result: result.loss), BY_HAND: step_of(by_hand, lambda loss: loss)}
    return found | {
        name: step_of(one, lambda result: result.loss) for name, one in ((DIRECT, direct), (MOMENTS, moments))
    }


def resident(what: str) -> int:
    """Bytes: VmRSS is what the process holds now, VmHWM the most since it was reset."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(what)))


def measured(step: Step) -> tuple[float, float, int]:
    """Seconds computed, seconds by the clock, and bytes above what was held."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier steps have freed counts as free
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    clock, computed = time.perf_counter(), time.process_time()
    loss = step()
    took = time.process_time() - computed, time.perf_counter() - clock
    assert torch.isfinite(loss), "the loss is not finite"
    return *took, max(0, resident("VmHWM") - before)


def compare(name: str, batch: DetectionBatch, rounds: int, precision: torch.dtype) -> dict[str, Any]:
    """Every step of a recipe, in alternation; the first round warms up."""
    made = steps(name, batch, precision)
    seen: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in made}
    for number in range(rounds + 1):
        for kind, step in made.items():
            taken = measured(step)
            if number:
                seen[kind].append(taken)
    floor = [computed for computed, _, _ in seen[FLOOR]]
    return {
        kind: {
            "seconds": round(statistics.median(computed for computed, _, _ in values), 2),
            "clock": round(statistics.median(clock for _, clock, _ in values), 2),
            "ratio": quartiles([own[0] / base for own, base in zip(values, floor, strict=True)]),
            "mib": round(statistics.median(held for _, _, held in values) / 2**20),
        }
        for kind, values in seen.items()
    }


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median and upper one; of one value three times that."""
    if len(values) == 1:
        return [round(values[0], 3)] * 3
    return [round(value, 3) for value in statistics.quantiles(values, n=4, method="inclusive")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS, metavar="RECIPE")
    parser.add_argument("--images", type=int, default=2, help="of a step; the recipes have 8 over all devices")
    parser.add_argument("--frame", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batch = random_boxes(args.images, tuple(args.frame), CLASSES)
    precision = torch.bfloat16 if args.precision == "bf16" else torch.float32
    result: dict[str, Any] = {
        "images": args.images,
        "frame": list(args.frame),
        "rounds": args.rounds,
        "precision": args.precision,
        "threads": args.threads,
        "torch": torch.__version__,
        "load": [],
        "pairs": {},
    }
    console = Console(width=100 if not sys.stdout.isatty() else None)
    for name in args.pairs:
        found = compare(name, batch, args.rounds, precision)
        result["pairs"][name] = found
        result["load"].append(round(os.getloadavg()[1], 1))
        table = Table("step", "s", "times the student alone", "MiB above what is held", title=name)
        for kind, row in found.items():
            low, middle, high = row["ratio"]
            table.add_row(kind, f"{row['seconds']:.2f}", f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{row['mib']:,}")
        console.print(table)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
