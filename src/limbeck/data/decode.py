"""From the bytes of an image file to 8-bit RGB pixels of one size, whatever kind of image it is."""

import io
import math
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image, features

from limbeck.data.parts import Pixels

Box = tuple[float, float, float, float]
"""left, top, right, bottom; as fractions of width and height."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

_ORIENTATION = 274  # the EXIF tag
TURNED = (5, 6, 7, 8)
"""EXIF orientations that turn by a right angle: width and height change places."""

_PNG_ORIENTED = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation to what undoes it
_REFUSED = ("F", "LAB", "HSV")  # float and colour spaces without a stated range


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
"""Read, whatever the file's name is. Of Pillow's forty others EPS, for one, is handed to a program (Ghostscript)."""

MOST_PIXELS = 50_000_000
"""Pixels of a decoded image: at four bytes each, three copies of them at most (transparency) are 600 MB."""

_DECODED = 32  # images that are decoded to find how bright they are
_DARK = 16

_VERSION = 2  # to be raised by whoever changes a pixel in this file


def version() -> str:
    """Equal if the same bytes become the same pixels: of this file and of the libraries below it."""
    libraries = [f"{name} {features.version(name)}" for name in ("jpg", "libjpeg_turbo", "jpg_2000", "webp", "avif")]
    return ", ".join([f"decode {_VERSION}", f"Pillow {PIL.__version__}", platform.machine(), *libraries])


class BadImageError(Exception):
    """One image cannot be read; the message is why."""


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings (odd EXIF, large images): an image is either read or refused with a reason.

    Warning filters belong to the process: enter this once around a pool of threads, not in each thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        yield


def rgb(data: bytes | Pixels, *, needed: int | None = None, bits: int = 16) -> Image.Image:
    """Decode one image to RGB.

    Greyscale and palettes are expanded, CMYK is converted, 16-bit greyscale keeps the upper eight of the bits in use,
    transparency is laid on white, the EXIF orientation is applied (an EXIF block that cannot be read has none), of an
    animation or a file of several pages the first is taken.
    Refused: float and 32-bit greyscale (no stated range), formats other than `FORMATS`, and decompression bombs: more
    pixels than Pillow's limit in the header, or than `MOST_PIXELS` to decode.

    Args:
        data: A file's bytes, or pixels (which are passed on).
        needed: If given, a large JPEG may be decoded at a half, a quarter or an eighth of its size (by its DCT), as
            long as the shorter side stays at least twice this many pixels.
        bits: How many bits the values of 16-bit greyscale use.

    Raises:
        BadImageError: The bytes are not an image, are truncated, or are of a refused kind.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    try:
        image = _opened(data)
        if needed is not None:
            scale = 2 * needed / min(image.size)
            if scale < 1:
                width, height = image.size
                image.draft(image.mode, (math.ceil(width * scale), math.ceil(height * scale)))
        _check_pixels(image, MOST_PIXELS)
        image.load()
        if (turn := _TRANSPOSED.get(_orientation(image))) is not None:
            image = image.transpose(turn)
        return _to_rgb(image, bits)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds of exception on broken bytes
        what = "not an image that Pillow can read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadImageError(
            "the file is empty" if not data else what.splitlines()[0] if what else repr(error)
        ) from None


def shorter_side(data: bytes | Pixels) -> int:
    """The shorter side in pixels, from the header alone.

    Raises:
        BadImageError: The header cannot be read.
    """
    if isinstance(data, np.ndarray):
        return min(data.shape[:2])
    try:
        return min(_opened(data).size)
    except Exception:
        raise BadImageError("not an image that Pillow can read") from None


def size(data: bytes | Pixels) -> tuple[int, int]:
    """Height and width as `rgb` gives them, from the header alone.

    Raises:
        BadImageError: The header cannot be read.
    """
    height, width, orientation = stored(data)
    return (width, height) if orientation in TURNED else (height, width)


def stored(data: bytes | Pixels) -> tuple[int, int, int]:
    """Height and width as the file stores them, and its EXIF orientation (1: stored upright), from the header alone.

    Raises:
        BadImageError: The header cannot be read.
    """
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1], 1
    try:
        image = _opened(data)
        # To look for the orientation of a PNG, Pillow decodes all of it, as it may stand behind the pixels.
        plain = image.format == "PNG" and not any(mark in data for mark in _PNG_ORIENTED)
        orientation = 1 if plain else _orientation(image)
    except BadImageError:
        raise
    except Exception:
        raise BadImageError("not an image that Pillow can read") from None
    return image.height, image.width, orientation if orientation in range(1, 9) else 1


class Brightest(NamedTuple):
    """The largest value of an image, and whether it is a 16-bit one."""

    value: int
    deep: bool


def brightest(data: bytes | Pixels) -> Brightest | None:
    """The largest value of an image; None for arrays, and for JPEG and other formats that have 8 bits.

    Raises:
        BadImageError: The image cannot be read.
    """
    if isinstance(data, np.ndarray):
        return None
    try:
        image = _opened(data)
        if image.format not in ("PNG", "TIFF", "PPM"):
            return None
        _check_pixels(image, MOST_PIXELS)
        if deep := _is_deep(image):
            return Brightest(int(np.asarray(image).max()), deep)
        return Brightest(int(np.asarray(image.convert("RGB")).max()), deep)
    except BadImageError:
        raise
    except Exception:
        raise BadImageError("not an image that Pillow can read") from None


def used_bits(read: Callable[[int], bytes | Pixels], count: int) -> tuple[int, tuple[str, ...]]:
    """How many bits the 16-bit images of a set use, by a sample of them, and what is to be said about it.

    Cameras and microscopes write 12 bits into files of 16, which would be nearly black.

    Args:
        read: Gives the bytes of one of them.
        count: How many there are.
    """
    found: list[Brightest] = []
    with quiet_pillow():
        for i in np.unique(np.linspace(0, count - 1, _DECODED).astype(int)):
            try:
                value = brightest(read(int(i)))
            except (BadImageError, OSError):
                continue
            found += [value] if value is not None else []
    if deep := [value for value, is_deep in found if is_deep]:
        bits = next((bits for bits in (8, 10, 12, 14) if max(deep) < 1 << bits), 16)
        seen = f"16-bit images are read as {bits}-bit ones: the largest value of {len(deep)} is {max(deep)}"
        return bits, (seen,) if bits < 16 else ()
    if found and (top := max(value for value, _ in found)) < _DARK:
        return 16, (
            f"the images are nearly black: the largest value of {len(found)} is {top} of 255; 16-bit colors that use "
            "12 bits or fewer become so, and masks with class numbers are: convert them to 8 bits",
        )
    return 16, ()


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, stored upright, where it cannot be read: odd EXIF says nothing about the pixels."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises half a dozen kinds of exception on broken EXIF
        return 1


def _opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_pixels(image, Image.MAX_IMAGE_PIXELS or MOST_PIXELS)  # above this Pillow only warns
    return image


def _check_pixels(image: Image.Image, most: int) -> None:
    pixels = image.width * image.height
    if pixels > most:
        raise BadImageError(f"{pixels} pixels are more than {most}: a decompression bomb, or to be made smaller first")


def square(image: Image.Image, side: int, share: float = 1.0) -> UInt8[np.ndarray, "3 s s"]:
    """Resize the shorter side to side / share, then take the centre: in one bicubic resize of the centred square."""
    width, height = image.size
    half = min(width, height) * share / 2
    return crop(image, side, (0.5 - half / width, 0.5 - half / height, 0.5 + half / width, 0.5 + half / height))


def crop(image: Image.Image, side: int, box: Box = WHOLE) -> UInt8[np.ndarray, "3 s s"]:
    """Cut out `box` and resize it to side x side (bicubic, antialiased)."""
    width, height = image.size
    edges = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    edges = (max(0.0, edges[0]), max(0.0, edges[1]), min(float(width), edges[2]), min(float(height), edges[3]))
    if not (image.size == (side, side) and edges == (0, 0, side, side)):
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=edges)
    return np.asarray(image).transpose(2, 0, 1)


def _to_rgb(image: Image.Image, bits: int) -> Image.Image:
    if image.mode in _REFUSED:
        raise BadImageError(f'pixels of kind "{image.mode}" have no stated range: convert the file to 8 bits')
    if _is_deep(image):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError("32-bit greyscale has no stated range: convert the file to 8 bits")
        if values.max() >= 1 << bits:
            raise BadImageError(
                f"a value of {values.max()}, where others of its 16-bit images use {bits} bits: convert them to 8 bits"
            )
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
