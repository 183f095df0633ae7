"""What a training of many processes on very many images would send, read and lose: tables for docs/scale.md.

    python benchmarks/scale.py step
    python benchmarks/scale.py stragglers
    python benchmarks/scale.py failures
    python benchmarks/scale.py storage
    python benchmarks/scale.py reading
    python benchmarks/scale.py memory
    python benchmarks/scale.py measure

All but `measure` is arithmetic and simulation (`benchmarks/traffic.py`): nothing here has run on that many processes.
`measure` takes some seconds and says what this machine decodes and reads on one thread; its numbers, rounded, are the
defaults of `--decoding`, `--scanning` and `--index-bytes`. The rates of devices and networks are flags, too;
docs/scale.md says where their defaults come from.
"""

import argparse
import dataclasses
import io
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import traffic
from PIL import Image
from rich.console import Console
from traffic import Failures, Network

from limbeck.cache import Cache, Contents
from limbeck.cache.contents import Spec
from limbeck.cache.store import EXTRA, SHARD_BYTES, SHARD_IMAGES, Card, Layout, Shard
from limbeck.data import decode
from limbeck.features.taps import Captured

NODE = 8  # GPUs of a node
GPUS = (8, 64, 1000)
BATCH = 256  # images that are read at once in the measurement
IMAGES = (10**6, 10**8, 10**9)
Table = list[list[str]]


def contents_of(kind: str) -> Contents:
    """Ways to keep less of the teacher, as the recipe's flags make them."""
    return {
        "logits and feature, exact": Contents(("feature",), exact=True),
        "logits and feature, half": Contents(("feature",)),
        "feature, half": Contents(("feature",), output=False),
        "top 20 and feature, half": Contents(("feature",), top_k=20),
        "top 20, half": Contents((), top_k=20),
    }[kind]


CONTENTS = (
    "logits and feature, exact",
    "logits and feature, half",
    "feature, half",
    "top 20 and feature, half",
    "top 20, half",
)


def specs_of(contents: Contents, *, classes: int, width: int) -> dict[str, Spec]:
    """What the cache keeps of an image and view, by the code that writes it."""
    captured = Captured(torch.zeros(1, classes), {tap: torch.zeros(1, width) for tap in contents.taps})
    return contents.specs(captured)


def row_bytes(contents: Contents, *, classes: int, width: int) -> int:
    """Bytes of that, with the image's number and the sketch of its pixels."""
    return sum(spec.row_bytes for spec in (specs_of(contents, classes=classes, width=width) | EXTRA).values())


def shard_rows(row: int, batch: int) -> int:
    """Images of a shard, by the rule of `limbeck.cache.plan_cache`; at least a batch."""
    return batch * max(1, min(SHARD_BYTES // (batch * row), SHARD_IMAGES // batch))


def words(value: float, unit: str = "B") -> str:
    """Three digits, with a prefix: 1.5 GB."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} P{unit}"


def show(head: Sequence[str], rows: Table) -> None:
    """A table in Markdown."""
    widths = [max(len(row[column]) for row in [list(head), *rows]) for column in range(len(head))]
    for row in [list(head), ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def network_of(count: int, flags: argparse.Namespace) -> Network:
    """Within a node its links; beyond, what a GPU has of the network."""
    rate, latency = (flags.link, flags.link_latency) if count <= NODE else (flags.network, flags.network_latency)
    return Network(count, flags.efficiency * rate * 1e9, latency * 1e-6)


def messages_of(term: str, count: int, flags: argparse.Namespace) -> list[traffic.Message]:
    """What the parts of a step send."""
    rows, d_s, d_t = flags.rows, flags.width, flags.teacher_width
    return {
        "gradients": traffic.gradients(flags.parameters + d_s * d_t),
        "moments": traffic.by_moments(d_s, d_t),
        "LogSum in blocks": traffic.in_blocks(d_s, d_t),
        "logits, by rows": traffic.logits(),
        "logits, gathered (DIST)": traffic.gathered_logits(rows, flags.classes, count),
        "norm in front of the projector": traffic.relation(rows, d_s, d_t, count),
    }[term]


LOGITS = ("logits, by rows", "logits, gathered (DIST)")
PARTS = ("gradients", "moments", "LogSum in blocks", *LOGITS, "norm in front of the projector")


def step(flags: argparse.Namespace) -> None:
    """Bytes and time of each part, beside the time that a GPU computes."""
    compute = flags.rows / flags.rate
    rows: Table = []
    for part in PARTS:
        for count in GPUS:
            messages, network = messages_of(part, count, flags), network_of(count, flags)
            seconds = traffic.seconds_of(messages, network)
            waits = traffic.waiting(messages, network, backward=compute * 2 / 3)
            size = sum(message.size for message in messages)
            rows.append([part, f"{count:,}", words(size), *(f"{1e3 * s:.3g} ms" for s in (seconds, waits))])
            rows[-1].append(f"{100 * waits / (compute + waits):.2g}%")
    print(f"A GPU computes {1e3 * compute:.0f} ms for its {flags.rows} images.\n")
    show(["part", "GPUs", "a process hands over", "takes", "the step waits", "of a step"], rows)


def stragglers(flags: argparse.Namespace) -> None:
    """Simulated steps (gradients and moments) whose processes do not take equally long."""
    compute = flags.rows / flags.rate
    rows: Table = []
    for count in GPUS:
        network = network_of(count, flags)
        messages = messages_of("moments", count, flags) + messages_of("gradients", count, flags)
        closed = compute + traffic.seconds_of(messages, network)
        cells = [f"{count:,}", f"{1e3 * closed:.1f} ms"]
        for spread in (0.0, 0.02, 0.1, 0.3):
            random = np.random.default_rng(flags.seed)
            found = traffic.simulate(
                messages, network, compute=compute, spread=spread, steps=flags.steps, random=random
            )
            cells.append(f"{1e3 * found:.1f} ms ({found / closed:.2f})")
        rows.append(cells)
    show(["GPUs", "closed form", "simulated, spread 0", "2%", "10%", "30%"], rows)


def failures(flags: argparse.Namespace) -> None:
    """Checkpoint intervals and what they cost."""
    rows: Table = []
    for count in GPUS:
        of = Failures(flags.between * 3600 / count, flags.checkpoint, flags.restart)
        best = of.daly()
        cells = [f"{count:,}", f"{of.between / 3600:,.0f} h", f"{of.young() / 60:.1f}", f"{best / 60:.1f}"]
        cells += [f"{100 * (of.stretch(interval) - 1):.2f}%" for interval in (best, 3600.0, 24 * 3600.0)]
        found = of.simulate(best, stretches=flags.stretches, random=np.random.default_rng(flags.seed))
        rows.append([*cells, f"{100 * (found - 1):.2f}%"])
    head = ["GPUs", "between failures", "Young, min", "Daly, min", "lost at Daly's", "every hour", "every day"]
    show([*head, "Daly's, simulated"], rows)


def storage(flags: argparse.Namespace) -> None:
    """Bytes of the cache."""
    rows: Table = []
    for kind in CONTENTS:
        row = row_bytes(contents_of(kind), classes=flags.classes, width=flags.teacher_width)
        rows.append([kind, f"{row:,}", *(words(flags.views * row * images) for images in IMAGES)])
        rows[-1].append(f"{-(-IMAGES[-1] * flags.views // shard_rows(row, flags.rows)):,}")
    rows.append([f"the images, {words(flags.image_bytes)} each", f"{flags.image_bytes:,}"])
    rows[-1] += [*(words(flags.image_bytes * images) for images in IMAGES), ""]
    head = ["kept", "bytes an image and view", *(f"10^{round(np.log10(images))} images" for images in IMAGES)]
    print(f"Views: {flags.views}.\n")
    show([*head, "shards of 10^9"], rows)


def reading(flags: argparse.Namespace) -> None:
    """What has to be read for GPUs that never wait, by image and by shard."""
    contents = contents_of(flags.contents)
    row = row_bytes(contents, classes=flags.classes, width=flags.teacher_width)
    places = 2 + len(specs_of(contents, classes=flags.classes, width=flags.teacher_width))  # the file, the rows, pixels
    rows: Table = []
    for count in GPUS:
        rate, nodes = count * flags.rate, -(-count // NODE)
        one = rate / nodes
        cells = [f"{count:,}", f"{rate:,.0f}", words(one * flags.image_bytes, "B/s"), words(one * row, "B/s")]
        cells += [f"{one * places:,.0f}", f"{rate / shard_rows(row, flags.rows):,.1f}"]
        cells += [f"{one / flags.decoding:,.0f}", f"{10**9 / rate / 60:,.0f} min"]
        rows.append(cells)
    print(f'The cache keeps "{flags.contents}", {row:,} bytes.\n')
    head = [
        "GPUs",
        "images/s",
        "files, a node",
        "cache, a node",
        "places/s, a node, by row",
        "requests/s, all, by shard",
    ]
    show([*head, "cores a node that decode", "epoch of 10^9"], rows)


def memory(flags: argparse.Namespace) -> None:
    """What each process keeps of every image before the first step, and how long it looks for it."""
    kept = {
        "names and places of the images (`shards:`)": flags.index_bytes,
        "order of an epoch, and the sort that makes it": 3 * 8,
        "where each image lies in the cache": 2 * 4,
    }
    rows = [[name, f"{size:,}", *(words(size * images) for images in IMAGES)] for name, size in kept.items()]
    total = sum(kept.values())
    rows.append(["together, a process", f"{total:,}", *(words(total * images) for images in IMAGES)])
    rows.append([f"together, a node of {NODE}", f"{NODE * total:,}"])
    rows[-1] += [words(NODE * total * images) for images in IMAGES]
    rows.append(["headers read, at the start", "", *(f"{images / flags.scanning / 60:,.1f} min" for images in IMAGES)])
    show(["each process", "bytes an image", *(f"10^{round(np.log10(images))} images" for images in IMAGES)], rows)


def per_second(call: Callable[[], int], seconds: float) -> float:
    """How many a call does in a second of processor time: what else the machine does counts less than on the clock."""
    call()
    done, began = 0, time.process_time()
    while (took := time.process_time() - began) < seconds:
        done += call()
    return done / took


def photo(random: np.random.Generator) -> bytes:
    """A JPEG of 500 x 375 with coarse and fine detail, about as large as one of ImageNet."""
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
    noise = random.normal(0, 14, (375, 500, 3))
    buffer = io.BytesIO()
    pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def filled(folder: Path, contents: Contents, *, classes: int, width: int, images: int, batch: int) -> Cache:
    """A cache of one view with random outputs, written by its own code."""
    random = torch.Generator().manual_seed(0)

    def outputs(count: int) -> Captured:
        features = {tap: torch.randn(count, width, generator=random) for tap in contents.taps}
        return Captured(torch.randn(count, classes, generator=random), features)

    row = row_bytes(contents, classes=classes, width=width)
    steps = images // batch
    layout = Layout(batch, 0, 1, steps, min(steps, shard_rows(row, batch) // batch))
    cache = Cache(folder, Card({}, layout, contents.specs(outputs(1)), images, classes, {}), contents)
    folder.mkdir()
    cache.begin()
    order = torch.randperm(images, generator=random)
    for number in range(layout.shards):
        at = layout.steps_of(number)
        index = order[at.start * batch : at.stop * batch]
        extra = {"index": index.int(), "pixels": torch.zeros(len(index))}
        cache.write(Shard(0, number), contents.pack(outputs(len(index))) | extra)
    return cache


def write_tar(path: Path, images: int) -> None:
    """A shard of tiny members: what is measured is what is kept and read of each, not its pixels."""
    with tarfile.open(path, "w") as tar:
        for number in range(images):
            for name, data in ((f"{number:09d}.jpg", b"x" * 512), (f"{number:09d}.cls", b"7")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def batches_of(count: int, size: int) -> Iterator[torch.Tensor]:
    """Random batches without end."""
    random = torch.Generator().manual_seed(1)
    while True:
        yield torch.randint(count, (size,), generator=random)


def measure(flags: argparse.Namespace) -> None:
    """Rates of this machine, on one thread; the files were just written, so that they are in memory."""
    from limbeck.data import shards

    torch.set_num_threads(1)
    jpeg = photo(np.random.default_rng(0))
    contents, images = contents_of(flags.contents), flags.measured // BATCH * BATCH
    sizes = {"classes": flags.classes, "width": flags.teacher_width}

    def decoded() -> int:
        decode.square(decode.rgb(jpeg, needed=224), 224)
        return 1

    with tempfile.TemporaryDirectory() as place, Console(stderr=True).status("measuring"):
        cache = filled(Path(place) / "cache", contents, images=images, batch=BATCH, **sizes)
        view, batches = cache.view(0), batches_of(images, BATCH)

        def read() -> int:
            return len(cache.unpack(view.rows(next(batches))).output)

        write_tar(tar := Path(place) / "0.tar", images)

        def scanned() -> int:
            return len(shards.load(str(tar), labels=True)[0].names)

        tracemalloc.start()
        loaded = shards.load(str(tar), labels=True)
        kept, most = (size / len(loaded[0].names) for size in tracemalloc.get_traced_memory())
        tracemalloc.stop()
        decoding, rows, scan = (per_second(call, flags.seconds) for call in (decoded, read, scanned))
        row = row_bytes(contents, **sizes)
        found = [
            [f"decodes JPEG of 500 x 375 ({words(len(jpeg))}) to 224 pixels", f"{decoding:,.0f} images/s"],
            [f"reads rows of {row:,} bytes at random, shards: {cache.card.layout.shards}", f"{rows:,.0f} images/s"],
            ["the same, in bytes", words(rows * row, "B/s")],
            ["reads headers of tar members with a label", f"{scan:,.0f} images/s"],
            ["keeps of each image of a tar", f"{kept:.0f} B"],
            ["at most, while it reads them", f"{most:,.0f} B"],
        ]
    show(["a second of processor time, one thread", ""], found)


TABLES = {function.__name__: function for function in (step, stragglers, failures, storage, reading, memory, measure)}


@dataclasses.dataclass(frozen=True)
class Default:
    """A number that a table depends on, and what it is."""

    value: float
    help: str


DEFAULTS = {
    "rate": Default(2500.0, "images a second that a GPU trains, forward and backward"),
    "rows": Default(256, "images of a GPU in a step"),
    "parameters": Default(11_700_000, "of the student (ResNet18)"),
    "width": Default(512, "channels of the student's feature"),
    "teacher-width": Default(2048, "channels of the teacher's feature (ResNet50)"),
    "classes": Default(1000, "of the logits"),
    "link": Default(450.0, "GB/s of a GPU within a node, one way"),
    "network": Default(50.0, "GB/s of a GPU between nodes, one way"),
    "link-latency": Default(3.0, "microseconds of a hop within a node"),
    "network-latency": Default(10.0, "microseconds of a hop between nodes"),
    "efficiency": Default(0.7, "share of the rates that collectives reach"),
    "steps": Default(30, "that are simulated"),
    "between": Default(50_700.0, "hours of one GPU between failures"),
    "checkpoint": Default(5.0, "seconds of a checkpoint"),
    "restart": Default(300.0, "seconds from a failure to the next step"),
    "stretches": Default(20_000, "checkpoint intervals that are simulated"),
    "views": Default(1, "augmented views that the cache keeps"),
    "image-bytes": Default(110_000, "bytes of an image file"),
    "decoding": Default(250.0, "images a second that a core decodes"),
    "index-bytes": Default(480, "bytes that a process keeps of an image of a shard"),
    "scanning": Default(12_000.0, "images a second whose headers are read"),
    "measured": Default(4096, "images of the measurement"),
    "seconds": Default(2.0, "that each rate is measured"),
    "seed": Default(0, "of the simulations"),
}


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--contents", choices=CONTENTS, default="top 20 and feature, half")
    for name, default in DEFAULTS.items():
        kind = int if isinstance(default.value, int) else float
        parser.add_argument(f"--{name}", type=kind, default=default.value, help=f"{default.help} (%(default)s)")
    flags = parser.parse_args(words)
    for name in DEFAULTS:
        value, least = getattr(flags, name.replace("-", "_")), {"seed": 0, "measured": BATCH}.get(name)
        if value <= 0 if least is None else value < least:
            wanted = "more than 0" if least is None else f"at least {least}"
            parser.error(f"--{name} is {value}; expected {wanted}")
    return flags


def main(words: Sequence[str] | None = None) -> None:
    """Print one table."""
    flags = parsed(words)
    TABLES[flags.table](flags)


if __name__ == "__main__":
    main()
