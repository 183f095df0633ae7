"""Labels of images from a CSV file with a row for each image: its file and its class."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from limbeck.data.folders import EXTENSIONS
from limbeck.data.parts import Part
from limbeck.errors import UserError

_FILES = (
    "file", "filename", "image", "imagename", "imagefile", "imageid", "imagepath", "filepath", "path", "name", "id",
)  # fmt: skip
_CLASSES = ("class", "label", "category", "target", "classname", "labelname", "classid", "labelid", "species", "breed")
_MOST = 1 << 28  # bytes; a row for each of ten million images


@dataclass(frozen=True)
class Labels:
    """What a label file says.

    Attributes:
        path: The file.
        of: Class of each image, by the name in the file with ``/`` between folders.
        notes: Which columns were read.
    """

    path: Path
    of: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, sorted; numbers by their value."""
        found = set(self.of.values())
        return tuple(sorted(found, key=int) if all(c.isdecimal() for c in found) else sorted(found))


def read(path: Path) -> Labels:
    """Read a file with the columns file and class: separated by commas, semicolons or tabs, with a header or without.

    Raises:
        UserError: It cannot be read, its columns are unclear, a class is missing, or an image has two classes.
    """
    if not path.is_file():
        raise UserError(f'label file "{path}" does not exist')
    if path.stat().st_size > _MOST:
        raise UserError(f'label file "{path}" has {path.stat().st_size >> 20} MiB, and at most {_MOST >> 20} are read')
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'label file "{path}" is no CSV file in UTF-8: {error}') from None
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(lines, 1) if any(map(str.strip, row))]
    if not rows:
        raise UserError(f'label file "{path}" is empty: expected a row for each image, FILE,CLASS')
    (file, label), header = _columns(path, rows[0][1])
    of: dict[str, str] = {}
    for number, row in rows[1 if header else 0 :]:
        name, value = (row[column] if column < len(row) else "" for column in (file, label))
        name = name.replace("\\", "/").removeprefix("./")
        if not name or not value:
            what = "file" if not name else "class"
            raise UserError(f'label file "{path}", line {number}: no {what}; expected a row for each image, FILE,CLASS')
        if of.setdefault(name, value) != value:
            raise UserError(f'label file "{path}", line {number}: "{name}" has the classes "{of[name]}" and "{value}"')
    if not of:
        raise UserError(f'label file "{path}" has a header and no rows')
    return Labels(path, of, (_told(path, rows[0][1], file, label),) if header else ())


def apply(labels: Labels, part: Part, classes: Sequence[str], used: set[str], *, prefix: str = "") -> Part:
    """The images of a part that the file names, with their class.

    An image is found by its path in the folder, else by its name alone, else by its name without the ending, where
    only one image has it.

    Args:
        labels: What the file says.
        part: The images of a folder.
        classes: Names of the classes, in the order of their numbers.
        used: Gets the names of the file that were found.
        prefix: What stands before the part's names in the file, such as ``train/``.
    """
    place = {name: number for number, name in enumerate(classes)}
    rows: dict[int, int] = {}
    for names in (
        (f"{prefix}{name}" for name in part.names),
        part.names,
        (PurePosixPath(name).name for name in part.names),
        (_stem(name) for name in part.names),
    ):
        for name, found in _by_name(names).items():
            if name in labels.of and name not in used and len(found) == 1 and found[0] not in rows:
                rows[found[0]] = place[labels.of[name]]
                used.add(name)
    keep = np.array(sorted(rows), np.int64)
    return replace(part.take(keep), labels=np.array([rows[int(row)] for row in keep], np.int64))


def refuse_unused(labels: Labels, used: set[str], folder: Path) -> None:
    """Refuse rows whose image is not there.

    Raises:
        UserError: There are some; the first is named.
    """
    missing = [name for name in labels.of if name not in used]
    if missing:
        raise UserError(
            f'label file "{labels.path}": {len(missing)} of its {len(labels.of)} rows name no image, or several, in '
            f'"{folder}", first "{missing[0]}"'
        )


def _by_name(names: Iterable[str]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        found[name].append(row)
    return found


def _stem(name: str) -> str:
    file = PurePosixPath(name)
    return file.stem if file.suffix.lower() in EXTENSIONS else file.name


def _columns(path: Path, first: list[str]) -> tuple[tuple[int, int], bool]:
    """Which columns hold the file and the class, and whether the first row is a header."""
    plain = ["".join(c for c in cell.lower() if c.isalnum()) for cell in first]
    files = [plain.index(name) for name in _FILES if name in plain]
    labels = [plain.index(name) for name in _CLASSES if name in plain]
    if files and labels:
        return (files[0], labels[0]), True
    if len(first) == 2:
        return (0, 1), bool(files or labels)
    raise UserError(
        f'label file "{path}" has {len(first)} columns ({", ".join(first[:6])}): expected two, FILE,CLASS, or a header '
        "with the columns file and class"
    )


def _told(path: Path, header: list[str], file: int, label: int) -> str:
    others = [name for column, name in enumerate(header) if column not in (file, label)]
    rest = f"; not read: {', '.join(others)}" if others else ""
    return f'labels of "{path}": images by its column "{header[file]}", classes by "{header[label]}"{rest}'
