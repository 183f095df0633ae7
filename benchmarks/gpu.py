"""Everything about a GPU that this project could not measure without one, in ten minutes: one JSON file and one page.

    make gpu                                            # or: python benchmarks/gpu.py --out gpu/
    make gpu ARGS="--data FOLDER --minutes 20"          # a real set of small images for the last part

The parts, each in a process of its own, so that one that fails or hangs does not end the others:

- tests: those that need a CUDA device.
- commands: a comparison of four methods as a GPU chooses by itself, compiled in bf16, and in fp16 under a scaler.
- dense: a dense term by each form, in time and memory, over rows and widths: where the forms change places.
- steps: a training step beside the quickest plain loop and the peers, in bf16, compiled where that pays.
- detector: a step of a detector at 800 pixels: the student alone, and distilled by each form.
- images: images a second of the loader on the device, and a step with and without it.
- training: a CIFAR-size pair for as many epochs as fit.

--rehearse runs all of it with tiny models on any device, a CPU as well.
"""

import argparse
import html
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Record = dict[str, Any]
REHEARSED_EPOCHS = 2
FORMS = (("correlation", "direct"), ("correlation", "moments"), ("elementwise", "direct"), ("elementwise", "chunked"))


@dataclass(frozen=True)
class Sizes:
    """How much each part does."""

    pairs: tuple[tuple[str, str, int, int], ...]  # teacher, student, pixels, batch
    rows: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]  # channels of student and teacher
    rounds: int
    detector: tuple[str, str, int, int]  # teacher, student, pixels, batch
    images: int
    side: int
    compared: tuple[str, ...]  # flags
    small: tuple[str, ...]  # teacher, student, flags


FULL = Sizes(
    pairs=(
        ("timm/resnet34", "timm/resnet18", 224, 256),
        ("timm/resnet50", "timm/mobilenetv2_100", 224, 256),
        ("timm/regnety_160", "timm/deit_tiny_patch16_224", 224, 256),
    ),
    rows=(1024, 4096, 12_544, 50_176, 200_704),
    widths=((192, 768), (384, 3024), (512, 2048)),
    rounds=5,
    detector=("fasterrcnn/timm/resnet101", "fasterrcnn/timm/resnet50", 800, 8),
    images=4096,
    side=224,
    compared=("--epochs", "10", "--seeds", "1"),
    small=("cifar/resnet56", "cifar/resnet20", "--size", "32", "--batch-size", "256"),
)
REHEARSAL = Sizes(
    pairs=(("small/cnn-4", "small/cnn-2", 8, 4),),
    rows=(64,),
    widths=((8, 16),),
    rounds=1,
    detector=("fcos-32/cifar/resnet20", "fcos-32/cifar/resnet8", 64, 1),
    images=48,
    side=32,
    compared=("--epochs", "1", "--teacher-epochs", "1", "--seeds", "1", "--train-limit", "60"),
    small=("small/cnn-4", "small/cnn-2", "--size", "8", "--batch-size", "32"),
)


def tests(sizes: Sizes, device: torch.device, left: float, data: str | None) -> Record:
    """The tests that need a CUDA device."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    words += ["tests/norms"] if sizes is REHEARSAL else []
    done = subprocess.run(words, capture_output=True, text=True, timeout=left, check=False)
    lines = done.stdout.strip().splitlines()
    return {"exit code": done.returncode, "said": [line for line in lines if "FAILED" in line] + lines[-1:]}


def commands(sizes: Sizes, device: torch.device, left: float, data: str | None) -> Record:
    """Whole commands as a GPU runs them."""
    from limbeck.cli import main as limbeck
    from limbeck.recipes.recipe import Recipe

    ways = {
        "by itself": [],
        "compiled, bf16": ["--compile", "on", "--precision", "bf16"],
        "fp16": ["--precision", "fp16", "--compile", "off"],
    }
    methods = ["alone", "kd", "projector", "stages+kd"]
    if sizes is REHEARSAL:  # the compiler takes minutes for nothing
        ways["compiled, bf16"] = ["--compile", "off", "--precision", "bf16"]
        methods = methods[1:2]
    found: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, flags) in enumerate(ways.items()):
            out = Path(folder) / str(number)
            words = ["compare", "--recipe", "digits", "--methods", *methods, *sizes.compared, *flags, "--out", str(out)]
            began = time.perf_counter()
            code = limbeck(words)
            found[name] = {"exit code": code, "seconds": round(time.perf_counter() - began, 1)}
            for path in sorted(out.glob("*/summary.json")):
                top1 = json.loads(path.read_text(encoding="utf-8"))["last"]["top1"]
                recipe = Recipe.from_yaml(path.parent / "recipe.yaml")
                found[name][path.parent.name] = f"{top1:.1%}, {recipe.precision}, compile {recipe.compile}"
    return found


def dense(sizes: Sizes, device: torch.device, left: float, data: str | None) -> list[Record]:
    """Milliseconds and MiB of a dense term, forward and backward, by each form."""
    from limbeck import FeatureTerm, losses, norms, projectors
    from limbeck.features.taps import Captured
    from limbeck.terms import LossForm

    found: list[Record] = []
    for d_s, d_t in sizes.widths:
        for rows in sizes.rows:
            record: Record = {"rows": rows, "student": d_s, "teacher": d_t}
            for loss, form in FORMS:
                by_rows = loss == "elementwise"
                term = FeatureTerm(
                    "z",
                    "z",
                    projector=projectors.linear(d_s, d_t),
                    student_norm=norms.BatchNorm(d_t),
                    teacher_norm=norms.BatchNorm(d_t),
                    loss=losses.log_sum if by_rows else None,
                    correlation_loss=None if by_rows else losses.log_correlation,
                    form=LossForm(form),
                ).to(device)
                x = torch.randn(rows, d_s, device=device, requires_grad=True)
                y = torch.randn(rows, d_t, device=device)

                def step(term: FeatureTerm = term, x: Tensor = x, y: Tensor = y) -> None:
                    x.grad = None
                    with torch.autocast(device.type, torch.bfloat16):
                        loss = term(Captured(x, {"z": x}), Captured(y, {"z": y}))
                    loss.backward()

                name = f"{loss}, {form}"
                with lacking_memory(record, name):
                    record[name], record[f"{name}, MiB"] = timed(step, device, sizes.rounds)
            found.append(record)
    return found


def steps(sizes: Sizes, device: torch.device, left: float, data: str | None) -> list[Record]:
    """`limbeck benchmark` of each pair, by the default method and by the pooled one."""
    from limbeck.benchmark import benchmark
    from limbeck.recipes.recipe import Recipe

    found: list[Record] = []
    for teacher, student, size, batch in sizes.pairs:
        for method in ("projector+kd", "stages+kd"):
            recipe = Recipe(
                data="random", teacher=teacher, student=student, size=size, batch_size=batch, method=method
            )  # fmt: skip
            result = benchmark(
                recipe,
                classes=1000,
                rounds=sizes.rounds,
                with_peers=method == "projector+kd",
                say=lambda line: print(line, file=sys.stderr),
                on_round=lambda done, of: None,
            )
            found.append(result.record())
    return found


def detector(sizes: Sizes, device: torch.device, left: float, data: str | None) -> Record:
    """Milliseconds and MiB of a detector's step: alone, and distilled by each form that its terms have."""
    from accelerate.utils import send_to_device

    from limbeck.assembly.tasks import kind_of
    from limbeck.recipes.recipe import Recipe
    from limbeck.terms import FeatureTerm, LossForm

    teacher, student, side, count = sizes.detector
    kind = kind_of("detection")
    recipe = Recipe(
        data="random", task="detection", teacher=teacher, student=student, method="projector", size=side, longest=side
    )
    classes = 80
    found: Record = {}
    for name in ("alone", "direct", "moments"):
        own = recipe.changed({"method": "alone", "teacher": None}) if name == "alone" else recipe
        built = kind.build_model(student, num_classes=classes, size=side)
        theirs = None if name == "alone" else kind.build_model(teacher, num_classes=classes, size=side)
        distiller = kind.build_distiller(own, built, theirs, None).to(device).train()
        for term in distiller.terms.values():
            if isinstance(term, FeatureTerm):
                term.form = LossForm(name)
        batch = send_to_device(kind.random_batch(recipe, built, count, side, classes), device)

        def step(distiller: Any = distiller, batch: Any = batch) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = distiller(batch).loss
            loss.backward()
            distiller.zero_grad(set_to_none=True)

        with lacking_memory(found, name):
            found[name], found[f"{name}, MiB"] = timed(step, device, sizes.rounds)
    return found


def images(sizes: Sizes, device: torch.device, left: float, data: str | None) -> Record:
    """Images a second of the loader, decoded and augmented; then a model's step with the loader and without."""
    from benchmarks.images import make

    from limbeck import models
    from limbeck.data import DataSpec, open_data

    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), sizes.images, sizes.side)
        found: Record = {}
        for augmentation in ("standard", "strong"):
            opened = open_data(DataSpec(source=str(made), size=sizes.side, augmentation=augmentation))
            loader = opened.train_loader(batch_size=min(256, sizes.images), seed=0).to(device)
            seconds = [seconds_of(lambda loader=loader: [None for _ in loader], device) for _ in range(2)]
            found[f"{augmentation}, images/s, first epoch"] = round(opened.train_count / seconds[0])
            found[f"{augmentation}, images/s, later"] = round(opened.train_count / seconds[1])
        name = sizes.pairs[0][1]
        student = models.build(name, num_classes=10, size=sizes.side).module.to(device)

        def train(batches: Iterator[Any]) -> None:
            for batch in batches:
                student(batch[0].float()).float().mean().backward()

        loader = (
            open_data(DataSpec(source=str(made), size=sizes.side))
            .train_loader(batch_size=min(256, sizes.images), seed=0)
            .to(device)
        )
        repeated = [next(iter(loader))] * len(loader)
        train(iter(repeated[:1]))
        alone = seconds_of(lambda: train(iter(repeated)), device)
        both = seconds_of(lambda: train(iter(loader)), device)
        found["an epoch with the loader, of one without"] = round(both / alone, 3)
    return found


def training(sizes: Sizes, device: torch.device, left: float, data: str | None) -> Record:
    """A CIFAR-size pair for as many epochs as fit; one epoch of the teacher first, to see what it takes."""
    from limbeck.cli import main as limbeck

    teacher, student, *flags = sizes.small
    began = time.perf_counter()
    found: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        common = ["--data", data or "digits", *flags]
        limbeck(["train", "--model", teacher, *common, "--epochs", "1", "--out", f"{folder}/first"])
        an_epoch = time.perf_counter() - began  # with the start, so it is too long rather than too short
        spare = left - an_epoch - 30
        epochs = str(REHEARSED_EPOCHS if sizes is REHEARSAL else max(1, min(200, int(spare / (6 * an_epoch)))))
        found["epochs"] = epochs
        for method in ("alone", "kd", "stages+kd"):
            out = Path(folder) / method
            words = ["train", "--model", student]
            if method != "alone":
                words = ["distill", "--teacher", teacher, "--student", student, "--method", method]
                words += ["--teacher-epochs", epochs]
            code = limbeck([*words, *common, "--epochs", epochs, "--out", str(out)])
            summary = json.loads((out / "summary.json").read_text(encoding="utf-8")) if code == 0 else {}
            found[method] = {"exit code": code, **{name: summary.get(name) for name in ("last", "seconds")}}
    return found


PARTS: dict[str, Callable[[Sizes, torch.device, float, str | None], Any]] = {
    each.__name__: each for each in (tests, commands, dense, steps, detector, images, training)
}


@contextmanager
def lacking_memory(record: Record, name: str) -> Iterator[None]:
    """Write down that something does not fit, in place of ending."""
    try:
        yield
    except torch.OutOfMemoryError:
        record[name] = "out of memory"


def timed(step: Callable[[], None], device: torch.device, rounds: int) -> tuple[float, float | None]:
    """Milliseconds (least of the rounds) and MiB above what was held; the memory of a GPU only."""
    step()
    held = 0
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    taken = min(seconds_of(step, device) for _ in range(rounds))
    memory = (torch.cuda.max_memory_allocated() - held) / 2**20 if device.type == "cuda" else None
    return round(1000 * taken, 3), None if memory is None else round(memory, 1)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device is done."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def page(record: Record) -> str:
    """The record for people: a heading and a table a part."""
    rows = [f"<h1>{html.escape(record['device'])}</h1><p>torch {record['torch']}, {record['date']}</p>"]
    for name, part in record["parts"].items():
        rows.append(f"<h2>{html.escape(name)}</h2><p>{part['seconds']} s</p>{table(part['found'])}")
    style = "<style>body{font:15px sans-serif}td,th{padding:.2em .8em;text-align:left;vertical-align:top}</style>"
    return f"<!doctype html><meta charset=utf-8><title>GPU</title>{style}{''.join(rows)}\n"


def table(value: Any) -> str:
    """Nested records as nested tables."""
    if isinstance(value, list):
        return "".join(table(each) for each in value)
    if not isinstance(value, dict):
        return html.escape(str(value))
    cells = "".join(f"<tr><th>{html.escape(str(key))}</th><td>{table(each)}</td></tr>" for key, each in value.items())
    return f"<table>{cells}</table>"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for gpu.json and gpu.html (default: gpu)")
    parser.add_argument("--minutes", type=float, default=10, help="for all parts together (default: 10)")
    parser.add_argument("--data", help="small images for the last part (default: digits)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on any device")
    parser.add_argument("--worker", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.rehearse:
        print("error: no CUDA device here; --rehearse runs the parts in tiny sizes on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.worker is not None:
        found = PARTS[args.worker](REHEARSAL if args.rehearse else FULL, device, 60 * args.minutes, args.data)
        args.out.write_text(json.dumps(found), encoding="utf-8")
        return 0
    ends = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    record: Record = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, a rehearsal",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "parts": {},
    }
    for number, name in enumerate(args.parts):
        left = (ends - time.monotonic()) * (1 if name == "training" else 2 / (len(args.parts) - number + 1))
        began = time.monotonic()
        record["parts"][name] = {"found": in_a_process(name, args, left)}
        record["parts"][name]["seconds"] = round(time.monotonic() - began, 1)
        (args.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (args.out / "gpu.html").write_text(page(record), encoding="utf-8")
        print(f"{name}: {record['parts'][name]['seconds']} s", file=sys.stderr)
    failed = [name for name, part in record["parts"].items() if "failed" in part["found"]]
    print(f"{args.out / 'gpu.html'}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def in_a_process(name: str, args: argparse.Namespace, left: float) -> Any:
    """What a part found, or how it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--worker",
            name,
            "--out",
            str(out),
            "--minutes",
            str(left / 60),
        ]
        words += ["--rehearse"] if args.rehearse else []
        words += ["--data", args.data] if args.data else []
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=max(left, 1), check=False)
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {left:.0f} s"}
        if done.returncode or not out.is_file():
            return {"failed": (done.stderr or done.stdout)[-2000:]}
        return json.loads(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
