"""What the source of a data spec means: one function that goes from its spelling to train and val parts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from limbeck.data import arrays, decode, folders, hub, label_file, layout, shards
from limbeck.data.folders import Folders, Found
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
        notes: What was chosen and what was left out.
        is_folder: Whether it is a folder of image files.
    """

    name: str
    train: Part
    val: Part | None
    classes: tuple[str, ...]
    size: int | None = None
    flip: bool = True
    notes: tuple[str, ...] = ()
    is_folder: bool = False


def find(spec: DataSpec) -> Source:
    """The parts that a spec names.

    Raises:
        UserError: There is no such source, or it cannot be used.
    """
    source = _found(spec)
    if spec.label_file is not None and not source.is_folder:
        raise UserError(f'--labels {spec.label_file}: only for a folder of images, got "{spec.source}"')
    if spec.labels and len(source.classes) < 2:
        raise UserError(f'only {len(source.classes)} class in "{spec.source}": expected at least two, or --no-labels')
    return source


def _found(spec: DataSpec) -> Source:
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
        train, val, classes, notes = hub.load(spec.source.removeprefix("hf/"), labels=spec.labels)
        source = Source(spec.source.rpartition("/")[2], train, val, classes, notes=notes)
    else:
        if not Path(spec.source).expanduser().exists():
            raise UserError(_unknown(spec.source))
        source = _folder(Path(spec.source).expanduser(), spec)
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
    by_folder = spec.labels and spec.label_file is None
    found = folders.find_parts(folder, labels=by_folder)
    if spec.val is not None:
        found = Folders(found.train, Path(spec.val).expanduser(), found.notes)
        folders.check_folder(Path(spec.val).expanduser())
    name = name or folder.resolve().name
    if spec.labels and spec.label_file is not None:
        train, val = _labelled_by_file(found, Path(spec.label_file).expanduser(), folder)
    elif not spec.labels:
        train, val = folders.every_image(found.train), None if found.val is None else folders.every_image(found.val)
    else:
        skip = spec.on_missing_classes == "skip"
        train = folders.labelled(found.train, skip=skip)
        val = None if found.val is None else folders.labelled(found.val, train.classes, skip=skip)
    notes = (*found.notes, *train.notes, *(val.notes if val is not None else ()))
    return Source(name, train.part, val and val.part, train.classes, size=size, notes=notes, is_folder=True)


def _labelled_by_file(found: Folders, path: Path, folder: Path) -> tuple[Found, Found | None]:
    """The images of both parts that a label file names; None for a part to validate on of which it names none."""
    labels = label_file.read(path)
    used: set[str] = set()
    parts: list[Found] = []
    for place in (found.train, *([] if found.val is None else [found.val])):
        images = folders.every_image(place)
        prefix = f"{place.name}/" if place.parent == folder and place != folder else ""
        part = label_file.apply(labels, images.part, labels.classes, used, prefix=prefix)
        lacking = len(images.part) - len(part)
        notes = (f'{lacking} images of "{place}" have no row in "{path}" and are not used',) if lacking else ()
        parts.append(Found(part, labels.classes, notes))
    label_file.refuse_unused(labels, used, folder)
    train, *val = parts
    train = Found(train.part, train.classes, (*labels.notes, *train.notes))
    return train, val[0] if val and len(val[0].part) else None


def find_for_scoring(spec: DataSpec, classes: tuple[str, ...]) -> Source:
    """All labelled images of a source, to score a model of these classes on them.

    Of a source with a validation part it is that part. The images are `Source.val`; the training part is empty. Classes
    are matched by their names, those of shards by their numbers.

    Args:
        spec: What to open.
        classes: What the model distinguishes, in the order of its outputs.

    Raises:
        UserError: There is no such source, or it has images of other classes.
    """
    folder = Path(spec.source).expanduser()
    if spec.source.partition(":")[0] not in (*NAMED_SOURCES, "imagenet", "shards") and folder.is_dir():
        folders.check_folder(folder)
        chosen = layout.choose(folders.folders_in(folder))
        within = next((name for name in (chosen.val, chosen.train) if name and name not in classes), None)
        place = folder if within is None else folder / within
        notes = () if within is None else (f"scored on its part {within}/",)
        if spec.label_file is not None:
            found = _labelled_by_file(Folders(place), Path(spec.label_file).expanduser(), folder)[0]
        else:
            _refuse_unknown(spec.source, folders.class_folders(place), classes)
            found = folders.labelled(place, classes, skip=True)
        part, names, notes, name, size = found.part, found.classes, (*notes, *found.notes), folder.resolve().name, None
    else:
        source = _found(spec)
        part, names, name, size = source.val or source.train, source.classes, source.name, source.size
        notes = source.notes
    assert part.labels is not None
    if spec.source.startswith("shards:") and len(names) <= len(classes):
        names = classes[: len(names)]  # shards have numbers alone
    present = [names[number] for number in np.unique(part.labels)]
    _refuse_unknown(spec.source, present, classes)
    place_of = np.array([classes.index(one) if one in classes else -1 for one in names], np.int64)
    part = replace(part, labels=place_of[part.labels])
    lacking = [one for one in classes if one not in present]
    if lacking:
        notes = (*notes, f"no images of {len(lacking)} of the {len(classes)} classes: {folders.some(lacking)}")
    return Source(name, part.take(np.zeros(0, np.int64)), part, classes, size=size, notes=notes)


def _refuse_unknown(source: str, found: Sequence[str], classes: tuple[str, ...]) -> None:
    unknown = [name for name in found if name not in classes]
    if unknown:
        hint = did_you_mean(unknown[0], classes)
        raise UserError(
            f'"{source}" has classes that the model does not know: {folders.some(unknown)}{hint}; '
            f"its {len(classes)} classes are {folders.some(list(classes))}; rename these folders, or leave them out"
        )


def _shards(pattern: str, spec: DataSpec) -> Source:
    train, classes, notes = shards.load(pattern, labels=spec.labels)
    val = None
    if spec.val is not None:
        val, found, more = shards.load(spec.val.removeprefix("shards:"), labels=spec.labels)
        notes = (*notes, *more)
        if len(found) > len(classes):
            raise UserError(f'"{spec.val}" has class numbers up to {len(found) - 1}, train up to {len(classes) - 1}')
    return Source(Path(pattern).parent.resolve().name, train, val, classes, notes=notes)


def _refuse_val(spec: DataSpec) -> None:
    if spec.val is not None:
        raise UserError(f'"{spec.source}" takes no second folder (--val "{spec.val}"): only folders and shards do')


def _unknown(source: str) -> str:
    known = (*NAMED_SOURCES, *PREFIXED_SOURCES)
    if "/" not in source and (hint := did_you_mean(source, NAMED_SOURCES)):
        return f'there is no data source "{source}"{hint}'
    return f'data folder "{source}" does not exist (other sources: {", ".join(known)})'
