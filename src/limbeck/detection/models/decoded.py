"""A one-stage detector with its boxes decoded, as it is handed on."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.detection.models.one_stage import OneStage


@final
class Decoded(nn.Module):
    """Normalized images of one frame in; of every place its box in pixels of the frame and its scores out.

    What is left to do is to drop low scores and overlapping boxes (non-maximum suppression), which every runtime has in
    a form of its own.

    Args:
        detector: The detector.
        frame: Height and width of its images.
    """

    def __init__(self, detector: OneStage, frame: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.frame = frame
        detector.anchors(frame, next(detector.parameters()).device)  # found now, so that no tracer sees how

    def forward(
        self, images: Float[Tensor, "n 3 h w"]
    ) -> tuple[Float[Tensor, "n places 4"], Float[Tensor, "n places k"]]:
        """Boxes and scores."""
        return self.detector.decode(self.detector(images), self.frame)
