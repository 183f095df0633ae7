"""What a run records of its images when it starts, and what of them is another later."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.assembly.tasks import AnyData
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.logs.records import Record
from limbeck.storage.files import save_json
from limbeck.storage.untrusted import read_object

RECORD = "data.json"
"""In a run folder, from the start of the run on."""

_ROWS = {
    "train": "training images",
    "val": "validation images",
    "classes": "classes",
    "size": "side in pixels",
    "bits": "bits of 16-bit images",
    "cropped": "what random crops are taken out of",
    "augmentation": "source of the augmentation",
    "fingerprint": "names, sizes and labels of the images",
    "content": "bytes of the images",
}
_LONGEST = 60  # letters of a list of classes in a message


@dataclass(frozen=True)
class Row:
    """One thing that was compared.

    Attributes:
        what: Its name.
        then: As the first run has it; "not recorded" where it is of an earlier version that did not write it.
        now: As the second one has it.
        same: Whether they are equal; None where one of them is not recorded.
    """

    what: str
    then: str
    now: str
    same: bool | None


def row_of(what: str, then: object, now: object) -> Row:
    """Two values, compared."""
    same = None if then is None or now is None else then == now
    return Row(what, *("not recorded" if value is None else str(value) for value in (then, now)), same=same)


def record_of(data: AnyData) -> dict[str, Any]:
    """Counts, classes and digests of opened images; those that are kept in memory are read for it."""
    images, _, source = data.fingerprint.partition("-")
    return {
        "name": data.name,
        "train": data.train_count,
        "val": data.val_count,
        "size": data.size,
        "cropped": data.cropped or "no random crops",
        "bits": data.bits,
        "classes": list(data.classes),
        **({"augmentation": source} if source else {}),
        "fingerprint": images,
        "content": data.content(),
    }


def compare_images(then: Record, now: Record) -> list[Row]:
    """Two records, compared: counts, classes, names and sizes, and the bytes where both have read them."""
    rows = {name: row_of(what, _shown(then.get(name)), _shown(now.get(name))) for name, what in _ROWS.items()}
    return [row for name, row in rows.items() if name != "augmentation" or name in {*then, *now}]


def changes_of(then: Record, now: Record) -> str:
    """What is another in the second of two records, as words; empty where nothing is."""
    changed = [row for row in compare_images(then, now) if row.same is False]
    digests = {_ROWS[name] for name in ("fingerprint", "content")}
    return "; ".join(
        row.what if row.what in digests else f"{row.what}: {_short(row.then)} -> {_short(row.now)}" for row in changed
    )


def keep_or_compare(folder: Path, data: AnyData) -> None:
    """Write the record of a run's images when it starts; when it is resumed, compare them with it.

    Raises:
        UserError: The images are no longer those that the run was started with.
    """
    path, now = folder / RECORD, record_of(data)
    if path.is_file():
        if changed := changes_of(read_object(path, "fingerprint"), now):
            raise UserError(
                f"the images have changed since {folder} was started: {changed}; "
                "bring them back, start a new run with another --out, or remove that folder"
            )
    elif collectives.rank() == 0:
        save_json(now, path)


def _shown(value: object) -> object:
    return ", ".join(str(name) for name in value) if isinstance(value, list) else value


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
