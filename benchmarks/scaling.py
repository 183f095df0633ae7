"""How the cost of distilling grows: with the batch, the teacher's width, the number of images, and of processes.

    python benchmarks/scaling.py --out scaling.json --page scaling.html

- batch: a full step (`limbeck.fit`) over its floor, and its milliseconds an image, at batches of 16 to 256.
- width: a pooled feature term alone, forward and backward, for teachers of 256 to 4,096 channels; the student has 512.
- rows: a dense term alone, in time and memory, for 3,136 to 100,352 rows (positions of a batch), by moments and direct.
- images: seconds of an epoch and the memory of the process with 1,000 to 16,000 images of 32 pixels.
- processes: bytes that each process sends for the term of one step, which do not depend on the batch; and the seconds
  of a step of the same global batch on one, two and four processes of this machine, which share its cores.

Needs quiet cores; Linux.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck import FeatureTerm, losses, norms, projectors
from limbeck.features.taps import Captured
from limbeck.terms import LossForm

BATCHES = (16, 32, 64, 128, 256)
WIDTHS = (256, 512, 1024, 2048, 4096)
ROWS = (3_136, 6_272, 12_544, 25_088, 50_176, 100_352)
IMAGES = (1_000, 2_000, 4_000, 8_000, 16_000)
PROCESSES = (1, 2, 4)
PARTS = ("batch", "width", "rows", "images", "processes")
D_S, D_T = 192, 768  # of the dense term: a tiny ViT's tokens and those of a base one
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="cifar/resnet20")
    parser.add_argument("--teacher", default="cifar/resnet56")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="measure these; the others stay in --out"
    )
    parser.add_argument("--worker", choices=("images", "process"), help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker == "images":
        print(json.dumps(epoch_of(args.count)))
        return
    if args.worker == "process":
        process_worker()
        return
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.out is not None and args.out.is_file() else {}
    result |= {
        "student": args.student,
        "teacher": args.teacher,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    measure = {
        "batch": lambda: by_batch(args.student, args.teacher),
        "width": by_width,
        "rows": by_rows,
        "images": by_images,
        "processes": by_processes,
    }
    for name in args.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        result[name] = measure[name]()
        print(json.dumps(result[name]), file=sys.stderr, flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.page is not None:
        page(result, args.page)


def by_batch(student: str, teacher: str) -> list[dict[str, float]]:
    from limbeck.benchmark import benchmark
    from limbeck.benchmark.run import FLOOR, FULL
    from limbeck.recipes.recipe import Recipe

    found: list[dict[str, float]] = []
    for size in BATCHES:
        recipe = Recipe(
            data="random", teacher=teacher, student=student, method="projector+kd", size=32, batch_size=size,
            precision="float32", memory_format="channels_last",
        )  # fmt: skip
        result = benchmark(
            recipe, classes=100, rounds=ROUNDS, with_peers=False, say=lambda _: None, on_round=lambda *_: None
        )
        full, floor = result.timings[FULL], result.timings[FLOOR]
        found.append(
            {
                "batch": size,
                "ratio": full.ratio,
                "low": full.low,
                "high": full.high,
                "ms an image": round(1000 * full.seconds / size, 4),
                "floor, ms an image": round(1000 * floor.seconds / size, 4),
            }
        )
    return found


def term(d_s: int, d_t: int, form: LossForm | None = None) -> FeatureTerm:
    return FeatureTerm(
        "z",
        "z",
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        correlation_loss=losses.log_correlation,
        form=form,
    )


def seconds_of(step: Callable[[], object]) -> float:
    step()
    times: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def stepping(subject: FeatureTerm, z_s: Tensor, z_t: Tensor) -> Callable[[], object]:
    def step() -> None:
        z_s.grad = None
        subject(Captured(z_s, {"z": z_s}), Captured(z_t, {"z": z_t})).backward()

    return step


def by_width() -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for width in WIDTHS:
        z_s, z_t = torch.randn(64, 512, requires_grad=True), torch.randn(64, width)
        found.append({"width": width, "ms": round(1000 * seconds_of(stepping(term(512, width), z_s, z_t)), 3)})
    return found


def by_rows() -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for rows in ROWS:
        record: dict[str, float] = {"rows": rows}
        for form in (LossForm.MOMENTS, LossForm.DIRECT):
            z_s, z_t = torch.randn(rows, D_S, requires_grad=True), torch.randn(rows, D_T)
            step = stepping(term(D_S, D_T, form), z_s, z_t)
            record[f"{form.value}, ms"] = round(1000 * seconds_of(step), 2)
            record[f"{form.value}, MB"] = round(memory_of(step), 1)
        found.append(record)
    return found


def memory_of(step: Callable[[], object]) -> float:
    """MB that a step takes at most above what the process has before it; its largest resident size is reset first."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1000


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) * 1.024 for line in lines if line.startswith(name))


def by_images() -> list[dict[str, float]]:
    command = [sys.executable, __file__, "--worker", "images", "--count"]
    return [
        json.loads(subprocess.run([*command, str(count)], capture_output=True, text=True, check=True).stdout)
        for count in IMAGES
    ]


def epoch_of(count: int) -> dict[str, float]:
    """An epoch of a small student alone on random images, in a process of its own."""
    import numpy as np

    from limbeck import Distiller, fit, models
    from limbeck.data import arrays
    from limbeck.data.dataset import Data
    from limbeck.data.spec import DataSpec
    from limbeck.tasks import Classification

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    part = arrays.part(pixels, random.integers(0, 10, count), "random")
    classes = tuple(str(label) for label in range(10))
    data = Data(DataSpec(source="random"), "random", classes, 32, part, part.take(np.arange(100)), True, 1 << 32, [])
    loader = data.train_loader(batch_size=100, seed=0)
    distiller = Distiller(models.build("small/cnn-8", num_classes=10, size=32).module, None, Classification())
    fit(distiller, loader, epochs=1, cpu=True)
    began = time.perf_counter()
    fit(distiller, loader, epochs=1, cpu=True)
    seconds = time.perf_counter() - began
    peak = resident("VmHWM") / 1000  # ru_maxrss would begin with what the process that started this one had
    return {"images": count, "seconds": round(seconds, 3), "pixels, MB": pixels.nbytes / 1e6, "peak, MB": round(peak)}


def by_processes() -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for count in PROCESSES:
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29517",
        }  # fmt: skip
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", "process"],
                env={**environment, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        texts = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError("a process failed")
        found.append(json.loads(texts[0]))
    return found


def process_worker() -> None:
    """The dense term of a share of 12,544 rows, and the bytes that its collectives carry."""
    import torch.distributed as dist

    sent = 0
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast"):
        original = getattr(dist, name)

        def counting(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            nonlocal sent
            tensor = next(arg for arg in reversed(args) if isinstance(arg, Tensor))
            sent += tensor.numel() * tensor.element_size()
            return _original(*args, **kwargs)

        setattr(dist, name, counting)
    torch.manual_seed(dist.get_rank())
    rows = 12_544 // world
    z_s, z_t = torch.randn(rows, D_S, requires_grad=True), torch.randn(rows, D_T)
    step = stepping(term(D_S, D_T, LossForm.MOMENTS), z_s, z_t)
    step()
    sent = 0
    step()
    bytes_a_step = sent
    dist.barrier()
    seconds = seconds_of(step)
    if dist.get_rank() == 0:
        direct = 4 * rows * (D_S + D_T) if world > 1 else 0
        print(
            json.dumps(
                {
                    "processes": world,
                    "ms": round(1000 * seconds, 2),
                    "MB given to collectives": round(bytes_a_step / 1e6, 3),
                    "MB if features were gathered": round(direct / 1e6, 3),
                }
            )
        )
    dist.destroy_process_group()


def page(result: dict[str, Any], path: Path) -> None:
    from limbeck.report.chart import Line
    from limbeck.report.draw import line_chart
    from limbeck.report.page import write_page
    from limbeck.report.words import Format

    def lines(part: str, x: str, *ys: str) -> list[Line]:
        styles = ("projector", "alone", "kd")
        return [
            Line(y, style, [(float(row[x]), float(row[y])) for row in result[part]])
            for y, style in zip(ys, styles, strict=False)
        ]

    drawn = [
        line_chart(
            "A step, by batch", lines("batch", "batch", "ms an image", "floor, ms an image"),
            x_title="images a batch", fmt=Format(digits=2),
            note="Milliseconds an image; the floor is the networks alone.",
        ),
        line_chart(
            "A pooled term, by the teacher's width", lines("width", "width", "ms"), x_title="channels of the teacher",
            fmt=Format(digits=2), note="Milliseconds, forward and backward, 64 images, 512 channels of the student.",
        ),
        line_chart(
            "A dense term, by rows: time", lines("rows", "rows", "moments, ms", "direct, ms"), x_title="rows",
            fmt=Format(digits=0), note="Milliseconds, forward and backward, 192 to 768 channels.",
        ),
        line_chart(
            "A dense term, by rows: memory", lines("rows", "rows", "moments, MB", "direct, MB"), x_title="rows",
            fmt=Format(digits=0), note="MB beyond the features and the gradient of the student's.",
        ),
        line_chart(
            "An epoch, by images", lines("images", "images", "seconds"), x_title="images", fmt=Format(digits=1),
            note="Seconds, a small student alone.",
        ),
        line_chart(
            "Memory of the process, by images", lines("images", "images", "peak, MB", "pixels, MB"), x_title="images",
            fmt=Format(digits=0), note="MB; the pixels are those kept in memory.",
        ),
    ]  # fmt: skip
    heads = list(result["processes"][0])
    rows = [[str(row[head]) for head in heads] for row in result["processes"]]
    caption = "The dense term of 12,544 rows over processes of one machine, which share its cores"
    view = {
        "kind": "benchmark",
        "layout": "two",
        "notes": [],
        "command": "",
        "title": "How the cost grows",
        "headline": f"{result['teacher']} to {result['student']}, {result['threads']} threads, torch {result['torch']}",
        "charts": [chart for chart in drawn if chart is not None],
        "tables": [(heads, rows, caption)],
    }
    write_page("charts.html.j2", path, view)


if __name__ == "__main__":
    main()
