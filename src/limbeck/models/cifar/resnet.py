"""ResNets for 32x32 images: the narrow ones of He et al., their x4 widths, and the bottleneck ResNet-50.

References:
    He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016, section 4.2.
    Tian, Krishnan, Isola. Contrastive Representation Distillation. ICLR 2020, appendix (the widths x4 and ResNet-50).
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from limbeck.models.cifar.common import classifier, conv, initialize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution wherever the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.downsample = (
            None if same else nn.Sequential(conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))
        )
        self.relu = nn.ReLU()  # a module, so that a tap can read its input

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return relu(shortcut(x) + branch(x))."""
        branch = functional.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last one four times as wide, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Sequential() if same else nn.Sequential(conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))
        )
        self.relu = nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return relu(shortcut(x) + branch(x))."""
        branch = functional.relu(self.bn1(self.conv1(x)))
        branch = functional.relu(self.bn2(self.conv2(branch)))
        return self.relu(self.bn3(self.conv3(branch)) + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet of depth 6n + 2 in three stages of n basic blocks, at strides 1, 2 and 2.

    Args:
        depth: 6n + 2: 8, 14, 20, 32, 44, 56, 110...
        widths: channels of the stem and of the three stages.
        num_classes: 0 leaves the classifier out.

    Deviates from: He et al. use the parameter-free shortcut A; the distillation literature (and this class) puts a 1x1
    convolution where the shape changes, which is 2,752 parameters more at the narrow widths.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], *, num_classes: int):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv(3, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        first, second, third = (
            nn.Sequential(BasicBlock(i, o, stride), *(BasicBlock(o, o, 1) for _ in range(blocks - 1)))
            for (i, o), stride in zip(pairwise(widths), (1, 2, 2), strict=True)
        )
        self.layer1, self.layer2, self.layer3 = first, second, third
        self.stage_taps = ("layer1", "layer2", "layer3")
        self.preactivation_taps = tuple(f"{tap}.{blocks - 1}.relu:input" for tap in self.stage_taps)
        self.fc = classifier(widths[3], num_classes)
        initialize(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits, or pooled features when headless."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class BottleneckResNet(nn.Module):
    """The ImageNet ResNet-50 with a 3x3 stem of stride 1 and no max-pooling: ResNet50 in CIFAR tables."""

    def __init__(self, *, num_classes: int):
        super().__init__()
        self.conv1 = conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        stages: list[nn.Sequential] = []
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            rest = (Bottleneck(4 * width, width, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(Bottleneck(inputs, width, stride), *rest))
            inputs = 4 * width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.stage_taps = ("layer1", "layer2", "layer3", "layer4")
        self.preactivation_taps = tuple(
            f"{tap}.{len(stage) - 1}.relu:input" for tap, stage in zip(self.stage_taps, stages, strict=True)
        )
        self.linear = classifier(inputs, num_classes)
        initialize(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits, or pooled features when headless."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))
