"""A fully convolutional net of any width, for small images and for tests."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SmallFCN(nn.Module):
    """Three stages of strides 2, 4 and 8 and a decoder, with logits at its stride; the paper's FCN-4s or FCN-8s, small.

    Args:
        width: N; the stages have N, 2N and 4N channels, the decoder 2N.
        stride: Of the decoder: 8, or 4, which adds the second stage to the enlarged third.
        num_classes: Channels of the logits.

    References:
        J. Long, E. Shelhamer, T. Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
    """

    stage_taps = ("stage1", "stage2", "stage3")

    def __init__(self, width: int, *, stride: int, num_classes: int) -> None:
        super().__init__()
        self.stage1 = _block(3, width, stride=2)
        self.stage2 = _block(width, 2 * width, stride=2)
        self.stage3 = nn.Sequential(
            _block(2 * width, 4 * width, stride=2),
            _block(4 * width, 4 * width, dilation=2),
            _block(4 * width, 4 * width),
        )
        self.lateral = nn.Conv2d(2 * width, 4 * width, 1) if stride == 4 else None
        self.decoder = _block(4 * width, 2 * width)
        self.head = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k a b"]:
        """Logits at the decoder's stride."""
        fine = self.stage2(self.stage1(images))
        x = self.stage3(fine)
        if self.lateral is not None:
            x = F.interpolate(x, size=fine.shape[2:], mode="bilinear", align_corners=False) + self.lateral(fine)
        return self.head(self.decoder(x))


def _block(source: int, width: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(source, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
