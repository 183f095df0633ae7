"""What a detector has to do so that it can be trained, distilled and scored."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor


class Level(NamedTuple):
    """One level of a feature pyramid.

    Attributes:
        tap: Name of the submodule that gives it, a map.
        stride: Pixels of the frame for each of its positions.
        width: Channels.
    """

    tap: str
    stride: int
    width: int


@runtime_checkable
class Detector(Protocol):
    """A module from normalized images of one frame to one tensor, and what that tensor means.

    Of one-stage detectors and sets of queries the tensor is all that the heads say, ``(n, places, columns)``; of
    two-stage ones it is the feature pyramid, ``(n, places, width)``, for their second stage reads boxes that depend on
    the first, and is part of the loss. The module is an ``nn.Module``; its state dict is that of the plain model.

    Attributes:
        levels: The levels of the pyramid, finest first.
        stages: The backbone's maps that the pyramid is made of, finest first.
        two_stage: Whether a second stage reads the output.
        classes: How many columns of the output are class logits, one a class, the first ones; 0 where the output is
            no logits.
        divisor: Height and width of a frame have to be multiples of it.
    """

    levels: tuple[Level, ...]
    stages: tuple[Level, ...]
    two_stage: bool
    classes: int
    divisor: int

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n places columns"]:
        """The output for a batch."""
        ...

    def losses(
        self, output: Float[Tensor, "n places columns"], targets: list[dict[str, Tensor]], frame: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The model's own losses of its output, as its paper has them; scalars. None of no images.

        On several processes each has to call it: their mean, weighted by images, is the loss of the images of all.

        Args:
            output: Of a batch.
            targets: The boxes ``(m, 4)`` and labels ``(m,)`` of each image.
            frame: Height and width of the batch's images.
        """
        ...

    def detect(
        self, output: Float[Tensor, "n places columns"], sizes: Int64[Tensor, "n 2"], frame: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """The boxes, scores and labels that an output stands for, of each image, behind non-maximum suppression.

        Args:
            output: Of a batch.
            sizes: Height and width of each image in the frame; boxes are cut off there.
            frame: Height and width of the batch's images.
        """
        ...


@runtime_checkable
class Regions(Protocol):
    """A two-stage detector whose stages can be asked one by one.

    Attributes:
        levels: The levels of the pyramid, finest first.
    """

    levels: tuple[Level, ...]

    def propose(self, output: Float[Tensor, "n places width"], frame: tuple[int, int], count: int) -> list[Tensor]:
        """The best proposals of the first stage for each image, at most so many, without gradient."""
        ...

    def classify(
        self, output: Float[Tensor, "n places width"], proposals: list[Tensor], frame: tuple[int, int]
    ) -> tuple[Float[Tensor, "k classes"], Float[Tensor, "k boxes"]]:
        """Class logits, the background first, and box regression of the second stage for given boxes."""
        ...
