"""Sets that come as arrays: digits, Fashion-MNIST, CIFAR."""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64, UInt8

from limbeck.data import parts
from limbeck.data.parts import Part, Pixels
from limbeck.errors import UserError

SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_DIGITS_VAL = 500 / 1797
_MOST_IDX = 1 << 28  # four times Fashion-MNIST, whatever a few kilobytes unpack to
_T = TypeVar("_T")


@dataclass(frozen=True)
class ArrayReader:
    """Reads rows of an array; greyscale is repeated."""

    pixels: UInt8[np.ndarray, "n h w *c"]

    def __call__(self, row: int) -> Pixels:
        """The pixels of one image."""
        image = self.pixels[row]
        return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def part(pixels: UInt8[np.ndarray, "n h w *c"], labels: Int64[np.ndarray, " n"], name: str) -> Part:
    """A part from an array; the images are called NAME-00000, NAME-00001, ..."""
    return Part(
        names=tuple(f"{name}-{i:05d}" for i in range(len(labels))),
        reader=ArrayReader(pixels),
        rows=np.arange(len(labels)),
        sizes=np.full(len(labels), pixels[0].size, np.int64),
        labels=labels,
        content=hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).hexdigest(),
    )


def digits() -> tuple[Part, Part, tuple[str, ...]]:
    """(train, val, classes): 1,797 handwritten digits, 8 x 8, that scikit-learn carries with it.

    Values 0 to 16 become 0 to 255. 500 are held back for validation, the same share
    of each digit, always the same ones.
    """
    spec = find_spec("sklearn")  # its import takes two seconds
    assert spec is not None
    assert spec.origin is not None
    values = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels = np.rint(values[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, val = parts.hold_back(part(pixels, values[:, -1].astype(np.int64), "digit"), _DIGITS_VAL)
    return train, val, tuple(str(d) for d in range(10))


def fashion_mnist(folder: Path | None, cache: Path) -> tuple[Part, Part, tuple[str, ...]]:
    """(train, val, classes) of Fashion-MNIST, 28 x 28, from its IDX files, compressed or not.

    Args:
        folder: Where the files are. None: where Debian keeps them, else the cache, into which they are downloaded.
        cache: Limbeck's folder for downloads.

    Raises:
        UserError: The files are missing or broken, or the download failed.
    """
    downloaded = cache / "FashionMNIST" / "raw"
    if folder is None:
        folder = SYSTEM_FASHION_MNIST if _idx_files(SYSTEM_FASHION_MNIST) else downloaded
        if folder == downloaded and not _idx_files(downloaded):
            from torchvision.datasets import FashionMNIST

            _download("fashion-mnist", cache, lambda: FashionMNIST(str(cache), download=True))
    files = _idx_files(folder)
    if files is None:
        raise UserError(f'no Fashion-MNIST in "{folder}": expected train-images-idx3-ubyte and three more, or .gz')
    train = part(_idx(files[0], 3), _idx(files[1], 1).astype(np.int64), "train")
    val = part(_idx(files[2], 3), _idx(files[3], 1).astype(np.int64), "test")
    return train, val, _FASHION_CLASSES


def cifar(classes: int, folder: Path | None, cache: Path) -> tuple[Part, Part, tuple[str, ...]]:
    """(train, val, classes) of CIFAR-10 or CIFAR-100, 32 x 32, read by torchvision.

    The published files are pickles, which can run code when read. Torchvision opens them only after their MD5 sums,
    which it carries with it, were found right; files that differ are refused.

    Args:
        classes: 10 or 100.
        folder: Holds the unpacked folder `cifar-10-batches-py` or `cifar-100-python`. None: the cache, with download.
        cache: Limbeck's folder for downloads.

    Raises:
        UserError: The files are missing or differ, or the download failed.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if classes == 10 else CIFAR100
    root = str(cache if folder is None else folder)
    try:
        train = kind(root, train=True)
    except RuntimeError:
        if folder is not None:
            raise UserError(
                f'no CIFAR-{classes} in "{folder}", or its checksums are wrong: expected the folder {kind.base_folder}'
            ) from None
        train = _download(f"cifar{classes}", cache, lambda: kind(root, train=True, download=True))
    val = kind(root, train=False)
    names = tuple(train.classes)
    return (
        part(train.data, np.array(train.targets, np.int64), "train"),
        part(val.data, np.array(val.targets, np.int64), "test"),
        names,
    )


def _download(name: str, cache: Path, get: Callable[[], _T]) -> _T:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return get()
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision wraps the last one in a RuntimeError
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f'{name} is not in "{cache}" and cannot be downloaded: {why} ({name}:FOLDER reads a copy)'
        ) from None


def _idx_files(folder: Path) -> list[Path] | None:
    files: list[Path] = []
    for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        found = next((f for f in (folder / f"{stem}-ubyte", folder / f"{stem}-ubyte.gz") if f.is_file()), None)
        if found is None:
            return None
        files.append(found)
    return files


def _idx(file: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """IDX: a magic number (unsigned bytes, so many dimensions), the sizes, the values."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            magic, *shape = struct.unpack(f">{dimensions + 1}I", stream.read(4 * (dimensions + 1)))
            if magic != 0x0800 + dimensions:
                raise ValueError("wrong magic number")
            if math.prod(shape) > _MOST_IDX:
                raise ValueError(f"it declares {math.prod(shape)} values, and at most {_MOST_IDX} are read")
            data = stream.read(math.prod(shape) + 1)  # one more, to notice that there is more
        return np.frombuffer(data, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f'"{file}" is not a complete IDX file: {error}') from None
