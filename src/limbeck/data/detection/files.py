"""What the readers of annotations share: where images lie, how large they are, and files of others."""

import os
import stat
from pathlib import Path

from limbeck.data import decode
from limbeck.data.detection.problems import Fault, Problems
from limbeck.errors import UserError
from limbeck.untrusted import read_image_file

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


def is_inside(name: str) -> bool:
    """Whether a path stays in the folder that it is relative to."""
    parts = Path(name.replace("\\", "/")).parts
    return bool(parts) and not os.path.isabs(name) and ".." not in parts


def image_size(root: str, name: str, problems: Problems) -> tuple[int, int] | None:
    """Height and width of an image as it is decoded, from its header; None, and a fault, where it has none."""
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        problems.add(Fault.IMAGE_MISSING, name)
        return None
    try:
        with decode.quiet_pillow():
            return decode.size(read_image_file(path))
    except (decode.BadImageError, OSError) as error:
        problems.add(Fault.IMAGE_UNREADABLE, f"{name}: {error}")
        return None
