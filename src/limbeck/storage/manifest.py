"""A list of a folder's files with their sizes and checksums, by which damage is told from what was written."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "manifest.json"


def seal(folder: Path) -> None:
    """Write the manifest of a folder, and wait until the folder and everything in it has reached the disk.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("hello")
        >>> seal(folder)
        >>> flaw(folder) is None
        True
        >>> _ = (folder / "a.txt").write_text("hell")
        >>> flaw(folder)
        'a.txt is truncated: 4 of 5 bytes'
    """
    files = {path.name: _measure(path) for path in sorted(folder.iterdir()) if path.name != NAME}
    (folder / NAME).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        flush(path)
    flush(folder)


def flaw(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None where every file is as it was written."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        expected = {name: (int(of["bytes"]), str(of["sha256"])) for name, of in files.items()}
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # whatever a flipped bit makes of it
        return f"{NAME} cannot be read"
    for name, (size, digest) in expected.items():
        path = folder / name
        try:
            if Path(name).name != name or not path.is_file():  # no name may lead out of the folder
                return f"{name!a} is missing"
            found = path.stat().st_size
            if found != size:
                return f"{name} is truncated: {found} of {size} bytes" if found < size else f"{name} has grown"
            if _measure(path)["sha256"] != digest:
                return f"{name} has another checksum than when it was written"
        except (OSError, ValueError) as error:
            return f"{name!a} cannot be read: {getattr(error, 'strerror', None) or error}"
    return None


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    if path.is_dir() and os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _measure(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
