"""Data sets of the Hugging Face hub, through `datasets` (the extra `hub`)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.data import layout
from limbeck.data.parts import Part
from limbeck.errors import UserError
from limbeck.storage.untrusted import check_image_size, read_image_file

_IMAGES = ("image", "images", "img", "picture", "photo", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class HubReader:
    """Reads the encoded images of one column."""

    rows: Any  # a datasets.Dataset, whose package is optional
    column: str

    def __call__(self, row: int) -> bytes:
        """The bytes of one image, of a limited size as in a folder."""
        image = self.rows[row][self.column]
        if image is None:
            raise OSError("the row has no image")
        if image["bytes"] is not None:
            check_image_size(len(image["bytes"]))
            return image["bytes"]
        return read_image_file(image["path"])


def load(name: str, *, labels: bool) -> tuple[Part, Part | None, tuple[str, ...], tuple[str, ...]]:
    """(train, val or None, classes, notes) of `NAME` or `NAME:CONFIG`.

    The splits are found as the parts of a folder are (`layout`). Images are those of the only column of images, or of
    the one called image, labels those of a column called label, labels, fine_label, class or target. Code of a
    repository is never run.

    Raises:
        UserError: `datasets` is not installed, the set cannot be had, or has no such split or columns.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f'"hf/{name}" needs the extra "hub": pip install "limbeck[hub]"') from None
    repository, _, config = name.partition(":")
    try:
        splits = datasets.load_dataset(repository, config or None)
    except Exception as error:  # datasets, huggingface_hub, httpx and pyarrow each have exceptions of their own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'cannot load "hf/{name}": {why}') from None
    chosen = layout.choose([str(key) for key in splits])
    if chosen.train is None:
        raise UserError(f'"hf/{name}" has no split "train" (it has {", ".join(str(key) for key in splits)})')
    train = splits[chosen.train]
    image = _image_column(
        name, [key for key, kind in train.features.items() if isinstance(kind, datasets.Image)], train
    )
    label = next((key for key in _LABELS if key in train.features), None) if labels else None
    if labels and label is None:
        raise UserError(
            f'"hf/{name}" has no column {", ".join(_LABELS)} (it has {", ".join(train.features)}): use --no-labels'
        )
    notes = [f'images of column "{image}"' + (f', labels of column "{label}"' if label else ""), *chosen.notes]
    classes = _classes(name, train, label) if label else ()
    val = splits[chosen.val] if chosen.val is not None else None
    if val is not None and label and not any(_is_label(value) for value in val[label]):
        notes.append(f'split "{chosen.val}" has no labels and is not used')  # hidden ones, as of a competition
        val = None
    raw = datasets.Image(decode=False)
    return (
        _part(name, train.cast_column(image, raw), image, label, classes),
        None if val is None else _part(name, val.cast_column(image, raw), image, label, classes),
        classes,
        tuple(notes),
    )


def _image_column(name: str, found: list[str], rows: Any) -> str:
    """The only column of images, or of several the one that is called so; another may hold masks or depths."""
    if not found:
        raise UserError(f'"hf/{name}" has no column of images (it has {", ".join(rows.features)})')
    usual = [key for key in found if key.lower() in _IMAGES]
    if len(found) > 1 and len(usual) != 1:
        raise UserError(
            f'"hf/{name}" has several columns of images ({", ".join(found)}): expected one, or one called "image"'
        )
    return usual[0] if usual else found[0]


def _is_label(value: object) -> bool:
    return value is not None and value != -1 and value == value  # NaN is not itself


def _classes(name: str, rows: Any, label: str) -> tuple[str, ...]:
    names = getattr(rows.features[label], "names", None)
    if names:
        return tuple(names)
    found = {value for value in rows[label] if _is_label(_single(name, label, value))}
    return tuple(str(value) for value in sorted(found))


def _single(name: str, label: str, value: object) -> object:
    if isinstance(value, list | tuple | dict):
        raise UserError(
            f'column "{label}" of "hf/{name}" has several labels in a row ({value!r:.60}): expected one class for each'
        )
    return value


def _part(name: str, rows: Any, image: str, label: str | None, classes: tuple[str, ...]) -> Part:
    numbers = None
    if label:
        values = [_single(name, label, value) for value in rows[label]]
        if without := [row for row, value in enumerate(values) if not _is_label(value)]:
            raise UserError(
                f'column "{label}" of "hf/{name}", split {rows.split}: {len(without)} of {len(values)} rows have no '
                f"label, first row {without[0]}; remove them from a copy of the set, or use --no-labels"
            )
        if not getattr(rows.features[label], "names", None):
            position = {one: i for i, one in enumerate(classes)}
            values = [position.get(str(value), -1) for value in values]
        numbers = np.array(values, np.int64)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(classes)):
            raise UserError(f'column "{label}" of "hf/{name}", split {rows.split}, has labels that train does not have')
    return Part(
        names=tuple(f"{i:08d}" for i in range(len(rows))),
        reader=HubReader(rows, image),
        rows=np.arange(len(rows)),
        sizes=np.zeros(len(rows), np.int64),
        labels=numbers,
        content=f"{rows.info.dataset_name} {rows.info.config_name} {rows.split} {rows.info.dataset_size}",
    )
