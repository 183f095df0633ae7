"""The input pipeline alone: images a second of ours in one process, as a ratio to torchvision's with two workers.

    python benchmarks/images.py --data photos/ --size 64
    python benchmarks/images.py --size 224 --images 512

Theirs, as it is usually written: `ImageFolder`, PIL, RandomCrop with padding (up to 64 pixels) or RandomResizedCrop,
flip, ToTensor, Normalize, a `DataLoader` with two workers that are kept between the passes. Ours: the same steps on the
pixels that were decoded once, in this process, on one thread and without workers; normalized as well, which in training
the models do for themselves; with --augmentation strong also RandAugment, erasing and mixing, against the same theirs.
Without --data, JPEG files are made in a temporary folder. Both give float batches of every image in each round; rounds
alternate, so what else the machine does falls on both, and the first is not counted.

"ours / theirs" is the ratio of images a second. "by processor time" is the same ratio computed from the seconds that
the processors spent on each, theirs divided by two for its two workers: on busy cores it says what quiet ones would
give. The start-up (decoding, then the kept pixels of a second run) is printed with it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from limbeck.data import DataSpec, open_data
from limbeck.models import InputTransform
from limbeck.models.spec import InputSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TICK = 0.01  # seconds by which the processor time of a process advances
SMALL = 64  # up to here a padded crop, above a resized one, as Limbeck chooses


def main() -> None:
    """Time both, print a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train/ and val/; by default images are made")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--images", type=int, default=4096, help="how many are made, or used of --data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--augmentation", choices=["standard", "strong"], default="standard")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LIMBECK_CACHE"] = f"{scratch}/cache"
        data = args.data if args.data is not None else make(Path(scratch) / "images", args.images, args.size)
        print(json.dumps(compare(args, data)))


def compare(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    spec = DataSpec(source=str(data), size=args.size, augmentation=args.augmentation, train_limit=args.images)
    starts: list[float] = []
    for _ in range(2):
        started = time.perf_counter()
        opened = open_data(spec, memory=8 << 30)
        opened.train_loader(batch_size=args.batch_sizes[0], seed=0)
        starts.append(time.perf_counter() - started)
    theirs = their_set(data / "train", args)
    normalize = InputTransform(InputSpec(size=args.size, mean=MEAN, std=STD))
    cases = {}
    for batch_size in args.batch_sizes:
        ours = opened.train_loader(batch_size=batch_size, seed=0)
        loader = DataLoader(theirs, batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
        one = [timed(ours, normalize)]
        two = [timed(loader, lambda images: images)]
        for _ in range(args.rounds):
            one.append(timed(ours, normalize))
            two.append(timed(loader, lambda images: images))
        cases[str(batch_size)] = summary(one[1:], two[1:])
    return {
        "images": opened.train_count,
        "size": args.size,
        "augmentation": args.augmentation,
        "theirs": "standard, two workers",
        "batch size": cases,
        "start-up, s": {"first": round(starts[0], 4), "second": round(starts[1], 4)},
    }


def their_set(folder: Path, args: argparse.Namespace) -> Any:
    crop: list[Any] = (
        [transforms.Resize((args.size, args.size)), transforms.RandomCrop(args.size, padding=args.size // 8)]
        if args.size <= SMALL
        else [transforms.RandomResizedCrop(args.size, interpolation=transforms.InterpolationMode.BICUBIC)]
    )
    if args.size <= SMALL and Image.open(next(folder.rglob("*.*"))).size == (args.size, args.size):
        del crop[0]
    steps = [*crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    whole = ImageFolder(str(folder), transforms.Compose(steps))
    chosen = np.linspace(0, len(whole) - 1, min(args.images, len(whole))).astype(int)
    return torch.utils.data.Subset(whole, chosen.tolist())


def make(folder: Path, count: int, size: int) -> Path:
    """JPEG files of the size itself up to 64 pixels, else 500 x 375 as ImageNet's; smooth, with some noise."""
    width, height = (size, size) if size <= SMALL else (500, 375)
    random = np.random.default_rng(0)
    for part, number in (("train", count), ("val", 8)):
        for i in range(number):
            place = folder / part / f"class-{i % 4}"
            place.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
            noisy = np.clip(pixels + random.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(place / f"{i:05d}.jpg", quality=90)
    return folder


class Pass(NamedTuple):
    """Images a second of the clock, and of the processors."""

    speed: float
    processor: float


def timed(loader: Iterable[Any], prepare: Callable[[Tensor], Tensor]) -> Pass:
    """One pass over a loader; the time that its worker processes spend is counted."""
    before, started, images = processor_time(), time.perf_counter(), 0
    for batch in loader:
        images += len(prepare(batch[0]))
    spent = max(processor_time() - before, TICK)
    return Pass(images / (time.perf_counter() - started), images / spent)


def processor_time() -> float:
    """Seconds of this process and of the worker processes that are running."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children())]
    return sum(spent.user + spent.system for spent in times)


def summary(ours: list[Pass], theirs: list[Pass]) -> dict[str, Any]:
    ratios = [a.speed / b.speed for a, b in zip(ours, theirs, strict=True)]
    quiet = [a.processor / (2 * b.processor) for a, b in zip(ours, theirs, strict=True)]
    return {
        "ours / theirs": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
        "by processor time": round(statistics.median(quiet), 2),
        "its range": [round(min(quiet), 2), round(max(quiet), 2)],
        "ours, images/s": round(statistics.median(a.speed for a in ours)),
        "theirs, images/s": round(statistics.median(b.speed for b in theirs)),
        "ours, images/s of one processor": round(statistics.median(a.processor for a in ours)),
        "theirs, images/s of one processor": round(statistics.median(b.processor for b in theirs)),
    }


if __name__ == "__main__":
    main()
