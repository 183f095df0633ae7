"""Write files so that they are there as a whole or not at all, and read weights that are not code."""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from limbeck.errors import UserError
from limbeck.storage import manifest
from limbeck.storage.untrusted import check_tensor_file


@contextmanager
def replacing(path: Path, *, only_new: bool = False) -> Generator[Path, None, None]:
    """A temporary path beside ``path``; what is written there takes the place of ``path`` at once, or not at all.

    Args:
        path: The file.
        only_new: Leave a file that is there as it is; of several processes at once the first one writes.

    Raises:
        UserError: If the disk is full or the folder cannot be written; the message names the path.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}: it is a folder, a pipe or a device; expected a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors makes its files readable for their owner only
        if not (only_new and _link(temporary, path)):
            temporary.replace(path)
        manifest.flush(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its name unless another one has it; False if the file system has no links."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return True
    except OSError:
        return path.exists()
    return True


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict to a safetensors file that loads with ``strict=True``; tied tensors are written twice."""
    with replacing(path) as temporary:
        write_tensors(state, temporary)


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, in place.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, path)
    except Exception as error:  # the Rust writer reports a full disk as its own SafetensorError
        raise OSError(None, str(error)) from error


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write what ``torch.load`` reads with ``weights_only=True``, in place.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        with path.open("wb") as file:  # given a name, torch would not say that the disk is full
            torch.save(dict(state), file)
    except RuntimeError as error:
        cause = error.__context__
        raise cause if isinstance(cause, OSError) else OSError(None, str(error).splitlines()[0]) from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: If the file is missing, cut off or no safetensors file.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        check_tensor_file(path)
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for every defect of a file
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error


def save_json(value: Mapping[str, Any], path: Path, *, only_new: bool = False) -> None:
    """Write a JSON file atomically; see :func:`replacing`."""
    save_text(json.dumps(value, indent=2) + "\n", path, only_new=only_new)


def save_text(text: str, path: Path, *, only_new: bool = False) -> None:
    """Write a text file atomically; see :func:`replacing`."""
    with replacing(path, only_new=only_new) as temporary:
        temporary.write_text(text, encoding="utf-8")
