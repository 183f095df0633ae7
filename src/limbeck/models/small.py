"""A three-layer CNN of any width, for the 8x8 digits and for tests."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from limbeck.models.cifar.common import classifier, conv, initialize


class SmallCNN(nn.Module):
    """Three 3x3 convolutions of widths N, 2N and 2N with batch norm and ReLU, the second of stride 2, and a mean.

    Args:
        width: N.
        num_classes: 0 leaves the classifier out.
    """

    def __init__(self, width: int, *, num_classes: int):
        super().__init__()
        self.conv1 = conv(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, 2 * width, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = conv(2 * width, 2 * width, 3)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.fc = classifier(2 * width, num_classes)
        initialize(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits, or pooled features when headless."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))
