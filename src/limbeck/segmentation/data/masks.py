"""From the bytes of a mask file to the class of each pixel."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from limbeck.data import decode
from limbeck.segmentation.batch import UNKNOWN, VOID
from limbeck.segmentation.data.faults import Fault

LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP")
_TABLE = 1 << 16
_TRUE = 255  # of a mask of one bit

Color = tuple[int, int, int]


class BadMaskError(Exception):
    """One mask cannot be used.

    Attributes:
        fault: Its kind.
    """

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault


@dataclass(frozen=True)
class Values:
    """What the numbers in masks stand for.

    Attributes:
        classes: Names of the classes.
        numbers: Number of each class in the files.
        void: Numbers in the files that are no class.
        colors: The number that each color stands for; empty where masks hold numbers.
        is_told: Whether a list says the classes; else they are those that occur.
    """

    classes: tuple[str, ...]
    numbers: tuple[int, ...]
    void: frozenset[int]
    colors: Mapping[Color, int]
    is_told: bool = True

    def table(self) -> UInt8[np.ndarray, " m"]:
        """Class of each number that a file may hold; ``VOID`` or ``UNKNOWN`` where it stands for none."""
        found = np.full(_TABLE, UNKNOWN, np.uint8)
        found[list(self.void)] = VOID
        found[list(self.numbers)] = np.arange(len(self.numbers))
        return found

    def only(self, classes: tuple[str, ...]) -> "Values":
        """These classes alone, in this order, by their names; the others are void."""
        at = dict(zip(self.classes, self.numbers, strict=True))
        numbers = tuple(at[name] for name in classes)
        return replace(self, classes=classes, numbers=numbers, void=self.void | (set(self.numbers) - set(numbers)))


def read_numbers(data: bytes, colors: Mapping[Color, int]) -> np.ndarray:
    """The number of each pixel of a mask file, ``(h, w)``: of a palette its index, of a color what the table says.

    Raises:
        BadMaskError: It is no mask that can be used.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format not in LOSSLESS:
                raise BadMaskError(Fault.LOSSY, str(image.format))
            if getattr(image, "n_frames", 1) > 1:
                raise BadMaskError(Fault.PAGES, f"{image.n_frames} pages")  # pyright: ignore[reportAttributeAccessIssue]
            if image.width * image.height > decode.MOST_PIXELS:
                raise BadMaskError(Fault.UNREADABLE, f"{image.width} x {image.height} pixels are too many")
            image.load()
            return _numbers(image, colors)
    except BadMaskError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds of exception on broken bytes
        what = "not an image that Pillow can read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadMaskError(
            Fault.UNREADABLE, "the file is empty" if not data else (what or repr(error)).splitlines()[0]
        ) from None


def _numbers(image: Image.Image, colors: Mapping[Color, int]) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() < _TRUE:
            raise BadMaskError(Fault.TRANSPARENT, f"{int((alpha < _TRUE).sum())} pixels")
        image = image.convert("RGB" if image.mode == "RGBA" else "L" if image.mode == "LA" else "P")
    if colors:
        return _of_colors(np.asarray(image.convert("RGB")), colors)
    if image.mode == "RGB":
        pixels = np.asarray(image)
        if not (pixels == pixels[:, :, :1]).all():
            raise BadMaskError(Fault.COLORED, "RGB")
        return pixels[:, :, 0]
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode not in ("L", "P", "I", "I;16", "I;16B", "I;16L"):
        raise BadMaskError(Fault.DEEP, f'pixels of kind "{image.mode}"')
    found = np.asarray(image)
    if found.max() >= _TABLE or found.min() < 0:
        raise BadMaskError(Fault.DEEP, f"{int(found.min())} to {int(found.max())}")
    return found


def _of_colors(pixels: UInt8[np.ndarray, "h w 3"], colors: Mapping[Color, int]) -> Int64[np.ndarray, "h w"]:
    known = sorted((int(_key(*color)), number) for color, number in colors.items())
    keys, numbers = np.array(known, np.int64).T
    wide = pixels.astype(np.int64)
    found = _key(wide[:, :, 0], wide[:, :, 1], wide[:, :, 2])
    place = np.searchsorted(keys, found).clip(max=len(keys) - 1)
    unknown = keys[place] != found
    if unknown.any():
        first = pixels[unknown][0]
        raise BadMaskError(Fault.COLOR, f"{int(unknown.sum())} pixels, as {' '.join(map(str, first.tolist()))}")
    return numbers[place]


def _key(red: "int | np.ndarray", green: "int | np.ndarray", blue: "int | np.ndarray") -> "int | np.ndarray":
    return red * 65536 + green * 256 + blue
