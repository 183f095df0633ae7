"""Image folders: what lies where, and what is wrong with it, in one line."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from limbeck.data import layout
from limbeck.data.parts import Part
from limbeck.errors import UserError
from limbeck.storage.untrusted import read_image_file

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif",
)  # fmt: skip
SKIP_FLAG = "--on-missing-classes skip"
_SHOWN = 3


@dataclass(frozen=True)
class FileReader:
    """Reads the files of a folder."""

    root: str
    names: tuple[str, ...]

    def __call__(self, row: int) -> bytes:
        """The bytes of one file."""
        return read_image_file(f"{self.root}/{self.names[row]}")


@dataclass(frozen=True)
class Folders:
    """The parts of a folder.

    Attributes:
        train: The folder of training images.
        val: The folder of validation images, or None.
        notes: What was chosen, and what is not used.
    """

    train: Path
    val: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The images of a folder.

    Attributes:
        part: The images.
        classes: Names of the classes; empty without labels.
        notes: What was left out.
    """

    part: Part
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Others:
    """Files that are no images, by their ending; a scan fills it."""

    endings: Counter[str] = field(default_factory=Counter[str])

    def notes(self, folder: Path) -> tuple[str, ...]:
        if not self.endings:
            return ()
        kinds = ", ".join(f"{count} {ending}" for ending, count in self.endings.most_common(5))
        return (f'files of "{folder}" that do not end like an image are not read: {kinds}',)


def check_folder(folder: Path) -> None:
    """Refuse what is not a folder with something in it.

    Raises:
        UserError: It does not exist, is a file, or is empty.
    """
    if not folder.exists():
        raise UserError(f'data folder "{folder}" does not exist')
    if not folder.is_dir():
        raise UserError(f'"{folder}" is a file: expected a folder; {layout.LAYOUTS}')
    if not any(folder.iterdir()):
        raise UserError(f'data folder "{folder}" is empty')


def find_parts(folder: Path, *, labels: bool) -> Folders:
    """The folders of a set's parts, in any case and under the usual names (`layout`), else the folder itself.

    Raises:
        UserError: The folder cannot be used, or has a validation part and none to train on.
    """
    check_folder(folder)
    names = folders_in(folder)
    train, val, notes = layout.choose(names)
    is_test = train is not None and val is not None and layout.part_of(val) == "test"
    if labels and is_test and not folders_in(folder / str(val)):  # of a competition, whose labels are hidden
        val, notes = None, (f'"{val}" has no class folders and is not used',)
    others = [name for name in names if layout.part_of(name) is None]
    if train is not None and (val is not None or not others or not labels or folders_in(folder / train)):
        check_folder(folder / train)
        beside = (f"not used, beside {train}: {some(others)}",) if others else ()
        return Folders(folder / train, None if val is None else folder / val, (*notes, *beside))
    if labels and train is None and val is not None and (not others or folders_in(folder / val)):
        raise UserError(f'"{folder}" has {val}/ but no train/: expected both, or class folders directly')
    return Folders(folder)


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the class folders in a folder, sorted.

    Raises:
        UserError: There is none; the message says what is there.
    """
    check_folder(folder)
    found = folders_in(folder)
    if not found:
        count = sum(1 for _ in _images(folder, _Others()))
        if not count:
            raise UserError(_no_images(folder))
        raise UserError(f'no class folders in "{folder}", but {count} images; {layout.LAYOUTS}')
    return found


def labelled(folder: Path, classes: tuple[str, ...] | None = None, *, skip: bool = False) -> Found:
    """The images of a folder of class folders, searched to any depth; images beside the class folders are left out.

    Args:
        folder: The folder of a train or val part.
        classes: For a val part: those of the train part, which have to be the same.
        skip: Continue with the classes there are: without class folders that hold no images, and in a val part
            without those that train does not have.

    Raises:
        UserError: No class folders, one class, a class without images, or other classes than in train.
    """
    found = class_folders(folder)
    if classes is not None and found != classes and not (skip and set(found) & set(classes)):
        raise UserError(difference(f'of "{folder}"', classes, found))
    names = [name for name in found if classes is None or name in classes]
    others, left_out = _Others(), [name for name in found if name not in names]
    images = {name: list(_images(folder / name, others)) for name in names}
    if not any(images.values()):
        raise UserError(_no_images(folder))
    if len(found) == 1 and classes is None:
        inside = " and has folders itself" if folders_in(folder / found[0]) else ""
        raise UserError(f'only one class ("{found[0]}"{inside}) in "{folder}": expected at least two; {layout.LAYOUTS}')
    for name in names:
        _refuse_parts_inside(folder / name, images[name])
    empty = [name for name in names if not images[name]]
    if empty and not skip:
        raise UserError(
            f'class folder "{folder / empty[0]}" holds no images: remove it, or continue without it by {SKIP_FLAG}'
        )
    kept = classes or tuple(name for name in names if images[name])
    files = [(f"{name}/{file}", size, kept.index(name)) for name in names for file, size in images[name]]
    notes = list(others.notes(folder))
    if empty:
        notes.append(f'class folders of "{folder}" without images are not used: {some(empty)}')
    if left_out:
        notes.append(f'folders of "{folder}" that are no classes of train are not used: {some(left_out)}')
    lacking = [name for name in kept if name not in found]
    if lacking:
        notes.append(f'no images in "{folder}" of {some(lacking)}')
    if loose := sum(1 for _ in _images(folder, _Others(), deep=False)):
        notes.append(f'{loose} images of "{folder}" that lie in no class folder are not used')
    return Found(_part(folder, files, labels=True), kept, tuple(notes))


def unlabelled(folder: Path) -> Part:
    """All images of a folder, to any depth; raises as `every_image` does."""
    return every_image(folder).part


def every_image(folder: Path) -> Found:
    """All images of a folder, to any depth, and what was left out.

    Raises:
        UserError: There are none.
    """
    check_folder(folder)
    others = _Others()
    files = [(file, size, 0) for file, size in _images(folder, others)]
    if not files:
        raise UserError(_no_images(folder))
    return Found(_part(folder, files, labels=False), (), others.notes(folder))


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


def folders_in(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not layout.is_hidden(entry.name) and entry.is_dir())
    for name in names:
        _refuse_encoding(name, str(folder))
    return tuple(names)


def _images(folder: Path, others: _Others, *, deep: bool = True) -> Iterator[tuple[str, int]]:
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
                if layout.is_hidden(entry.name):
                    continue
                _refuse_encoding(entry.name, path)
                if entry.is_dir():
                    if deep:
                        pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.name.lower().endswith(EXTENSIONS):
                    # A dangling link is listed, so that it is reported as an unreadable image and not silently missed.
                    size = entry.stat().st_size if entry.is_file() else 0
                    yield prefix + entry.name, size
                else:
                    others.endings[os.path.splitext(entry.name)[1].lower() or "without an ending"] += 1


def _refuse_encoding(name: str, folder: str) -> None:
    """A name that is no UTF-8 cannot be written into a log, a report or a table."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f'the name {os.fsencode(name)!r} in "{folder}" is not UTF-8: rename it') from None


def _refuse_parts_inside(folder: Path, images: list[tuple[str, int]]) -> None:
    """CLASS/train and CLASS/test would be trained on both."""
    inside = {name.partition("/")[0] for name, _ in images if "/" in name}
    kinds = {layout.part_of(name) for name in inside} - {None}
    if len(kinds) > 1:
        raise UserError(
            f'class folder "{folder}" holds the parts {some(sorted(inside))}: expected train/{folder.name} and '
            f"val/{folder.name}"
        )


def _no_images(folder: Path) -> str:
    return f'no images in "{folder}": expected files that end in {", ".join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}'


def some(names: Sequence[str]) -> str:
    """The first few names, and how many there are if there are more."""
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")


def difference(where: str, train: tuple[str, ...], val: tuple[str, ...]) -> str:
    """What of two lists of classes is not the same, as an error's line."""
    missing, extra = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    parts = [f"{len(missing)} of train are missing ({some(missing)})"] if missing else []
    parts += [f"{len(extra)} are not in train ({some(extra)})"] if extra else []
    advice = f"; continue with the classes that both have by {SKIP_FLAG}" if len(extra) < len(val) else ""
    return f"the classes {where} are not those of train: {' and '.join(parts)}{advice}"
