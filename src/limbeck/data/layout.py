"""Which folders or splits are parts of a data set, in any case and under the usual names, and which are no classes."""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from limbeck.errors import UserError

Kind = Literal["train", "val", "test"]

_NAMES: dict[str, Kind] = {
    "train": "train", "training": "train", "trn": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "evaluation": "val",
    "test": "test", "testing": "test", "tst": "test", "holdout": "test",
}  # fmt: skip
_PREFERRED = tuple(_NAMES)
_AROUND = ("ilsvrc", "dataset", "set", "data", "images", "image", "imgs", "img", "split", "part")
_SYSTEM = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}

LAYOUTS = (
    "known layouts: FOLDER/CLASS/images; FOLDER/train/CLASS/images and FOLDER/val/CLASS/images; "
    "images in any folder with --labels FILE.csv; images in any folder with --no-labels"
)


def is_hidden(name: str) -> bool:
    """Whether a folder is hidden or made by an archiver or a system (``__MACOSX``), and so holds no images."""
    return name.startswith(".") or name.lower() in _SYSTEM


def part_of(name: str) -> Kind | None:
    """The part that a name stands for.

    Example:
        >>> [part_of(name) for name in ("Train", "Testing", "valid_set", "train2017", "trains", "cat")]
        ['train', 'test', 'val', 'train', None, None]
    """
    return _NAMES.get(_plain(name))


def _plain(name: str) -> str:
    plain = re.sub(r"[\W\d_]+", "", name.lower())
    for word in _AROUND:
        plain = plain.removesuffix(word) or plain
        plain = plain.removeprefix(word) or plain
    return plain


class Chosen(NamedTuple):
    """The names that are used, and what is to be said about it."""

    train: str | None
    val: str | None
    notes: tuple[str, ...]


def choose(names: Iterable[str]) -> Chosen:
    """The parts to train and to validate on; a test part is validated on only where there is no other.

    Raises:
        UserError: Several parts are there to train on, and none is just called train.
    """
    order = {kind: _of(names, kind) for kind in ("train", "val", "test")}
    train, used = (order["train"] or [None])[0], [*order["val"], *order["test"]]
    val = used[0] if used else None
    notes: list[str] = []
    if len(order["train"]) > 1 and str(train).lower() != "train":
        raise UserError(f"which part is to be trained on: {', '.join(order['train'])}? Rename it to train")
    if train is not None and val is not None and not order["val"]:
        notes.append(f'there is no validation part, so the best epoch is chosen on "{val}"')
    unused = [*order["train"][1:], *used[1:]]
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    return Chosen(train, val, tuple(notes))


def _of(names: Iterable[str], kind: str) -> list[str]:
    return sorted((n for n in names if part_of(n) == kind), key=lambda n: (_PREFERRED.index(_plain(n)), len(n), n))
