"""Data sets of the Hugging Face hub, through `datasets` (the extra `hub`)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.data.folders import VAL_NAMES
from limbeck.data.parts import Part
from limbeck.errors import UserError
from limbeck.untrusted import check_image_size, read_image_file

_LABELS = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class HubReader:
    """Reads the encoded images of one column."""

    rows: Any  # a datasets.Dataset, whose package is optional
    column: str

    def __call__(self, row: int) -> bytes:
        """The bytes of one image, of a limited size as in a folder."""
        image = self.rows[row][self.column]
        if image["bytes"] is not None:
            check_image_size(len(image["bytes"]))
            return image["bytes"]
        return read_image_file(image["path"])


def load(name: str, *, labels: bool) -> tuple[Part, Part | None, tuple[str, ...]]:
    """(train, val or None, classes) of `NAME` or `NAME:CONFIG`.

    The split `train` is used, and the first of val, valid, validation, test. Images are those of the first column of
    images, labels those of a column called label, labels, fine_label, class or target. Code of a repository is never
    run.

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
    if "train" not in splits:
        raise UserError(f'"hf/{name}" has no split "train" (it has {", ".join(str(key) for key in splits)})')
    features = splits["train"].features
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if image is None:
        raise UserError(f'"hf/{name}" has no column of images (it has {", ".join(features)})')
    label = next((key for key in _LABELS if key in features), None) if labels else None
    if labels and label is None:
        raise UserError(
            f'"hf/{name}" has no column {", ".join(_LABELS)} (it has {", ".join(features)}): use --no-labels'
        )
    val = next((key for key in VAL_NAMES if key in splits), None)
    classes = _classes(splits["train"], label) if label else ()
    raw = datasets.Image(decode=False)
    return (
        _part(splits["train"].cast_column(image, raw), image, label, classes),
        _part(splits[val].cast_column(image, raw), image, label, classes) if val else None,
        classes,
    )


def _classes(rows: Any, label: str) -> tuple[str, ...]:
    names = getattr(rows.features[label], "names", None)
    return tuple(names) if names else tuple(str(value) for value in sorted(set(rows[label])))


def _part(rows: Any, image: str, label: str | None, classes: tuple[str, ...]) -> Part:
    numbers = None
    if label:
        values = list(rows[label])
        if not getattr(rows.features[label], "names", None):
            position = {name: i for i, name in enumerate(classes)}
            values = [position.get(str(value), -1) for value in values]
        numbers = np.array(values, np.int64)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(classes)):
            raise UserError(f'column "{label}" of a split has rows without a label, or labels that train has not')
    return Part(
        names=tuple(f"{i:08d}" for i in range(len(rows))),
        reader=HubReader(rows, image),
        rows=np.arange(len(rows)),
        sizes=np.zeros(len(rows), np.int64),
        labels=numbers,
        content=f"{rows.info.dataset_name} {rows.info.config_name} {rows.split} {rows.info.dataset_size}",
    )
