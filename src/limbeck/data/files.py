"""What the readers of annotations share: files from other tools, in their encodings, and folders in any case."""

import codecs
import stat
from pathlib import Path

from limbeck.errors import UserError

MOST_ANNOTATIONS = 2 << 30
"""Bytes of one annotation file; that of COCO's training images has 450 MiB."""


def read_annotations(path: Path) -> bytes:
    """The bytes of an annotation file.

    Raises:
        UserError: It does not exist, cannot be read, is no ordinary file, or is larger than any that is read.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f'"{path}" is no file of annotations')
        if about.st_size > MOST_ANNOTATIONS:
            raise UserError(f'"{path}" has {about.st_size >> 20} MiB, and at most {MOST_ANNOTATIONS >> 20} are read')
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f'annotations "{path}" do not exist') from None
    except OSError as error:
        raise UserError(f'annotations "{path}" cannot be read: {error.strerror}') from None


def read_text(path: Path) -> str:
    """The text of a file of labels or names: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        UserError: It cannot be read, or is no such text.
    """
    content = read_annotations(path)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f'"{path}" is not UTF-8 text: {error.reason} at byte {error.start}') from None


def child(folder: Path, *names: str) -> Path | None:
    """The folder inside a folder that has the first of these names which is there, in any case; None if none is."""
    try:
        there = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    except OSError:
        return None
    name = next((name for name in names if name.lower() in there), None)
    if name is None:
        return None
    return folder / name if (folder / name).is_dir() else there[name.lower()]
