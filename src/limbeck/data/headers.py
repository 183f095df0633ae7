"""How large an image is, from the beginning of its file."""

from typing import NamedTuple

from limbeck.data import decode
from limbeck.storage.untrusted import read_image_file

_HEAD = 1 << 18  # bytes; the header of nearly every JPEG file is shorter, and its pixels are many more

Size = tuple[int, int]
"""Height and width."""


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        height: Of the stored pixels.
        width: Of the stored pixels.
        orientation: The EXIF orientation; 1: stored upright.
    """

    height: int
    width: int
    orientation: int

    @property
    def stored(self) -> Size:
        """Height and width as the file stores them."""
        return self.height, self.width

    @property
    def shown(self) -> Size:
        """Height and width of the upright image, which is what is decoded."""
        return (self.width, self.height) if self.orientation in decode.TURNED else (self.height, self.width)


def read_header(path: str) -> Header | str:
    """Stored size and orientation of an image file; why it cannot be read."""
    try:
        head = read_image_file(path, _HEAD)
        if head.startswith(b"\xff\xd8") and len(head) == _HEAD:  # a JPEG file begins with all that is asked for
            try:
                return Header(*decode.stored(head))
            except decode.BadImageError:  # it begins with more than that
                pass
        return Header(*decode.stored(head if len(head) < _HEAD else read_image_file(path)))
    except (decode.BadImageError, OSError) as error:
        return str(error)
