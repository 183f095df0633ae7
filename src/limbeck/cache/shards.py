"""One shard: a safetensors file that carries its own checksum, so that it is there whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from limbeck.cache.identity import checksum_of
from limbeck.errors import UserError
from limbeck.storage.files import replacing
from limbeck.storage.untrusted import check_tensor_file

_CHECKSUM = "blake2b"  # the one entry of the metadata: safetensors writes several in any order


def write_shard(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a shard atomically; equal tensors give equal bytes.

    Raises:
        UserError: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(_encoded(tensors))


def shard_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the file that `write_shard` would make."""
    return len(_encoded(tensors))


def open_shard(path: Path) -> dict[str, Tensor]:
    """A shard's tensors, mapped from the file: a page is read when it is used, and shared by all processes.

    Raises:
        UserError: If the file is missing, cut off, or no shard.
    """
    return _opened(path)[0]


def verify_shard(path: Path) -> None:
    """Read a whole shard and compare its checksum.

    Raises:
        UserError: If it is damaged.
    """
    tensors, checksum = _opened(path)
    if checksum_of(tensors) != checksum:
        raise damaged(path, "its checksum differs")


def damaged(path: Path, why: str) -> UserError:
    """The error that names a damaged shard and what to do."""
    return UserError(f"{path} is damaged ({why}); delete that file, and it is computed again")


def _opened(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        check_tensor_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata.get(_CHECKSUM, "")  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} is gone; start again, and what is missing of the cache is computed again") from None
    except Exception as error:  # safetensors raises its own type for every defect of a file
        raise damaged(path, str(error)) from error


def _encoded(tensors: Mapping[str, Tensor]) -> bytes:
    return save(dict(tensors), {_CHECKSUM: checksum_of(tensors)})
