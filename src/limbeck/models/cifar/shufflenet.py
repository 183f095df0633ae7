"""ShuffleNet v1 (three groups) and v2 (width 1) for 32x32 images.

Both have a 1x1 stem of stride 1 and no max-pooling, as in the CIFAR distillation literature; the stages have stride 2.

References:
    Zhang, Zhou, Lin, Sun. ShuffleNet: An Extremely Efficient CNN for Mobile Devices. CVPR 2018, table 1.
    Ma, Zhang, Zheng, Sun. ShuffleNet V2: Practical Guidelines for Efficient CNN Design. ECCV 2018, table 5.
    Tian, Krishnan, Isola. Contrastive Representation Distillation. ICLR 2020 (the stems).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from limbeck.models.cifar.common import classifier, conv

STEM = 24


class GroupedUnit(nn.Module):
    """ShuffleNet v1's unit: grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; added, or at stride 2 concatenated.

    Args:
        inputs: channels in.
        outputs: channels out; at stride 2 the branch makes the `outputs - inputs` that the pooled input lacks.
        stride: 1 or 2.
        groups: of both 1x1 convolutions; the first one has a single group on the 24 channels of the stem.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, groups: int):
        super().__init__()
        branch = outputs - inputs if stride == 2 else outputs
        hidden = branch // 4
        self.stride = stride
        self.conv1 = conv(inputs, hidden, 1, groups=1 if inputs == STEM else groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.shuffle = nn.ChannelShuffle(self.conv1.groups)
        self.conv2 = conv(hidden, hidden, 3, stride=stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv(hidden, branch, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(branch)
        self.relu = nn.ReLU()  # a module, so that a tap can read its input

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return relu of the branch joined with the input."""
        branch = self.shuffle(functional.relu(self.bn1(self.conv1(x))))
        branch = functional.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        if self.stride == 1:
            return self.relu(branch + x)
        return self.relu(torch.cat([branch, functional.avg_pool2d(x, 3, stride=2, padding=1)], 1))


class ShuffleNetV1(nn.Module):
    """Three stages of 4, 8 and 4 units, of widths 240, 480 and 960, with three groups."""

    def __init__(self, *, num_classes: int):
        super().__init__()
        self.conv1 = conv(3, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        stages: list[nn.Sequential] = []
        inputs = STEM
        for width, units in ((240, 4), (480, 8), (960, 4)):
            rest = (GroupedUnit(width, width, stride=1, groups=3) for _ in range(units - 1))
            stages.append(nn.Sequential(GroupedUnit(inputs, width, stride=2, groups=3), *rest))
            inputs = width
        self.layer1, self.layer2, self.layer3 = stages
        self.stage_taps = ("layer1", "layer2", "layer3")
        self.preactivation_taps = tuple(
            f"{tap}.{len(stage) - 1}.relu:input" for tap, stage in zip(self.stage_taps, stages, strict=True)
        )
        self.linear = classifier(inputs, num_classes)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits, or pooled features when headless."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class SplitUnit(nn.Module):
    """ShuffleNet v2's unit: one half of the channels passes, the other goes through 1x1, depthwise 3x3, 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the shuffled concatenation of both halves."""
        kept, branch = x.chunk(2, dim=1)
        branch = functional.relu(self.bn1(self.conv1(branch)))
        branch = self.bn2(self.conv2(branch))
        branch = functional.relu(self.bn3(self.conv3(branch)))
        return self.shuffle(torch.cat([kept, branch], 1))


class DownUnit(nn.Module):
    """ShuffleNet v2's unit of stride 2: two branches on the whole input, concatenated and shuffled."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        self.conv1 = conv(inputs, inputs, 3, stride=2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv(inputs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(inputs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return the shuffled concatenation of both branches at half the size."""
        short = self.bn1(self.conv1(x))
        short = functional.relu(self.bn2(self.conv2(short)))
        branch = functional.relu(self.bn3(self.conv3(x)))
        branch = self.bn4(self.conv4(branch))
        branch = functional.relu(self.bn5(self.conv5(branch)))
        return self.shuffle(torch.cat([short, branch], 1))


class ShuffleNetV2(nn.Module):
    """Three stages of 4, 8 and 4 units, of widths 116, 232 and 464, and a 1x1 convolution to 1,024 channels."""

    def __init__(self, *, num_classes: int):
        super().__init__()
        self.conv1 = conv(3, STEM, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        stages: list[nn.Sequential] = []
        inputs = STEM
        for width, units in ((116, 4), (232, 8), (464, 4)):
            rest = (SplitUnit(width) for _ in range(units - 1))
            stages.append(nn.Sequential(DownUnit(inputs, width), *rest))
            inputs = width
        self.layer1, self.layer2, self.layer3 = stages
        # Its units end with a shuffle: what the code gives before the ReLU has the channels in another order.
        self.stage_taps = self.preactivation_taps = ("layer1", "layer2", "layer3")
        self.conv2 = conv(inputs, 1024, 1)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = classifier(1024, num_classes)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits, or pooled features when headless."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))
