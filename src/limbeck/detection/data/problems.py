"""What is wrong with annotations of boxes, collected and told in one report."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Literal, final

from limbeck.errors import UserError

OnBad = Literal["refuse", "skip"]

_SHOWN = 3  # examples of a kind
_WIDTH = 100  # of an example


class Fault(StrEnum):
    """The kinds of faults; the value is what the report says of one."""

    NEGATIVE = "box with negative width or height"
    EMPTY = "box without area"
    OUTSIDE = "box wholly outside of its image"
    OVER_EDGE = "box that reaches over the edge of its image"
    NOT_FINITE = "box with a number that is not finite"
    NO_BOX = "box that is not four numbers"
    TWICE = "box that is there twice"
    CATEGORY = "unknown category"
    CATEGORY_TWICE = "category that is there twice"
    CATEGORY_ENTRY = "category without a number or a name"
    IMAGE = "box of an unknown image"
    IMAGE_MISSING = "image that is missing"
    IMAGE_ID_TWICE = "two images of one number"
    IMAGE_TWICE = "image that is listed twice"
    IMAGE_ENTRY = "image without a number or a file name"
    IMAGE_SIZE = "image whose size is missing or wrong"
    IMAGE_TURNED = "image whose EXIF orientation leaves open which way its boxes lie (store its pixels upright)"
    IMAGE_UNREADABLE = "image that cannot be read"
    IMAGE_ELSEWHERE = "image outside of the folder of images"
    ID_TWICE = "two boxes of one number"
    ENTRY = "box without image or category"
    CROWD = "crowd mark that is neither 0 nor 1"
    FIELDS = "line that is not a class and four numbers, or an outline"
    RANGE = "coordinate outside of 0 to 1"
    NO_IMAGE = "labels without an image"
    FILE = "annotation file that cannot be read"


class Remark(StrEnum):
    """What is no fault, but was read in another way than it stands there; the value is what the log says."""

    OUTLINE = "outlines of objects: their boxes are used"
    KEYPOINTS = "lines with key points: their boxes are used"
    RENAMED = "images found under another folder, ending or case than the annotations name"
    TURNED = "images turned by their EXIF orientation: their boxes are turned with them"
    BACKGROUND = "images without a label file: used as images without objects"
    SAME_NAME = "categories of a name that is there twice, without boxes: left out"
    LEFT_OUT = "images left out, because a box of theirs was"


@final
class Problems:
    """Faults in the order in which they were met, by kind.

    Example:
        >>> problems = Problems()
        >>> problems.add(Fault.EMPTY, "annotation 3 of cat.jpg: 4 x 0")
        >>> list(problems.lines())
        ['box without area: 1 (annotation 3 of cat.jpg: 4 x 0)']
    """

    def __init__(self) -> None:
        self._counts: dict[Fault | Remark, int] = {}
        self._examples: dict[Fault | Remark, list[str]] = {}

    def __len__(self) -> int:
        """How many faults there are."""
        return sum(count for kind, count in self._counts.items() if isinstance(kind, Fault))

    def add(self, fault: Fault, where: str) -> None:
        """Note a fault.

        Args:
            fault: Its kind.
            where: The annotation and the image, and what was found.
        """
        self._note(fault, where)

    def remark(self, remark: Remark, where: str) -> None:
        """Note what is no fault; arguments as of :meth:`add`."""
        self._note(remark, where)

    def _note(self, kind: Fault | Remark, where: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _SHOWN:
            line = " ".join(where.split())
            examples.append(line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "...")

    def lines(self) -> Iterator[str]:
        """One line a kind of fault, the most frequent first: how many there are, and the first ones."""
        return self._lines(Fault)

    def remarks(self) -> Iterator[str]:
        """One line a kind of remark, as :meth:`lines`."""
        return self._lines(Remark)

    def _lines(self, of: type[Fault | Remark]) -> Iterator[str]:
        for kind, count in sorted(self._counts.items(), key=lambda item: -item[1]):
            if isinstance(kind, of):
                examples = self._examples[kind]
                more = "; ..." if count > len(examples) else ""
                yield f"{kind.value}: {count} ({'; '.join(examples)}{more})"

    def settle(self, source: str, on_bad: OnBad) -> tuple[str, ...]:
        """Refuse the annotations, or say what was left out of them.

        Args:
            source: How messages call the annotations.
            on_bad: ``refuse`` or ``skip``.

        Returns:
            Notes for the log: the faults, and the remarks.

        Raises:
            UserError: There are faults, and they are to be refused; a line for each kind follows the first one.
        """
        if not len(self):
            return tuple(self.remarks())
        if on_bad == "refuse":
            head = f"{source}: {len(self)} faults in the annotations (--on-bad-boxes skip leaves them out)"
            raise UserError("\n".join([head, *(f"  {line}" for line in self.lines())]))
        return (f"{source}: {len(self)} faults in the annotations, left out", *self.lines(), *self.remarks())
