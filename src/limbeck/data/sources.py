"""What the source of a data spec means: one function that goes from its spelling to train and val parts."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.data import arrays, decode, folders, hub, shards
from limbeck.data.parts import Part
from limbeck.data.spec import NAMED_SOURCES, PREFIXED_SOURCES, DataSpec
from limbeck.errors import UserError, did_you_mean

_LARGEST_SIZE = 224
_PROBED = 101  # images whose headers are read to find the size of a folder's images


@dataclass(frozen=True)
class Source:
    """What was found.

    Attributes:
        name: A short name for tables.
        train: The training images.
        val: The validation images, or None where the source has none.
        classes: Names of the classes; empty without labels.
        size: The usual side of its images, or None: to be found out.
        flip: Whether a mirror image means the same.
    """

    name: str
    train: Part
    val: Part | None
    classes: tuple[str, ...]
    size: int | None = None
    flip: bool = True


def find(spec: DataSpec) -> Source:
    """The parts that a spec names.

    Raises:
        UserError: There is no such source, or it cannot be used.
    """
    kind, colon, place = spec.source.partition(":")
    place = os.path.expanduser(place)
    if kind == "shards" and colon:
        source = _shards(place, spec)
    elif kind == "imagenet":
        if not place:
            raise UserError("imagenet cannot be downloaded: say where it is, imagenet:FOLDER (with train/ and val/)")
        source = _folder(Path(place), spec, name="imagenet", size=_LARGEST_SIZE)
    elif kind in NAMED_SOURCES:
        source = _named(kind, Path(place) if place else None, spec)
    elif spec.source.startswith("hf/") and not Path(spec.source).exists():
        _refuse_val(spec)
        train, val, classes = hub.load(spec.source.removeprefix("hf/"), labels=spec.labels)
        source = Source(spec.source.rpartition("/")[2], train, val, classes)
    else:
        if not Path(spec.source).expanduser().exists():
            raise UserError(_unknown(spec.source))
        source = _folder(Path(spec.source).expanduser(), spec)
    if spec.labels and len(source.classes) < 2:
        raise UserError(f'only {len(source.classes)} class in "{spec.source}": expected at least two, or --no-labels')
    return source


def usual_size(part: Part) -> int:
    """The median shorter side of a sample of images (unreadable ones are left to the decoder), at most 224."""
    sides: list[int] = []
    with decode.quiet_pillow():
        for i in np.unique(np.linspace(0, len(part) - 1, _PROBED).astype(int)):
            try:
                sides.append(decode.shorter_side(part.read(int(i))))
            except (decode.BadImageError, OSError):
                continue
    return max(4, min(_LARGEST_SIZE, int(np.median(sides)))) if sides else _LARGEST_SIZE


def cache_folder() -> Path:
    """Where downloads and decoded pixels are kept: `$LIMBECK_CACHE`, or `~/.cache/limbeck`."""
    named = os.environ.get("LIMBECK_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "limbeck"


def pixels_folder() -> Path | None:
    """Where decoded pixels are kept; None for a user who has no home."""
    try:
        return cache_folder() / "pixels"
    except RuntimeError:
        return None


def _named(kind: str, folder: Path | None, spec: DataSpec) -> Source:
    _refuse_val(spec)
    if folder is not None:
        if kind == "digits":
            raise UserError(
                '"digits" is embedded in scikit-learn and takes no folder (a folder of that name is ./digits)'
            )
        folders.check_folder(folder)
    match kind:
        case "digits":
            train, val, classes = arrays.digits()
            size, flip = 8, False  # a mirrored digit is another sign
        case "fashion-mnist":
            train, val, classes = arrays.fashion_mnist(folder, cache_folder())
            size, flip = 28, True
        case _:
            train, val, classes = arrays.cifar(int(kind.removeprefix("cifar")), folder, cache_folder())
            size, flip = 32, True
    if not spec.labels:
        train, val, classes = train.unlabelled(), val.unlabelled(), ()
    return Source(kind, train, val, classes, size=size, flip=flip)


def _folder(folder: Path, spec: DataSpec, *, name: str | None = None, size: int | None = None) -> Source:
    train_folder, val_folder = folders.find_parts(folder, labels=spec.labels)
    if spec.val is not None:
        val_folder = Path(spec.val).expanduser()
        folders.check_folder(val_folder)
    name = name or folder.resolve().name
    if not spec.labels:
        val = None if val_folder is None else folders.unlabelled(val_folder)
        return Source(name, folders.unlabelled(train_folder), val, (), size=size)
    train, classes = folders.labelled(train_folder)
    val = None if val_folder is None else folders.labelled(val_folder, classes)[0]
    return Source(name, train, val, classes, size=size)


def _shards(pattern: str, spec: DataSpec) -> Source:
    train, classes = shards.load(pattern, labels=spec.labels)
    val = None
    if spec.val is not None:
        val, found = shards.load(spec.val.removeprefix("shards:"), labels=spec.labels)
        if len(found) > len(classes):
            raise UserError(f'"{spec.val}" has class numbers up to {len(found) - 1}, train up to {len(classes) - 1}')
    return Source(Path(pattern).parent.resolve().name, train, val, classes)


def _refuse_val(spec: DataSpec) -> None:
    if spec.val is not None:
        raise UserError(f'"{spec.source}" takes no second folder (--val "{spec.val}"): only folders and shards do')


def _unknown(source: str) -> str:
    known = (*NAMED_SOURCES, *PREFIXED_SOURCES)
    if "/" not in source and (hint := did_you_mean(source, NAMED_SOURCES)):
        return f'there is no data source "{source}"{hint}'
    return f'data folder "{source}" does not exist (other sources: {", ".join(known)})'
