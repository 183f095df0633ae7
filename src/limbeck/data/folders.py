"""Image folders: what lies where, and what is wrong with it, in one line."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.data.parts import Part
from limbeck.errors import UserError
from limbeck.untrusted import read_image_file

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")
VAL_NAMES = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class FileReader:
    """Reads the files of a folder."""

    root: str
    names: tuple[str, ...]

    def __call__(self, row: int) -> bytes:
        """The bytes of one file."""
        return read_image_file(f"{self.root}/{self.names[row]}")


def check_folder(folder: Path) -> None:
    """Refuse what is not a folder with something in it.

    Raises:
        UserError: It does not exist, is a file, or is empty.
    """
    if not folder.exists():
        raise UserError(f'data folder "{folder}" does not exist')
    if not folder.is_dir():
        raise UserError(f'"{folder}" is a file: expected a folder of images')
    if not any(folder.iterdir()):
        raise UserError(f'data folder "{folder}" is empty')


def find_parts(folder: Path, *, labels: bool) -> tuple[Path, Path | None]:
    """(train, val) folders: `train/` and `val/` (or valid, validation, test), else the folder itself and None.

    Raises:
        UserError: The folder cannot be used, or has a validation part and no `train/`.
    """
    check_folder(folder)
    val = next((folder / name for name in VAL_NAMES if (folder / name).is_dir()), None)
    if (folder / "train").is_dir():
        check_folder(folder / "train")
        return folder / "train", val
    if val is not None and labels:
        raise UserError(f'"{folder}" has {val.name}/ but no train/: expected both, or class folders directly')
    return folder, None


def labelled(folder: Path, classes: tuple[str, ...] | None = None) -> tuple[Part, tuple[str, ...]]:
    """The images of a folder of class folders, searched to any depth; images beside the class folders are left out.

    Args:
        folder: The folder of a train or val part.
        classes: For a val part: those of the train part, which have to be the same.

    Returns:
        The part and the class names in sorted order.

    Raises:
        UserError: No class folders, one class, a class without images, or other classes than in train.
    """
    check_folder(folder)
    found = tuple(
        sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    )
    if not found:
        if not any(_images(folder)):
            raise UserError(_no_images(folder))
        raise UserError(f'no class folders in "{folder}": expected one folder of images a class, or --no-labels')
    if classes is not None and found != classes:
        raise UserError(_difference(folder, classes, found))
    files = [
        (f"{name}/{file}", size, label) for label, name in enumerate(found) for file, size in _images(folder / name)
    ]
    if not files:
        raise UserError(_no_images(folder))
    if len(found) == 1:
        raise UserError(
            f'only one class ("{found[0]}") in "{folder}": expected at least two class folders, or --no-labels'
        )
    empty = sorted(set(range(len(found))) - {label for _, _, label in files})
    if empty:
        raise UserError(f'class folder "{folder / found[empty[0]]}" holds no images')
    return _part(folder, files, labels=True), found


def unlabelled(folder: Path) -> Part:
    """All images of a folder, to any depth.

    Raises:
        UserError: There are none.
    """
    check_folder(folder)
    files = [(file, size, 0) for file, size in _images(folder)]
    if not files:
        raise UserError(_no_images(folder))
    return _part(folder, files, labels=False)


def _part(folder: Path, files: list[tuple[str, int, int]], *, labels: bool) -> Part:
    files.sort()
    names = tuple(name for name, _, _ in files)
    return Part(
        names=names,
        reader=FileReader(str(folder), names),
        rows=np.arange(len(files)),
        sizes=np.array([size for _, size, _ in files], np.int64),
        labels=np.array([label for _, _, label in files], np.int64) if labels else None,
    )


def _images(folder: Path) -> Iterator[tuple[str, int]]:
    """(path relative to the folder, bytes) of each image file; links are followed, a loop of links once."""
    seen: set[str] = set()
    pending = [(str(folder), "")]
    while pending:
        path, prefix = pending.pop()
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.name.lower().endswith(EXTENSIONS):
                    # A dangling link is listed, so that it is reported as an unreadable image and not silently missed.
                    size = entry.stat().st_size if entry.is_file() else 0
                    yield prefix + entry.name, size


def _no_images(folder: Path) -> str:
    return f'no images in "{folder}": expected files that end in {", ".join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}'


def _difference(folder: Path, train: tuple[str, ...], val: tuple[str, ...]) -> str:
    def some(names: set[str]) -> str:
        return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")

    missing, extra = set(train) - set(val), set(val) - set(train)
    parts = [f"{len(missing)} of train are missing ({some(missing)})"] if missing else []
    parts += [f"{len(extra)} are not in train ({some(extra)})"] if extra else []
    return f'the classes of "{folder}" are not those of train: {" and ".join(parts)}'
