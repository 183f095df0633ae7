"""What the CIFAR nets share: their first weights, the classifier that may be absent, and the taps of the protocol."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Staged(Protocol):
    """A net that says what the published codes read of it.

    Attributes:
        stage_taps: The ends of its stages, `feat[1:-1]` of the CRD code (HobbitLong/RepDistiller).
        preactivation_taps: The same before the last ReLU, as that code gives them with `preact=True`.
    """

    @property
    def stage_taps(self) -> tuple[str, ...]:
        """The ends of its stages."""
        ...

    @property
    def preactivation_taps(self) -> tuple[str, ...]:
        """The same before the last ReLU."""
        ...


def initialize(module: nn.Module, *, linear_std: float | None = None) -> None:
    """Draw every convolution from N(0, 2 / (k * k * c_out)) (He et al. 2015, fan-out) and reset the batch norms.

    Args:
        module: the net, changed in place.
        linear_std: draw the linear weights from N(0, linear_std^2) with zero biases, as the VGG and MobileNetV2 code of
            the CIFAR distillation literature does; None leaves PyTorch's own start.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear) and linear_std is not None:
            nn.init.normal_(layer.weight, std=linear_std)
            nn.init.zeros_(layer.bias)


def classifier(features: int, num_classes: int) -> nn.Module:
    """A linear layer, or the identity for a headless net (`num_classes=0`), whose output is then the pooled feature."""
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


def conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution whose padding keeps the size at stride 1; without bias, since a batch norm follows."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias)
