"""WebDataset shards: tar files in which KEY.jpg and KEY.cls (or KEY.json with "label") lie side by side."""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from limbeck.data.folders import EXTENSIONS
from limbeck.data.parts import Part
from limbeck.errors import UserError
from limbeck.untrusted import check_image_size, parse_json

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


def load(pattern: str, *, labels: bool) -> tuple[Part, tuple[str, ...]]:
    """(images, classes) of local shards, `FOLDER/train-{0000..0009}.tar` or `FOLDER/*.tar`.

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
    for number, file in enumerate(files):
        found += _scan(file, number, labels, base_plus_ext)
    if not found:
        raise UserError(f'no images in the shards "{pattern}"')
    columns = [np.array(column, np.int64) for column in list(zip(*found, strict=True))[1:]]
    shard, offset, size, label = columns
    return Part(
        names=tuple(f"{files[f.shard].name}/{f.key}" for f in found),
        reader=ShardReader(tuple(str(file) for file in files), shard, offset, size),
        rows=np.arange(len(found)),
        sizes=size,
        labels=label if labels else None,
        shards=shard,
    ), tuple(str(i) for i in range(int(label.max()) + 1)) if labels else ()


def _scan(file: Path, number: int, labels: bool, split: _Splitter) -> list[_Found]:
    images: dict[str, tuple[int, int]] = {}
    targets: dict[str, int] = {}
    try:
        length = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                key, extension = split(member.name)
                if key is None or extension is None or not member.isfile():
                    continue
                if member.issparse() or member.size < 0 or member.offset_data + member.size > length:
                    raise OSError(f"{member.name!r} declares {member.size} bytes, which the file does not hold")
                if f".{extension.lower()}".endswith(EXTENSIONS) and key not in images:
                    check_image_size(member.size)
                    images[key] = (member.offset_data, member.size)
                elif labels and extension in ("cls", "json") and (extracted := tar.extractfile(member)):
                    value = _label(extracted.read(_MOST_LABEL), extension)
                    if value is not None:
                        targets[key] = value
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(f'shard "{file}" cannot be read as an uncompressed tar file: {error}') from None
    without = next((key for key in images if labels and targets.get(key, -1) < 0), None)
    if without is not None:
        raise UserError(f'image "{without}" in shard "{file}" has no label: expected {without}.cls with a class number')
    return [_Found(key, number, *place, targets.get(key, 0)) for key, place in images.items()]


def _label(data: bytes, extension: str) -> int | None:
    try:
        value = parse_json(data)
    except ValueError:
        return None
    if extension == "json":
        value = value.get("label", value.get("cls")) if isinstance(value, dict) else None
    return value if isinstance(value, int) and value < _MOST_CLASSES else None
