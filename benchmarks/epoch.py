"""One epoch from a folder of images to a trained step of the last batch: Limbeck, its cached teacher, and peers.

    python benchmarks/epoch.py --data photos/ --teacher timm/resnet34 --student timm/resnet18 --size 64 --images 10000

Each turn opens the folder anew and trains for one epoch; turns alternate, so what else the machine does falls on all.
Limbeck is timed as in a first run, which decodes the images; as in later ones, which find the decoded pixels; and with
a teacher's cache, whose making is timed by itself. The peers read the same images by ``ImageFolder``, PIL transforms
(random crop, flip) and a ``DataLoader`` with two workers, as their documentation has it. The ratio is to the same pair
"as usually written": a plain loop in float32 behind the same ``DataLoader``. Needs quiet cores.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", default="timm/resnet34")
    parser.add_argument("--student", default="timm/resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMBECK_CACHE"] = str(Path(folder) / "kept")  # a first run is one that finds nothing there
        result = run(args, Path(folder))
    print(table(result))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from limbeck.assembly.build import build_data, build_parts
    from limbeck.assembly.caching import cached_loader
    from limbeck.benchmark.timing import compare
    from limbeck.recipes.recipe import Recipe
    from limbeck.runs.run import device_of
    from limbeck.runs.summary import device_name

    recipe = Recipe(
        data=args.data,
        teacher=args.teacher,
        student=args.student,
        method="projector+kd",
        size=args.size,
        batch_size=args.batch_size,
        train_limit=args.images,
        epochs=1,
        lr=1e-3,
    )
    device = device_of(recipe)
    teacher, recipe = settled(recipe, device)
    names = {"as usually written": usual(recipe, teacher, device)}
    if not args.no_peers:
        names |= peer_epochs(recipe, teacher, device)
    kept = Path(os.environ["LIMBECK_CACHE"]) / "pixels"

    def first() -> None:
        shutil.rmtree(kept, ignore_errors=True)
        limbeck_epoch(recipe, teacher, device, None)

    cached = recipe.changed({"cache_views": 1})
    names |= {
        "limbeck, first run": first,
        "limbeck, later run": lambda: limbeck_epoch(recipe, teacher, device, None),
        "limbeck, later run, cached teacher": lambda: limbeck_epoch(cached, teacher, device, folder / "run"),
    }
    began = time.perf_counter()
    parts = build_parts(cached, build_data(cached), teacher)
    prepared(parts, cached, device)
    cached_loader(cached, parts, folder / "run", device, print)
    filling = time.perf_counter() - began
    seconds: dict[str, list[float]] = {name: [] for name in names}
    order = list(names)
    for index in range(args.rounds + 1):
        for name in order:
            began = time.perf_counter()
            names[name]()
            if index > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
        order = order[1:] + order[:1]
        print(f"round {index} of {args.rounds}", file=sys.stderr, flush=True)
    timings = compare(seconds, "as usually written")
    return {
        "teacher": args.teacher,
        "student": args.student,
        "size": args.size,
        "batch_size": args.batch_size,
        "images": args.images,
        "precision": recipe.precision,
        "memory_format": recipe.memory_format,
        "device": device_name(device),
        "torch": torch.__version__,
        "filling": round(filling, 1),
        "epochs": {name: asdict(timing) for name, timing in timings.items()},
    }


def settled(recipe: Any, device: torch.device) -> tuple[Any, Any]:
    """The teacher, and the recipe with the settings of this machine."""
    from limbeck import models
    from limbeck.assembly.arithmetic import settle
    from limbeck.assembly.build import build_data, build_parts
    from limbeck.runs.preflight import first_batch

    data = build_data(recipe)
    teacher = models.build(recipe.teacher, num_classes=len(data.classes), size=recipe.size)
    parts = build_parts(recipe, data, teacher)
    parts.distiller.to(device)
    found = settle(recipe, parts.distiller, first_batch(parts, device), device, steps=10**6)
    for line in found.lines:
        print(line, file=sys.stderr)
    arithmetic = found.arithmetic
    changes = {"precision": arithmetic.precision, "memory_format": arithmetic.memory_format, "compile": "off"}
    return teacher, recipe.changed(changes)


def prepared(parts: Any, recipe: Any, device: torch.device) -> None:
    from limbeck.training.precision import Arithmetic, apply_arithmetic

    parts.distiller.to(device)
    apply_arithmetic(parts.distiller, Arithmetic(recipe.precision, recipe.memory_format, False, ""), device)


def limbeck_epoch(recipe: Any, teacher: Any, device: torch.device, folder: Path | None) -> None:
    """What a run does for its first epoch, from opening the folder on."""
    from limbeck import fit
    from limbeck.assembly.build import build_data, build_optimizer, build_parts
    from limbeck.assembly.caching import cached_loader
    from limbeck.training.precision import PRECISIONS

    data = build_data(recipe)
    parts = build_parts(recipe, data, teacher)
    prepared(parts, recipe, device)
    if folder is None:
        loader: Any = data.train_loader(batch_size=recipe.batch_size, seed=recipe.seed).to(device)
    else:
        loader = cached_loader(recipe, parts, folder, device, lambda line: None)
        parts.distiller.release_teacher()
    optimizer = build_optimizer(recipe, parts.distiller)
    cpu = device.type == "cpu"
    fit(parts.distiller, loader, epochs=1, optimizer=optimizer, precision=PRECISIONS[recipe.precision], cpu=cpu)


def images_of(recipe: Any) -> DataLoader[Any]:
    """As many images behind what the documentation of the peers has."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    root = Path(recipe.data)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    steps = [
        transforms.Resize(recipe.size),
        transforms.CenterCrop(recipe.size),
        transforms.RandomCrop(recipe.size, padding=recipe.size // 8),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    folder = ImageFolder(str(root / "train" if (root / "train").is_dir() else root), transforms.Compose(steps))
    chosen = np.unique(np.linspace(0, len(folder) - 1, recipe.train_limit).astype(int)).tolist()
    return DataLoader(Subset(folder, chosen), batch_size=recipe.batch_size, shuffle=True, num_workers=2, drop_last=True)


def over(recipe: Any, step: Callable[[Tensor, Tensor], None], device: torch.device) -> Callable[[], None]:
    """An epoch of a step."""

    def epoch() -> None:
        for images, labels in images_of(recipe):
            step(images.to(device), labels.to(device))

    return epoch


def usual(recipe: Any, teacher: Any, device: torch.device) -> Callable[[], None]:
    import copy

    from limbeck import models
    from limbeck.benchmark.loops import by_hand

    student = models.build(recipe.student, num_classes=teacher.num_classes, size=recipe.size).module.to(device)
    frozen = copy.deepcopy(teacher.module).to(device).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    return over(recipe, by_hand(student, frozen, optimizer), device)


def peer_epochs(recipe: Any, teacher: Any, device: torch.device) -> dict[str, Callable[[], None]]:
    from limbeck import models
    from limbeck.benchmark.peers import peers

    student = models.build(recipe.student, num_classes=teacher.num_classes, size=recipe.size)
    student.module.to(device)
    own = replace(teacher, module=teacher.module.to(device))
    steps = peers(student, own, say=lambda line: print(line, file=sys.stderr))
    return {name: over(recipe, step, device) for name, step in steps.items()}


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':<36}{'seconds':>9}{'ratio':>8}  quartiles"]
    for name, timing in result["epochs"].items():
        low, high = timing["low"], timing["high"]
        lines.append(f"{name:<36}{timing['seconds']:>9.1f}{timing['ratio']:>8.3f}  {low:.3f} to {high:.3f}")
    lines.append(f"the teacher's cache was made in {result['filling']} s")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
