"""Feed damaged and random input to everything that reads a file or a flag, and count how it ends.

Every input ends in success or in one clear line (`UserError`; for one image `BadImageError`, which becomes one).
Anything else is a failure, printed with the reader and the seed that make it again. Run from the repository::

    python benchmarks/fuzz.py --inputs 20000
    python benchmarks/fuzz.py --only recipe --seed 1234 --inputs 1

Input i of a reader depends on the reader's name and on seed + i alone.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from limbeck.assembly.build import load_student
from limbeck.cache.shards import open_shard, verify_shard, write_shard
from limbeck.cache.store import _read as read_card
from limbeck.cli.flags import RecipeFlag, parse_recipe
from limbeck.cli.watch import Watched
from limbeck.data import arrays, decode, shards
from limbeck.errors import UserError
from limbeck.models.own import small_net
from limbeck.models.weights import fit_weights, read_weights
from limbeck.recipes import NAMED, Recipe, named
from limbeck.report.record import read_run
from limbeck.storage.files import load_weights, save_weights

KINDS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "PCX", "ICO", "DIB", "EPS",
         "SGI", "MSP", "XBM", "IM", "SPIDER", "DDS", "QOI", "ICNS", "BLP", "PDF", "PALM", "MPO")  # fmt: skip
WORDS = ("nan", "inf", "-inf", "1e999", "-1", "0", "1e-320", "true", "null", "~", "[]", "{}", "[1, 2]", "'", '"', "\\",
         "!!", "&a", "*a", "<<", "0x" + "f" * 5000, "1:2:3", "2024-99-99", "=", "\u202e", "\x00", "\ud800", '"\\ud800"',
         "a" * 3000, "../../x", "small/cnn-4", "digits", "os:system", "%s", "{0}", "9" * 400,
         "1_000", ".", "|", ">-", "- 1", "2", "4", "0.5", "64")  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A name, what writes an input for a random number generator, and what reads it."""

    name: str
    make: Callable[[random.Random, Path], object]
    read: Callable[[Any], object]
    share: float = 0.11


@dataclass
class Outcome:
    """How the inputs of a reader ended."""

    accepted: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list[str])


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The bytes cut, flipped, doubled, overwritten with extremes, or with a part of them elsewhere."""
    if not data:
        return rng.randbytes(8)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out)) if out else 0
        if rng.random() < 0.5:
            at = min(at, rng.randrange(64))  # headers decide more than pixels do
        match rng.randrange(7):
            case 0:
                del out[at:]
            case 1 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f"))
            case 3:
                out[at:at] = rng.randbytes(rng.randrange(1, 32))
            case 4:
                del out[at : at + rng.randrange(1, 32)]
            case 5:
                out[at:at] = out[: rng.randrange(1, 64)]
            case _:
                out[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 1 << 31, 1 << 40, 1 << 63)))
    return bytes(out)


def a_value(rng: random.Random, depth: int = 0) -> Any:
    """A random JSON value; texts and numbers at the edges among them."""
    kinds = [None, True, 0, -1, 3, 1 << 70, 1.5, float("nan"), float("inf"), "", "loss", rng.choice(WORDS[:20])]
    if depth < 3 and rng.random() < 0.4:
        return (
            [a_value(rng, depth + 1) for _ in range(rng.randrange(4))]
            if rng.random() < 0.5
            else {rng.choice(("step", "loss", "a", "parts", "")): a_value(rng, depth + 1) for _ in range(3)}
        )
    return rng.choice(kinds)


def swapped(rng: random.Random, value: Any) -> Any:
    """The JSON value with a random part of it missing or another."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: swapped(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], swapped(rng, value[at]), *value[at + 1 :]]
    return a_value(rng)


def recipe_text(rng: random.Random) -> str:
    fields = list(Recipe.model_fields)
    lines = named(rng.choice(list(NAMED))).to_yaml().splitlines()
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        line = f"{rng.choice(fields)}: {rng.choice(WORDS)}" if rng.random() < 0.9 else rng.choice(WORDS)
        lines.insert(rng.randrange(len(lines) + 1), line)
        if rng.random() < 0.5:
            name = line.partition(":")[0]
            lines = [other for other in lines if other is line or not other.startswith(f"{name}:")]
    text = "\n".join(lines)
    return damaged(rng, text.encode(errors="replace")).decode(errors="replace") if rng.random() < 0.1 else text


def make_recipe(rng: random.Random, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    data = recipe_text(rng).encode(errors="surrogatepass")
    path.write_bytes(damaged(rng, data) if rng.random() < 0.1 else data)
    return path


def read_recipe(path: Path) -> None:
    recipe = Recipe.from_yaml(path)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    recipe.to_yaml().encode()


def make_flags(rng: random.Random, folder: Path) -> list[str]:
    del folder
    words = ["--recipe", rng.choice(list(NAMED))] if rng.random() < 0.7 else []
    for _ in range(rng.randrange(1, 5)):
        name = rng.choice(list(Recipe.model_fields)).replace("_", "-")
        words.append(f"--{name}" if rng.random() < 0.9 else f"--{name[:-1]}")
        if rng.random() < 0.9:
            words.append(rng.choice(WORDS))
    return words


def read_flags(words: list[str]) -> None:
    # The one way out besides: --help, which prints and ends.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        values, _ = parse_recipe(
            words,
            RecipeFlag(),
            command="doctor",
            description="",
            fields={name: name for name in Recipe.model_fields},
            fallback={},
        )
        Recipe(**values)


def make_image(rng: random.Random, folder: Path) -> bytes:
    del folder
    mode = rng.choice(("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "LA", "F", "I", "YCbCr"))
    size = rng.randrange(1, 40), rng.randrange(1, 40)
    image = Image.new(mode, size)
    if mode in ("RGB", "L"):
        image.putdata(
            [tuple(rng.randbytes(3)) if mode == "RGB" else rng.randrange(256) for _ in range(size[0] * size[1])]
        )
    data = io.BytesIO()
    try:
        image.save(data, rng.choice(KINDS))
    except (OSError, ValueError, KeyError, TypeError, SystemError, struct.error):  # it cannot write that mode
        return rng.randbytes(rng.randrange(64))
    return data.getvalue() if rng.random() < 0.1 else damaged(rng, data.getvalue())


def read_image(data: bytes) -> None:
    with contextlib.suppress(decode.BadImageError):
        decode.shorter_side(data)
    pixels = decode.square(decode.rgb(data, needed=16), 8)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8


def make_weights(rng: random.Random, folder: Path) -> Path:
    state: dict[str, Any] = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    if rng.random() < 0.5:
        state[rng.choice(list(state))] = rng.choice(
            (torch.full((2,), torch.nan), torch.ones(2, 3, dtype=torch.int8), torch.zeros(()), torch.zeros(0),
             torch.ones(2, 3, dtype=torch.complex64), torch.ones(2, 3).to_sparse(), torch.empty(2, 3, device="meta"),
             torch.ones(2, 3, dtype=torch.float8_e4m3fn), torch.ones(3, 2).T, torch.ones(1).expand(2, 3), 3, "text")
        )  # fmt: skip
    if rng.random() < 0.4:
        state = {rng.choice(("model", "state_dict", "x", "")): state}
    path = folder / f"weights{rng.choice(('.safetensors', '.pth', '.pt', '.bin', '.tar', '.ckpt'))}"
    if path.suffix == ".safetensors":
        save_weights({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=rng.random() < 0.6)
    path.write_bytes(damaged(rng, path.read_bytes()) if rng.random() < 0.8 else path.read_bytes())
    return path


def read_weights_file(path: Path) -> None:
    if path.suffix == ".safetensors":
        with contextlib.suppress(UserError):
            load_weights(path)
    fit_weights(nn.Linear(3, 2), read_weights(path), heads=(), name="linear", allow_new_head=False)


def make_shard(rng: random.Random, folder: Path) -> Path:
    path = folder / "shard.safetensors"
    write_shard({"output": torch.arange(12.0).view(3, 4), "pixels": torch.zeros(3, dtype=torch.int64)}, path)
    path.write_bytes(damaged(rng, path.read_bytes()))
    return path


def read_shard(path: Path) -> None:
    open_shard(path)
    verify_shard(path)


CARD = {
    "format": 1,
    "identity": {"teacher": "a", "views": 2},
    "layout": {"batch_size": 4, "seed": 0, "parts": 1, "steps": 3, "batches": 1},
    "specs": {"output": {"shape": [4], "stored": "float16", "computed": "float32", "channels_last": False}},
    "images": 10,
    "classes": 4,
    "made_by": {"limbeck": "0"},
}


def make_json(name: str, value: Any) -> Callable[[random.Random, Path], Path]:
    def make(rng: random.Random, folder: Path) -> Path:
        path = folder / name
        text = json.dumps(swapped(rng, value) if rng.random() < 0.7 else value)
        path.write_bytes(damaged(rng, text.encode()) if rng.random() < 0.5 else text.encode())
        return path

    return make


RECORDS: list[dict[str, Any]] = [
    {"kind": "start", "recipe": "a", "images": 10, "counts": {"student": 5}, "versions": {"torch": "2"}, "device": "x"},
    {"kind": "preflight", "findings": [{"level": "warning", "name": "a", "text": "b"}]},
    {"kind": "note", "text": "hello"},
    {"kind": "step", "step": 20, "epoch": 1, "loss": 1.5, "parts": {"task": 1.0}, "readings": {"a/b": 1.0}, "lr": 0.1,
     "images_per_second": 5.0},
    {"kind": "epoch", "step": 20, "epoch": 1, "train": {"loss": 1.5}, "val": {"top1": 0.5, "loss": 1.0}, "seconds": 2},
    {"kind": "probe", "step": 0, "terms": {"a": {"spectrum": {"stable_rank": 2.0}}}, "student": {"agreement": 0.5}},
    {"kind": "end", "summary": {"metric": "top1", "last": {"top1": 0.5}, "best": {"top1": 0.5, "epoch": 1}}},
]  # fmt: skip


def make_run(rng: random.Random, folder: Path) -> Path:
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    lines = [json.dumps(swapped(rng, record) if rng.random() < 0.4 else record) for record in RECORDS]
    text = "\n".join(lines) + "\n"
    (run / "log.jsonl").write_bytes(damaged(rng, text.encode()) if rng.random() < 0.4 else text.encode())
    (run / "recipe.yaml").write_bytes(recipe_text(rng).encode(errors="replace"))
    make_json("summary.json", RECORDS[-1]["summary"])(rng, run)
    make_json("samples.json", {"samples": []})(rng, run)
    return run


def read_run_folder(run: Path) -> None:
    read_run(run)
    watched = Watched(run)
    watched.look()
    if watched.problem:  # one run among many shows it in its row
        raise UserError(watched.problem)
    Console(file=io.StringIO()).print(watched.view(Console(file=io.StringIO())))


def make_student(rng: random.Random, folder: Path) -> Path:
    run = folder / "student"
    run.mkdir(exist_ok=True)
    (run / "summary.json").write_text("{}", encoding="utf-8")
    make_json("student.json", {"model": "small/cnn-2", "num_classes": 3, "input": {"size": 8}, "classes": ["a"]})(
        rng, run
    )
    save_weights(small_net("cnn-2", num_classes=3).module.state_dict(), run / "student.safetensors")
    return run


def make_tar(rng: random.Random, folder: Path) -> Path:
    import tarfile

    path = folder / "a.tar"
    with tarfile.open(
        path, "w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    ) as tar:
        for name in ("a.png", "a.cls", "b.jpg", "b.json"):
            data = rng.choice((b"0", b"1", b'{"label": 1}', b"[]", b"-1", b"true", b"1e9", rng.randbytes(5)))
            member = tarfile.TarInfo(name if rng.random() < 0.9 else "é" * rng.randrange(1, 30) + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path.write_bytes(damaged(rng, path.read_bytes()) if rng.random() < 0.8 else path.read_bytes())
    return path


def make_idx(rng: random.Random, folder: Path) -> Path:
    import gzip

    data = struct.pack(">4I", 0x803, 2, 3, 3) + bytes(18)
    path = folder / rng.choice(("images", "images.gz"))
    data = damaged(rng, data) if rng.random() < 0.6 else data
    data = gzip.compress(data) if path.suffix else data
    path.write_bytes(damaged(rng, data) if rng.random() < 0.6 else data)
    return path


READERS = (
    Reader("recipe", make_recipe, read_recipe),
    Reader("flags", make_flags, read_flags, 0.01),
    Reader("image", make_image, read_image),
    Reader("weights", make_weights, read_weights_file),
    Reader("cache-shard", make_shard, read_shard),
    Reader("cache-index", make_json("cache.json", CARD), read_card),
    Reader("run", make_run, read_run_folder),
    Reader("student", make_student, load_student),
    Reader("tar", make_tar, lambda path: shards.load(str(path), labels=True)),
    Reader("idx", make_idx, lambda path: arrays._idx(path, 3)),
)


def fuzz(reader: Reader, *, seed: int, inputs: int) -> Outcome:
    """So many inputs for a reader, in a folder of its own."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(action="ignore"):
        for number in range(seed, seed + inputs):
            given = reader.make(random.Random(f"{reader.name} {number}"), Path(name))
            try:
                reader.read(given)
                outcome.accepted += 1
            except (UserError, decode.BadImageError) as refusal:
                first, _, rest = str(refusal).partition("\n")
                if not first.strip() or (rest and "missing" not in first):  # the table of weights that do not fit
                    outcome.failures.append(f"{reader.name} {number}: not one clear line: {str(refusal)[:200]!r}")
                outcome.refused += 1
            except Exception as fault:
                where = traceback.extract_tb(fault.__traceback__)[-1]
                text = f"{type(fault).__name__}: {str(fault)[:120]} ({Path(where.filename).name}:{where.lineno})"
                outcome.failures.append(f"{reader.name} {number}: {text}")
    return outcome


def main() -> int:
    """Fuzz, print a table and the failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[reader.name for reader in READERS])
    flags = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [reader for reader in READERS if flags.only in (None, reader.name)]
    failures: list[str] = []
    print(f"{'reader':<12} {'inputs':>7} {'read':>7} {'refused':>8} {'failed':>7} {'seconds':>8}")
    for reader in chosen:
        began = time.perf_counter()
        each = flags.inputs if flags.only else round(reader.share * flags.inputs)
        found = fuzz(reader, seed=flags.seed, inputs=each)
        failures += found.failures
        seconds = time.perf_counter() - began
        row = f"{each:>7} {found.accepted:>7} {found.refused:>8} {len(found.failures):>7} {seconds:>8.1f}"
        print(f"{reader.name:<12} {row}", flush=True)
    kinds = Counter(line.partition(": ")[2] for line in failures)
    for kind, count in kinds.most_common(40):
        print(f"{count} x {next(line for line in failures if line.endswith(kind))}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
