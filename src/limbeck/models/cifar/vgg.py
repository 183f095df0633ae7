"""VGG nets with batch norm for 32x32 images, without the fully connected layers.

References:
    Simonyan, Zisserman. Very Deep Convolutional Networks for Large-Scale Image Recognition. ICLR 2015, table 1.
    Tian, Krishnan, Isola. Contrastive Representation Distillation. ICLR 2020 (VGG-8, and one linear classifier).
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from limbeck.models.cifar.common import classifier, conv, initialize

WIDTHS = (64, 128, 256, 512, 512)


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` convolutions with batch norm; no ReLU after the last, so that a tap can read the pre-activation."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [conv(outputs if index else inputs, outputs, 3, bias=True), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SmallMapsKept(nn.Module):
    """Max-pooling that leaves maps below 8x8 as they are: in the literature, images below 64 pixels skip it."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c i j"]:
        """Half the size, or the map itself."""
        return functional.max_pool2d(x, 2) if x.shape[-1] >= 8 else x


class GlobalMean(nn.Module):
    """The mean over all positions."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
        """One vector an image."""
        return x.mean((2, 3))


class VGG(nn.Module):
    """Five blocks of widths 64, 128, 256, 512 and 512, max-pooling between them, a global mean and one linear layer.

    The last pooling is left out below 64 pixels, as in the literature: the last two blocks of a 32x32 image see 4x4.

    Args:
        depths: convolutions in each of the five blocks; VGG-8 has (1, 1, 1, 1, 1).
        num_classes: 0 leaves the classifier out.
    """

    def __init__(self, depths: tuple[int, int, int, int, int], *, num_classes: int):
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        blocks = [_block(i, o, depth) for i, o, depth in zip(inputs, WIDTHS, depths, strict=True)]
        self.block0, self.block1, self.block2, self.block3, self.block4 = blocks
        # Modules, so that a tap can read their inputs, which are the blocks behind their ReLU.
        self.pool0, self.pool1, self.pool2 = (nn.MaxPool2d(2) for _ in range(3))
        self.pool3, self.pool4 = SmallMapsKept(), GlobalMean()
        self.stage_taps = ("pool1:input", "pool2:input", "pool3:input", "pool4:input")
        self.preactivation_taps = ("block1", "block2", "block3", "block4")
        self.classifier = classifier(WIDTHS[-1], num_classes)
        initialize(self, linear_std=0.01)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits, or pooled features when headless."""
        x = self.pool0(functional.relu(self.block0(images)))
        x = self.pool1(functional.relu(self.block1(x)))
        x = self.pool2(functional.relu(self.block2(x)))
        x = self.pool3(functional.relu(self.block3(x)))
        return self.classifier(self.pool4(functional.relu(self.block4(x))))
