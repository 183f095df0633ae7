"""What several processes may begin at once: a folder, and the file that says what it holds.

Another process may write between any two looks. So a folder is listed before its card is looked for, and a card is
written only if there is none, and then read: all processes continue with the first one.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.storage.files import save_json
from limbeck.storage.untrusted import read_object


def check_free(folder: Path, card: str, *, kind: str, choose: str = "another --out") -> None:
    """Refuse a folder that holds something else.

    Args:
        folder: Where something starts or continues; it may be missing.
        card: Pattern of the file that says what it holds; with it the folder is not free, and the caller reads it.
        kind: What the card stands for, for the message.
        choose: What else the user may choose, for the message.

    Raises:
        UserError: It is no folder, or has files but no card.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder, choose {choose}")
    others: list[Path] = []
    with contextlib.suppress(FileNotFoundError):
        others += (path for path in folder.iterdir() if not _is_left(path))
    if others and not any(folder.glob(card)):  # after the listing
        raise UserError(f"{folder} is not empty and holds no {kind}; choose {choose}")


def first_card(mine: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a card holds: ``mine``, or what another process wrote before."""
    save_json(mine, path, only_new=True)
    return read_object(path, *mine)


def _is_left(path: Path) -> bool:
    """Whether a file is a lock, or half of one that a killed process was writing."""
    return path.name.startswith(".") and path.name.endswith((".tmp", ".lock"))
