"""Wide residual networks for 32x32 images.

References:
    Zagoruyko, Komodakis. Wide Residual Networks. BMVC 2016, table 1.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from limbeck.models.cifar.common import classifier, conv, initialize


class PreactBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; a 1x1 shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        # The spelling is that of the published checkpoints, so that they load.
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride=stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return shortcut + branch; a shortcut with a convolution starts after the first activation."""
        active = functional.relu(self.bn1(x))
        branch = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return branch + (x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """`blocks` blocks, the first of which changes width and size."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int):
        super().__init__()
        rest = (PreactBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(PreactBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Run the blocks in order."""
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-factor: three stages of (depth - 4) / 6 blocks, of widths 16, 32 and 64 times the factor, no dropout.

    Args:
        depth: 6n + 4: 16, 40...
        factor: how much wider than a ResNet.
        num_classes: 0 leaves the classifier out.
    """

    def __init__(self, depth: int, factor: int, *, num_classes: int):
        super().__init__()
        blocks = (depth - 4) // 6
        width = 16 * factor
        self.conv1 = conv(3, 16, 3)
        self.block1 = Stage(blocks, 16, width, 1)
        self.block2 = Stage(blocks, width, 2 * width, 2)
        self.block3 = Stage(blocks, 2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.stage_taps = ("block1", "block2", "block3")
        # The first batch norm of the next stage: what comes before the first ReLU behind a stage.
        self.preactivation_taps = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
        self.fc = classifier(4 * width, num_classes)
        initialize(self)
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits, or pooled features when headless."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(functional.relu(self.bn1(x)).mean((2, 3)))
