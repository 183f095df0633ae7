"""What a model wants to see, what `build` gives, and the transform between a batch and a model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UserError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class InputSpec:
    """The input statistics and the square size that a model was, or will be, trained with.

    Attributes:
        mean: subtracted from each channel of an image in [0, 1].
        std: each channel is divided by it afterwards.
        size: height and width in pixels.
        interpolation: how an image of another size is resized: nearest, bilinear or bicubic.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class Model:
    """A model and what Limbeck has to know about it.

    Attributes:
        module: the plain model, in training mode; its state dict holds nothing of Limbeck's.
        name: the name that it was built by, spelt as its family spells it.
        input: its input statistics and size.
        num_classes: columns of its output; 0 = headless, the output is then the pooled feature.
        penultimate: tap name of the classifier's input, for example "fc:input"; "output" when headless.
        weights: where the weights came from: "random", "hub", "function", "file:NAME" or "run:NAME".
        new_head: weights were loaded, but none for the classifier: it is fresh and has to be trained.
        notes: what was done to it that its user may not expect, a line each.
    """

    module: nn.Module
    name: str
    input: InputSpec
    num_classes: int
    penultimate: str
    weights: str
    new_head: bool = False
    notes: tuple[str, ...] = ()


class InputTransform(nn.Module):
    """Bring a batch of images in [0, 1] to a model's own size and statistics.

    x -> (resize(x) - mean) / std, per channel, in float32. Student and teacher each have one, so both see the same
    pixels, each in the form that it knows. Images of the right size are not resized; where they are, the filter is
    antialiased and the overshoot of the bicubic filter is cut off at 0 and 1, as it is for images of 8 bits.

    The statistics are buffers that move with `.to()` and are in no state dict.

    Args:
        spec: the model's input.

    Raises:
        UserError: if the interpolation is unknown, or images without three channels are given.

    Example:
        >>> spec = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=8)
        >>> InputTransform(spec)(torch.ones(2, 3, 16, 16)).shape
        torch.Size([2, 3, 8, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec):
        super().__init__()
        if spec.interpolation not in INTERPOLATIONS:
            raise UserError(f'unknown interpolation "{spec.interpolation}": one of {", ".join(INTERPOLATIONS)}')
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 s s"]:
        """Resize and normalize."""
        if images.shape[1] != 3:
            raise UserError(f"images have {images.shape[1]} channels, 3 are wanted")
        images = images.float()
        if images.shape[-2:] != (self.spec.size, self.spec.size):
            images = self._resize(images)
        return (images - self.mean).div_(self.std)  # in place: a second large temporary would cost half of it

    def _resize(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        size = (self.spec.size, self.spec.size)
        if self.spec.interpolation == "nearest":
            return functional.interpolate(images, size, mode="nearest-exact")
        resized = functional.interpolate(images, size, mode=self.spec.interpolation, antialias=True)
        return resized.clamp(0, 1) if self.spec.interpolation == "bicubic" else resized

    def extra_repr(self) -> str:
        """The statistics, for `print`."""
        return f"mean={self.spec.mean}, std={self.spec.std}, size={self.spec.size}, {self.spec.interpolation}"


class Normalization(nn.Module):
    """Bring a batch of images in [0, 1] to a model's own statistics, at the size that they have.

    x -> (x - mean) / std, per channel, in float32: what is left of :class:`InputTransform` where the loader makes the
    frames, as in detection.

    Args:
        spec: the model's input.

    Example:
        >>> spec = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=8)
        >>> Normalization(spec)(torch.ones(2, 3, 16, 24)).unique()
        tensor([1.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec):
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Normalize."""
        return (images.float() - self.mean).div_(self.std)
