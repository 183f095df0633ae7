"""WebDataset shards: tar files in which KEY.jpg and KEY.cls (or KEY.json with "label") lie side by side."""

import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from limbeck.data.folders import EXTENSIONS
from limbeck.data.parts import Part
from limbeck.errors import UserError
from limbeck.storage.untrusted import check_image_size, parse_json

_MOST_LABEL = 1 << 20  # bytes of a .cls or .json member, which is read while the shards are listed
_MOST_CLASSES = 1_000_000  # a class has a name and a row of the classifier, however few images there are


@dataclass(frozen=True)
class ShardReader:
    """Reads members by their place in the tar files, without going through what lies before."""

    files: tuple[str, ...]
    shard: Int64[np.ndarray, " n"]
    offset: Int64[np.ndarray, " n"]
    size: Int64[np.ndarray, " n"]

    def __call__(self, row: int) -> bytes:
        """The bytes of one image."""
        with open(self.files[self.shard[row]], "rb") as file:
            file.seek(int(self.offset[row]))
            return file.read(int(self.size[row]))


_Splitter = Callable[[str], tuple[str | None, str | None]]


class _Found(NamedTuple):
    key: str
    shard: int
    offset: int
    size: int
    label: int


def load(pattern: str, *, labels: bool) -> tuple[Part, tuple[str, ...], tuple[str, ...]]:
    """(images, classes, notes) of local shards, `FOLDER/train-{0000..0009}.tar` or `FOLDER/*.tar`.

    The headers are read once, in sorted order of the files; images are then read by their place. So the order, the
    split over processes and the pixels are as reproducible as those of a folder; whole shards are shuffled first, and
    images within a window, to keep reads close together. Shards must be uncompressed files of this machine.

    Raises:
        UserError: `webdataset` is not installed, no shards or images are found, a shard is broken, or labels are
            missing.
    """
    try:
        from webdataset.shardlists import expand_urls
        from webdataset.tariterators import base_plus_ext
    except ImportError:
        raise UserError('"shards:PATTERN" needs the extra "shards": pip install "limbeck[shards]"') from None
    files: list[Path] = []
    for expanded in expand_urls(pattern):
        path = Path(expanded)
        files += sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(
            f'shard "{missing[0] if missing else pattern}" does not exist: expected tar files on this machine'
        )
    found: list[_Found] = []
    notes: list[str] = []
    for number, file in enumerate(files):
        found += _scan(file, number, labels, base_plus_ext, notes)
    if not found:
        raise UserError(f'no images in the shards "{pattern}"{f" ({notes[0]})" if notes else ""}')
    columns = [np.array(column, np.int64) for column in list(zip(*found, strict=True))[1:]]
    shard, offset, size, label = columns
    part = Part(
        names=tuple(f"{files[f.shard].name}/{f.key}" for f in found),
        reader=ShardReader(tuple(str(file) for file in files), shard, offset, size),
        rows=np.arange(len(found)),
        sizes=size,
        labels=label if labels else None,
        shards=shard,
    )
    return part, tuple(str(i) for i in range(int(label.max()) + 1)) if labels else (), tuple(notes)


class _Sample(NamedTuple):
    """The members of a tar file that have one key: place of each image, and label files, by their name's rest."""

    images: dict[str, tuple[int, int]]
    labels: dict[str, bytes]
    others: list[str]


def _scan(file: Path, number: int, labels: bool, split: _Splitter, notes: list[str]) -> list[_Found]:
    samples: dict[str, _Sample] = {}
    try:
        length = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                key, extension = split(member.name)
                if key is None or extension is None or not member.isfile():
                    continue
                if member.issparse() or member.size < 0 or member.offset_data + member.size > length:
                    raise OSError(f"{member.name!r} declares {member.size} bytes, which the file does not hold")
                sample = samples.setdefault(key, _Sample({}, {}, []))
                if f".{extension.lower()}".endswith(EXTENSIONS):
                    check_image_size(member.size)
                    sample.images[extension] = (member.offset_data, member.size)
                elif labels and extension.rpartition(".")[2] in ("cls", "json"):
                    extracted = tar.extractfile(member)
                    sample.labels[extension] = extracted.read(_MOST_LABEL) if extracted else b""
                else:
                    sample.others.append(extension)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(f'shard "{file}" cannot be read as an uncompressed tar file: {error}') from None
    found: list[_Found] = []
    without: list[str] = []
    for key, sample in samples.items():
        if not sample.images:
            without += [f"{key}.{end}" for end in sample.others or sample.labels][:1]
            continue
        chosen = _chosen(file, key, sample)
        label = _label(file, key, chosen, sample) if labels else 0
        found.append(_Found(key, number, *sample.images[chosen], label))
    if without:
        notes.append(f'{len(without)} samples of "{file}" have no image that is read, first {without[0]}')
    return found


def _chosen(file: Path, key: str, sample: _Sample) -> str:
    """The image of a sample: KEY.png, and not KEY.depth.png beside it."""
    plain = [name for name in sample.images if "." not in name]
    if len(plain) == 1:
        return plain[0]
    if not plain and len(sample.images) == 1:
        return next(iter(sample.images))
    names = " and ".join(f"{key}.{name}" for name in list(sample.images)[:2])
    raise UserError(
        f'shard "{file}" has several images of the sample "{key}": {names}; what lies before the first dot names a '
        "sample, and each has one image: rename them"
    )


def _label(file: Path, key: str, image: str, sample: _Sample) -> int:
    """The class number of a sample, out of KEY.cls or KEY.json."""
    stem = image.rpartition(".")[0]
    values: dict[str, int] = {}
    for end in ("cls", "json"):
        for name in dict.fromkeys((f"{stem}.{end}".lstrip("."), end)):
            if name in sample.labels and (value := _number(sample.labels[name], end)) is not None:
                values.setdefault(f"{key}.{name}", value)
    if len(set(values.values())) > 1:
        told = ", ".join(f"{name} says {value}" for name, value in values.items())
        raise UserError(f'image "{key}" in shard "{file}" has two labels: {told}')
    if not values:
        seen = next((f", got {data[:20]!r}" for name, data in sample.labels.items() if name.endswith("cls")), "")
        raise UserError(
            f'image "{key}" in shard "{file}" has no label: expected {key}.cls with a class number from 0 to '
            f"{_MOST_CLASSES - 1}{seen}"
        )
    return next(iter(values.values()))


def _number(data: bytes, end: str) -> int | None:
    """A class number; None where there is none. A .cls file may begin with zeros, and end in .0 as a float does."""
    value: Any
    if end == "cls":
        text = data.decode("utf-8-sig", errors="replace").strip()
        value = int(text.partition(".")[0]) if re.fullmatch(r"[0-9]{1,9}(\.0*)?", text) else None
    else:
        try:
            found = parse_json(data.removeprefix(b"\xef\xbb\xbf"))
        except ValueError:
            return None
        value = found.get("label", found.get("cls")) if isinstance(found, dict) else None
        value = int(value) if isinstance(value, float) and value.is_integer() else value
    return value if type(value) is int and 0 <= value < _MOST_CLASSES else None
