"""Files made to run code, to leave their folder or to fill the memory: each ends in one clear line."""

import functools
import gzip
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from limbeck.cli import main

WORKER = Path(__file__).with_name("malicious_worker.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
MOST = 1 << 30


def header(entries: dict[str, Any] | str, body: bytes = b"", *, declared: int | None = None) -> bytes:
    """A safetensors file with a header of one's own."""
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(text) if declared is None else declared) + text + body


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


class Runs:
    """Unpickled, it would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def pickled(value: object) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(pickle.dumps(value))


def packed(path: Path, parts: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in parts.items():
            archive.writestr(f"archive/{name}", data)


def zip_bomb(path: Path) -> None:
    """A torch file of one float tensor whose numbers are packed, 1.2 GB from 5 MB."""
    plain = io.BytesIO()
    torch.save({"weight": torch.zeros(4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for part in source.infolist():
            with target.open(part.filename, "w", force_zip64=True) as file:
                if part.filename.endswith("data/0"):
                    for _ in range(1200):
                        file.write(bytes(1 << 20))
                else:
                    file.write(source.read(part))


def allocation(path: Path) -> None:
    """A pickle that asks for a terabyte with a call that torch allows."""
    code = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R."
    packed(path, {"data.pkl": code, "version": b"3\n"}, zipfile.ZIP_STORED)


def legacy_tar(path: Path, mark: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors", "../escaped"):
            data = pickle.dumps(Runs(mark))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    first = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + first + b"".join(chunk(*one) for one in chunks) + chunk(b"IEND", b"")


@functools.cache
def zeros(count: int) -> bytes:
    """That many MiB of zeros, packed."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(count)) + packer.flush()


def picture(path: Path, kind: str, size: tuple[int, int], mode: str = "L", **options: Any) -> None:
    Image.new(mode, size).save(path, kind, **options)


def huge_gif(path: Path) -> None:
    """Thousands of frames, each of which declares a large canvas; only the first is read."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 60000, 60000, 0) + b"\x02\x02\x44\x01\x00"
    screen = b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0x80, 0, 0)
    path.write_bytes(screen + bytes(6) + 10_000 * frame + b";")


def postscript(path: Path, mark: Path) -> None:
    path.write_text(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(%pipe%touch {mark}) (w) file\nshowpage\n",
        encoding="ascii",
    )


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))


def member(name: str, data: bytes = b"", **settings: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in settings.items():
        setattr(info, key, value)
    return info, data


def small_image() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    return data.getvalue()


def lying_tar(path: Path) -> None:
    """The image declares eight gigabytes, which do not follow."""
    info, _ = member("a.png")
    info.size = 8 << 30
    label = member("a.cls", b"1")
    path.write_bytes(label[0].tobuf(tarfile.GNU_FORMAT) + b"1".ljust(512, b"\0") + info.tobuf(tarfile.GNU_FORMAT))


def negative_tar(path: Path) -> None:
    info, _ = member("a.png")
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = b"\xff" * 11 + b"\x00"  # -256, in base 256
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    path.write_bytes(bytes(raw))


def sparse_tar(path: Path) -> None:
    """A label of a hundred gigabytes of holes."""
    raw = bytearray(member("a.cls", type=tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT))
    raw[386:398] = b"%011o\0" % 0
    raw[398:410] = b"%011o\0" % 0
    raw[483:495] = b"\x80" + (100 << 30).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    path.write_bytes(bytes(raw) + bytes(1024))


def laughs() -> str:
    lines = ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for old, new in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{new}: &{new} [{', '.join(9 * [f'*{old}'])}]")
    return "\n".join(lines)


def run_folder(path: Path, recipe: str, log: str) -> None:
    path.mkdir()
    (path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (path / "log.jsonl").write_text(log, encoding="utf-8")


def student_folder(path: Path, card: str) -> None:
    path.mkdir()
    (path / "summary.json").write_text("{}", encoding="utf-8")
    (path / "student.json").write_text(card, encoding="utf-8")
    (path / "student.safetensors").write_bytes(header({}))


def empties() -> bytes:
    """A header of 9 MB and 160,000 tensors without a number in them."""
    one = json.dumps(entry([0], 0, 0))
    return header("{" + ",".join(f'"{i}":{one}' for i in range(160_000)) + "}")


@dataclass(frozen=True)
class Case:
    """One malicious file.

    Attributes:
        kind: What it is given to.
        name: The file's name.
        make: Writes it, given its path.
        why: In the line that refuses it; empty where it is read without harm.
    """

    kind: str
    name: str
    make: Callable[[Path], object]
    why: str


def content(data: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode())


def cases(folder: Path) -> list[Case]:
    mark = folder / "RAN"
    ifd = (
        struct.pack("<2sHIH", b"II", 42, 8, 2)
        + struct.pack("<HHII", 256, 4, 1, 2**31)
        + struct.pack("<HHII", 257, 4, 1, 2**31)
    )
    tensors = [
        ("declares", header({}, declared=1 << 62), "header declares"),
        ("short", b"\x01\x02", "header declares"),
        ("long-header", header(" " * (9 << 20)), "at most"),
        ("empties", empties(), "at most"),
        ("no-json", header("{{{{"), "safetensors"),
        ("deep", header('{"a":' * 100_000), "safetensors"),
        ("overlap", header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "safetensors"),
        ("negative", header({"a": entry([2], -8, 0)}, bytes(8)), "safetensors"),
        ("backwards", header({"a": entry([2], 8, 0)}, bytes(8)), "safetensors"),
        ("hole", header({"a": entry([2], 8, 16)}, bytes(16)), "safetensors"),
        ("beyond", header({"a": entry([1 << 38], 0, 1 << 40)}, bytes(8)), "safetensors"),
        ("shape", header({"a": entry([1 << 40], 0, 8)}, bytes(8)), "safetensors"),
        ("overflow", header({"a": entry([1 << 62, 1 << 62], 0, 8)}, bytes(8)), "safetensors"),
        ("type", header({"a": entry([2], 0, 8, "OS.SYSTEM")}, bytes(8)), "safetensors"),
        ("pickle", pickle.dumps(Runs(mark)), "header declares"),
    ]
    found = [
        Case(kind, f"{kind}-{name}.safetensors", content(data), why if kind == "weights" else "")
        for name, data, why in tensors
        for kind in ("weights", "checkpoint", "shard")
    ]
    found = [Case(c.kind, c.name, c.make, c.why or "damaged|not a readable") for c in found]
    nan = {"weight": np.full((2, 2), np.nan, np.float32), "bias": np.zeros(2, np.float32)}
    whole = {"weight": np.ones((2, 2), np.int64), "bias": np.zeros(2, np.float32)}
    array, arrays = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Runs(mark)], object), allow_pickle=True)
    np.savez(arrays, a=np.array([Runs(mark)], object))
    found += [
        Case("fit", "nan.safetensors", lambda path: save_file(nan, path), "not finite"),
        Case("fit", "whole.safetensors", lambda path: save_file(whole, path), "int64, expected torch.float32"),
        Case("weights", "raw.bin", pickled(Runs(mark)), "without running code|not a readable"),
        Case("weights", "raw.pt", pickled({"state_dict": Runs(mark)}), "without running code|not a readable"),
        Case("weights", "zip.pth", lambda path: torch.save(Runs(mark), path), "without running code"),
        Case("weights", "nested.ckpt", lambda path: torch.save({"a": [Runs(mark)]}, path), "without running code"),
        Case("weights", "legacy.tar", lambda path: legacy_tar(path, mark), "not a readable|without running"),
        Case("weights", "bomb.pth", zip_bomb, "unpacks to"),
        Case("weights", "terabyte.pth", allocation, "."),
        Case("weights", "cut.pth", content(b"PK\x03\x04" + bytes(100)), "."),
        Case("weights", "objects.npy", content(array.getvalue()), "cannot be read without running code"),
        Case("weights", "objects.npz", content(arrays.getvalue()), "is not a readable torch file"),
        Case("image", "canvas.png", content(png(60000, 60000, (b"IDAT", zeros(1)))), "bomb"),
        Case("image", "warned.png", content(png(9000, 9500, (b"IDAT", zeros(1)))), "bomb"),
        Case("image", "largest.png", lambda p: p.write_bytes(png(7000, 7000, (b"IDAT", zeros(188)))), ""),
        Case("image", "text.png", lambda p: p.write_bytes(png(4, 4, (b"zTXt", b"a\0\0" + zeros(1200)))), "."),
        Case("image", "itext.png", lambda p: p.write_bytes(png(4, 4, (b"iTXt", b"a\0\1\0\0\0" + zeros(1200)))), "."),
        Case("image", "profile.png", lambda p: p.write_bytes(png(4, 4, (b"iCCP", b"a\0\0" + zeros(1200)))), "."),
        Case("image", "huge.tif", content(ifd), "."),
        Case("image", "frames.gif", huge_gif, "bomb"),
        Case("image", "gray.jpg", lambda path: picture(path, "JPEG", (9000, 9000)), "bomb"),
        Case("image", "progressive.jpg", lambda path: picture(path, "JPEG", (12000, 9000), progressive=True), "bomb"),
        Case("image", "sixteen.png", lambda path: picture(path, "PNG", (7000, 7000), "I;16", compress_level=1), ""),
        Case("image", "packed.tif", lambda path: picture(path, "TIFF", (9999, 9999), compression="tiff_lzw"), "bomb"),
        Case("image", "header.ppm", content(b"P6 99999999 99999999 255\n"), "bomb"),
        Case("image", "number.ppm", content(b"P6 " + b"9" * 100_000 + b" 1 255\n"), "."),
        Case("image", "program.jpg", lambda path: postscript(path, mark), "not an image"),
        Case("image", "zeros.jpg", lambda path: path.symlink_to("/dev/zero"), "not an ordinary file"),
        Case("image", "pipe.jpg", os.mkfifo, "not an ordinary file"),
        Case("image", "sparse.jpg", lambda path: os.truncate(_touched(path), 5 << 30), "are read"),
        Case("tar", "lying.tar", lying_tar, "does not hold|cannot be read"),
        Case("tar", "negative.tar", negative_tar, "does not hold|cannot be read"),
        Case("tar", "sparse.tar", sparse_tar, "does not hold|cannot be read"),
        Case("tar", "label.tar", lambda p: tar(p, member("a.png", small_image()), member("a.cls", b"9" * 18)), "label"),
        Case(
            "tar", "digits.tar", lambda p: tar(p, member("a.png", small_image()), member("a.cls", b"9" * 9999)), "lab"
        ),
        Case("tar", "deep.tar", lambda p: tar(p, member("a.png", small_image()), member("a.cls", b"[" * 99999)), "lab"),
        Case("tar", "gz.tar", content(gzip.compress(bytes(1 << 20))), "cannot be read"),
        Case("tar", "links.tar", lambda p: tar(p, _link("a.png", "/etc/passwd", tarfile.SYMTYPE)), "no images"),
        Case("tar", "hard.tar", lambda p: tar(p, _link("a.png", "../../etc/passwd", tarfile.LNKTYPE)), "no images"),
        Case(
            "tar",
            "traversal.tar",
            lambda p: tar(p, member("../../../ESCAPED.png", small_image()), member("../../../ESCAPED.cls", b"0")),
            "",
        ),
        Case("recipe", "tag.yaml", content(f"data: !!python/object/apply:os.system ['touch {mark}']"), "tags"),
        Case("recipe", "new.yaml", content("data: !!python/object/new:os.system [a]"), "tags"),
        Case("recipe", "laughs.yaml", content(laughs()), "anchors"),
        Case("recipe", "merge.yaml", content("a: &a {b: 1}\n<<: *a\n"), "anchors|flat"),
        Case("recipe", "deep.yaml", content("data: " + "[" * 100_000), "nested|not YAML"),
        Case("recipe", "keys.yaml", content("? " * 50_000), "."),
        Case("recipe", "long.yaml", content("data: " + "a" * 2_000_000), "larger than"),
        Case("recipe", "number.yaml", content("epochs: 0x" + "f" * 9000), "."),
        Case("recipe", "minutes.yaml", content("epochs: 1" + ":59" * 9000), "."),
        Case("recipe", "zeros.yaml", lambda path: path.symlink_to("/dev/zero"), "."),
        Case(
            "idx",
            "bomb.gz",
            lambda p: p.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 1, 1, 1) + bytes(1 << 28), 1)),
            ".",
        ),
        Case("idx", "declares.gz", content(gzip.compress(struct.pack(">4I", 0x803, *3 * [2**31]))), "declares"),
        Case("run", "laughing", lambda path: run_folder(path, laughs(), ""), ""),
        Case("run", "deep", lambda path: run_folder(path, "a: " + "[" * 10_000, "[" * 100_000 + "\n"), ""),
        Case("student", "deep-card", lambda path: student_folder(path, "[" * 100_000), "cannot be read"),
        Case("student", "no-card", lambda path: student_folder(path, "[]"), "not what a run writes"),
        Case("student", "classes", lambda path: student_folder(path, _card(1 << 50)), "."),
    ]
    return found


def _touched(path: Path) -> Path:
    path.touch()
    return path


def _link(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


def _card(classes: int) -> str:
    return json.dumps({"model": "small/cnn-2", "num_classes": classes, "input": {"size": 8}})


CASES = [(case.kind, case.name, case.why) for case in cases(Path("folder"))]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a process of its own, that reads them all, said of each; it may be given no network and no other folder."""
    folder = tmp_path_factory.mktemp("malicious")
    inner = folder / "a" / "b" / "c"
    inner.mkdir(parents=True)
    made = cases(folder)
    for case in made:
        case.make(inner / case.name)
    before = sorted(path for path in folder.rglob("*"))
    lines = "".join(f"{case.kind} {inner / case.name}\n" for case in made)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    worker = subprocess.run(
        [sys.executable, str(WORKER)],
        input=lines,
        capture_output=True,
        check=False,
        text=True,
        env=environment,
        cwd=inner,
        timeout=240,
    )
    assert worker.returncode == 0, worker.stderr
    assert sorted(path for path in folder.rglob("*")) == before, "something was written"
    said = [json.loads(line) for line in worker.stdout.splitlines()]
    return {case.name: answer for case, answer in zip(made, said, strict=True)}


@pytest.mark.processes
@pytest.mark.parametrize(("kind", "name", "why"), CASES, ids=[name for _, name, _ in CASES])
def test_one_line_nothing_run_and_little_memory(outcomes: dict[str, dict[str, Any]], kind: str, name: str, why: str):
    said = outcomes[name]
    # What is wrong with one image is a UserError only once it is known how many may be skipped.
    refusals = ("BadImageError", "OSError") if kind == "image" else ("UserError",)
    assert said["error"] in (refusals if why else ("",)), said
    assert re.search(why, said["text"]), said["text"]
    assert "\n" not in said["text"]
    assert said["memory"] < MOST, f"{said['memory'] >> 20} MiB"
    assert said["seconds"] < 30


def test_the_command_line_ends_with_code_2_and_a_line_that_moves_no_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tar(tmp_path / "a.tar", member("\x1b[2J.png", small_image()))
    assert (
        main(
            [
                "distill",
                "--data",
                f"shards:{tmp_path}/a.tar",
                "--student",
                "small/cnn-2",
                "--method",
                "alone",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert "\\x1b[2J" in said
