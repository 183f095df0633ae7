"""Files of others: what they declare is compared with what they hold before anything is read.

A safetensors file and the zip file that torch writes hold no more than they weigh. One that declares more, by
compression, by parts that lie upon each other or by millions of empty tensors, was made to fill the memory, and is
refused here, in front of the libraries that would believe it.
"""

import json
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from limbeck.errors import UserError

MOST_HEADER = 8 << 20
"""Bytes of a safetensors header: a model of 10,000 tensors has one; the format's own limit (100 MB) takes gigabytes."""

MOST_FILE = 1 << 28
"""Bytes of one image file."""

_LENGTH = 8  # a safetensors file begins with the length of its header, little endian


def check_tensor_file(path: Path) -> None:
    """Refuse a safetensors file whose header cannot be one; the format's reader checks the rest.

    Raises:
        ValueError: The header is longer than the file or than `MOST_HEADER`; the message says so.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        declared = int.from_bytes(file.read(_LENGTH), "little")
    if size < _LENGTH or declared > size - _LENGTH:
        raise ValueError(f"its header declares {declared} bytes, and the file has {size}")
    if declared > MOST_HEADER:
        raise ValueError(f"its header has {declared} bytes, and at most {MOST_HEADER} are read")


def check_torch_file(path: Path) -> None:
    """Refuse a torch file whose parts unpack to more than the file weighs; torch writes them as they are.

    Raises:
        ValueError: They do, or the list of parts is broken.
        OSError: The file cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return  # of before PyTorch 1.6: read in one stream, with nothing packed
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from None
    if declared > size:
        raise ValueError(f"it unpacks to {declared} bytes, and the file has {size}: torch packs nothing")


def read_image_file(path: str, most: int = -1) -> bytes:
    """The bytes of an image file.

    Args:
        path: The file.
        most: Read only so many, the first ones; -1: all.

    Raises:
        OSError: It cannot be read, is no ordinary file (a device or a pipe has no end), or has more than `MOST_FILE`
            bytes.
    """
    # A path's own read_bytes takes three times as long, which counts for many small images.
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError("not an ordinary file")
        check_image_size(about.st_size)
        return file.read(most)


def check_image_size(size: int) -> None:
    """Refuse an image file of more than `MOST_FILE` bytes.

    Raises:
        OSError: It has more.
    """
    if size > MOST_FILE:
        raise OSError(f"the file has {size >> 20} MiB, and images of at most {MOST_FILE >> 20} MiB are read")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to would be waited for


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is none, or is nested deeper than the parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def text_of(path: Path) -> str | None:
    """The text of a file; None if there is none. One look: another process may write or remove it between two."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    except FileNotFoundError:  # removed since
        return None


def read_object(path: Path, *needed: str) -> dict[str, Any]:
    """The object in a JSON file of a run folder.

    Args:
        path: The file.
        *needed: The names that it has to have.

    Raises:
        UserError: It is missing, cannot be read, is no object, or lacks a name.
    """
    if (found := find_object(path, *needed)) is None:
        raise UserError(f"{path} cannot be read (no such file)")
    return found


def find_object(path: Path, *needed: str) -> dict[str, Any] | None:
    """As :func:`read_object`; None if there is no such file."""
    try:
        if (text := text_of(path)) is None:
            return None
        value = parse_json(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    missing = [name for name in needed if not isinstance(value, dict) or name not in value]
    if missing or not isinstance(value, dict):
        raise UserError(f"{path} is not what a run writes: it has no {', '.join(missing) or 'names'}")
    return cast("dict[str, Any]", value)


def records_of(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a ``log.jsonl`` that hold a record, each with it; what is damaged is passed over."""
    for line in text.splitlines(keepends=True):
        try:
            value = parse_json(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield line, cast(dict[str, Any], value)
