"""MobileNetV2 at half width for 32x32 images: the "MobileNetV2" of the CIFAR distillation tables.

References:
    Sandler, Howard, Zhu, Zhmoginov, Chen. MobileNetV2: Inverted Residuals and Linear Bottlenecks. CVPR 2018, table 2.
    Tian, Krishnan, Isola. Contrastive Representation Distillation. ICLR 2020 (width 0.5, strides for 32x32).
"""

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.models.cifar.common import classifier, conv, initialize

# expansion, channels at width 1, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; with a shortcut where the shape stays the same."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            conv(inputs, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv(hidden, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return branch(x), plus x where the shapes allow it."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Seven stages of inverted residuals between a 3x3 stem of stride 2 and a 1x1 convolution to 1,280 channels.

    Args:
        width: factor on every width but the last; the literature's students use 0.5.
        num_classes: 0 leaves the classifier out.

    Deviates from: the paper, which has ReLU6 and five strides of 2; the distillation literature's net (and this class)
    has ReLU and four, the second stage keeping its size. Also, the first block has a 1x1 convolution before the
    depthwise one although its expansion is 1, which timm's and torchvision's leave out.
    """

    def __init__(self, width: float, *, num_classes: int):
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(conv(3, inputs, 3, stride=2), nn.BatchNorm2d(inputs), nn.ReLU())
        self.blocks = nn.ModuleList()
        for expansion, channels, blocks, stride in STAGES:
            outputs = int(channels * width)
            stage = [InvertedResidual(inputs, outputs, stride=stride, expansion=expansion)]
            stage += [InvertedResidual(outputs, outputs, stride=1, expansion=expansion) for _ in range(blocks - 1)]
            self.blocks.append(nn.Sequential(*stage))
            inputs = outputs
        # The blocks end without a ReLU.
        self.stage_taps = self.preactivation_taps = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
        self.conv2 = nn.Sequential(conv(inputs, LAST, 1), nn.BatchNorm2d(LAST), nn.ReLU())
        self.classifier = nn.Sequential(classifier(LAST, num_classes))
        initialize(self, linear_std=0.01)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits, or pooled features when headless."""
        x = self.conv1(images)
        for stage in self.blocks:
            x = stage(x)
        return self.classifier(self.conv2(x).mean((2, 3)))
