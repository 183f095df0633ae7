"""Decoded pixels, kept between runs: found by the content of the image files, checked, and mapped into memory.

A set's file is `SKETCH-CONTENT.safetensors`. The sketch is of what is known without opening an image (how many bytes
each has, the frame, the decoder): where no file begins with it, nothing is read twice. The content is of the bytes of
all images: one that changed is never read through, and a folder that was moved or renamed is known again.
"""

import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.data import decode
from limbeck.data.arrays import ArrayReader
from limbeck.data.fetch import Decoded, Frame, Skips, content, decode_all
from limbeck.data.parts import Part
from limbeck.errors import UserError
from limbeck.storage.files import replacing
from limbeck.storage.untrusted import check_tensor_file

LIMIT = 8 << 30
"""Bytes that all kept sets together may have; those that were not used for the longest time are removed first."""

WORTH = 16 << 20
"""Bytes of decoded pixels below which decoding takes about a second, and nothing is kept."""

_FORMAT = 1
_CHUNK = 16 << 20
_DAY = 24 * 60 * 60


class Kept(NamedTuple):
    """The pixels of a part.

    Attributes:
        part: Without the images that cannot be read.
        pixels: Of the others.
        notes: Where they are from, for the log.
        content: A digest of the bytes of all images as they are stored.
    """

    part: Part
    pixels: UInt8[Tensor, "k 3 t t"]
    notes: tuple[str, ...]
    content: str


def pixels(
    part: Part, frame: Frame, *, channels_last: bool, workers: int, skips: Skips, what: str, folder: Path | None
) -> Kept:
    """The decoded pixels of a part: out of a kept file where there is one, else decoded now and kept.

    The memory of a mapped file is that of the system's file cache, which all processes share. A damaged file, a full
    disk or a folder that cannot be written cost a line in the notes and nothing else.

    Args:
        part: The images.
        frame: How they become square.
        channels_last: How the pixels lie in memory.
        workers: Threads that read and decode.
        skips: Tolerates and counts the unreadable images; the same ones whether they are decoded or kept.
        what: Name for the bar.
        folder: Where the files are. None: nothing is kept.

    Raises:
        UserError: More images than allowed cannot be read.
    """
    needed = 3 * frame.side**2 * len(part)
    if folder is None or needed < WORTH or isinstance(part.reader, ArrayReader):
        decoded = decode_all(part, frame, channels_last=channels_last, workers=workers, skips=skips, what=what)
        return Kept(_without(part, decoded.bad), decoded.pixels, (), decoded.content)
    sketch = _sketch(part, frame, channels_last)
    notes: list[str] = []
    if any(_list(folder, f"{sketch}-*.safetensors")):
        path = folder / f"{sketch}-{content(part, workers=workers, what=what)}.safetensors"
        try:
            found = _read(path, workers)
        except _DamagedError as damage:
            notes.append(f"{path} {damage}, the images are decoded again")
            with suppress(OSError):
                path.unlink()
        else:
            if found is not None:
                for row, why in found.bad.items():
                    skips.add(part.names[row], why)
                notes.append(f"decoded pixels of an earlier run: {path}")
                return Kept(_without(part, found.bad), found.pixels, tuple(notes), found.content)
    decoded = decode_all(part, frame, channels_last=channels_last, workers=workers, skips=skips, what=what)
    path = folder / f"{sketch}-{decoded.content}.safetensors"
    mapped, note = _keep(decoded, path, channels_last=channels_last, workers=workers)
    return Kept(_without(part, decoded.bad), mapped, (*notes, note), decoded.content)


class _DamagedError(Exception):
    """A kept file is not what was written; the message says why."""


def _without(part: Part, bad: dict[int, str]) -> Part:
    return part.take(np.array(sorted(set(range(len(part))) - bad.keys()), np.int64)) if bad else part


def _sketch(part: Part, frame: Frame, channels_last: bool) -> str:
    known = f"{_FORMAT}, {decode.version()}, {frame.side}, {frame.share!r}, {channels_last}, {len(part)}, {part.bits}, "
    return hashlib.sha256(known.encode() + part.sizes.tobytes()).hexdigest()[:16]


def _read(path: Path, workers: int) -> Decoded | None:
    """The pixels of a kept file, whose checksum is compared; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        check_tensor_file(path)
        with safe_open(path, "pt") as file:
            stored, about = file.get_tensor("pixels"), file.metadata()
        checksum = about.pop("checksum")
        bad = {int(row): str(why) for row, why in json.loads(about["bad"]).items()}
    except Exception as error:  # safetensors raises its own type for every defect of a file
        if not path.is_file():  # another process removed it to make room
            return None
        raise _DamagedError(f"cannot be read ({error})") from None
    if _checksum(stored, about, workers) != checksum:
        raise _DamagedError("is damaged (its checksum is another)")
    with suppress(OSError):
        os.utime(path)  # it was used now
    return Decoded(_view(stored, about["channels_last"] == "True"), bad, path.stem.rpartition("-")[2])


def _keep(decoded: Decoded, path: Path, *, channels_last: bool, workers: int) -> tuple[UInt8[Tensor, "k 3 t t"], str]:
    """Write the pixels; the same pixels mapped from the file, and a note. Where that fails, as they are, and why."""
    size = decoded.pixels.numel()
    stored = decoded.pixels.permute(0, 2, 3, 1) if channels_last else decoded.pixels
    about = {"bad": json.dumps(decoded.bad), "channels_last": str(channels_last)}
    try:
        if size > LIMIT:
            raise UserError(f"{size >> 20} MiB are more than the {LIMIT >> 20} MiB that are kept")
        removed = _make_room(path.parent, LIMIT - size)
        with replacing(path) as temporary:
            if shutil.disk_usage(path.parent).free < 2 * size:
                raise OSError(None, f"{size >> 20} MiB would fill more than half of what is left of the disk")
            try:
                save_file({"pixels": stored}, temporary, {**about, "checksum": _checksum(stored, about, workers)})
            except Exception as error:  # the Rust writer reports a full disk as its own SafetensorError
                raise OSError(None, str(error)) from error
        with safe_open(path, "pt") as file:
            mapped = _view(file.get_tensor("pixels"), channels_last)
    except Exception as error:
        return decoded.pixels, f"decoded pixels are not kept for the next run: {error}"
    gone = f" ({removed} removed now)" if removed else ""
    rule = f"at most {LIMIT >> 30} GiB are kept there, what was not used for longest is removed first{gone}"
    return mapped, f"decoded pixels are kept for the next run: {path}, {size >> 20} MiB; {rule}"


def _view(stored: Tensor, channels_last: bool) -> UInt8[Tensor, "k 3 t t"]:
    return stored.permute(0, 3, 1, 2) if channels_last else stored


def _checksum(stored: Tensor, about: dict[str, str], workers: int) -> str:
    """SHA-256 of what is said about the pixels and of the SHA-256 of each 16 MiB of them, by threads."""
    said = repr((tuple(stored.shape), sorted(about.items()))).encode()
    flat = stored.view(-1).numpy()

    def digest(at: int) -> bytes:
        return hashlib.sha256(flat[at : at + _CHUNK].data).digest()

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return hashlib.sha256(said + b"".join(pool.map(digest, range(0, len(flat), _CHUNK)))).hexdigest()


def _list(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:  # not to be read: nothing is there
        return []


def _make_room(folder: Path, most: int) -> int:
    """Remove the files that were not used for longest until at most `most` bytes are left; how many were removed."""
    files: list[tuple[float, int, Path]] = []
    for path in _list(folder, "*.safetensors"):
        with suppress(OSError):  # another process may remove it at the same time
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    for path in _list(folder, ".*.tmp"):  # of a process that was killed
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY:
                path.unlink()
    total, removed = sum(size for _, size, _ in files), 0
    for _, size, path in sorted(files):
        if total <= most:
            break
        with suppress(OSError):
            path.unlink()
            removed += 1
        total -= size
    return removed
