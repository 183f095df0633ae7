"""The vision transformer that the paper's DeiT rows train: DeiT's blocks behind a convolutional stem.

References:
    Touvron, Cord, Douze, Massa, Sablayrolles, Jegou. Training data-efficient image transformers & distillation through
        attention. ICML 2021 (widths, heads, blocks, first weights).
    Ren, Gao, Hua, Xue, Tian, He, Zhao. Co-advise: Cross Inductive Bias Distillation. CVPR 2022 (stem, mean token).
"""

import re
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.models.quiet_timm import timm

STEM = 64


@dataclass(frozen=True)
class Shape:
    """Width, blocks and heads of a transformer, and the side of the images' part that one token stands for."""

    width: int
    depth: int
    heads: int
    patch: int = 16


SHAPES = {
    "tiny": Shape(192, 12, 3),
    "small": Shape(384, 12, 6),
    "mini": Shape(64, 6, 2, patch=4),
    "test": Shape(32, 6, 2),
}
"""DeiT-Ti, DeiT-S, one for images of 32 to 64 pixels (otherwise ``small/vit-64``), and one that trains in a test."""


class ConvEmbed(nn.Module):
    """A 7x7 convolution of stride 2 and two of 3x3, 64 channels with batch norm and ReLU; then patches of it."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, kernel, stride in ((3, 7, 2), (STEM, 3, 1), (STEM, 3, 1)):
            layers.append(nn.Conv2d(inputs, STEM, kernel, stride=stride, padding=kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(STEM), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(STEM, width, patch // 2, stride=patch // 2)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n tokens c"]:
        """One token for each patch, in reading order."""
        return self.proj(self.conv(images)).flatten(2).transpose(1, 2)


class ConvStemViT(nn.Module):
    """DeiT behind a convolutional stem, with or without a second head that learns from the teacher.

    The distillation token is no parameter but the mean of the patches' embeddings. In training the model returns the
    logits of the class token, for the labels; the teacher's are met at the tap ``"head_conv"``. In evaluation it
    returns the mean of both heads. The patches behind the last norm are the tap ``"patches"``.

    Args:
        shape: Width, blocks, heads and patch.
        size: Side of the images, a multiple of the patch.
        num_classes: Columns of each head.
        distilled: With the distillation token and its head. Without them, there is one head.

    Deviates from: the published code in two things without effect on the numbers: it returns one tensor in training,
        where that returns both heads, and stochastic depth, which that code configures but never passes on, is absent.
    """

    def __init__(self, shape: Shape, *, size: int, num_classes: int, distilled: bool) -> None:
        super().__init__()
        width, norm = shape.width, partial(nn.LayerNorm, eps=1e-6)
        self.conv_embed = ConvEmbed(width, shape.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.prefix = 2 if distilled else 1
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + (size // shape.patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(
                timm.models.vision_transformer.Block(width, shape.heads, qkv_bias=True, norm_layer=norm)  # pyright: ignore[reportArgumentType]  (a type)
                for _ in range(shape.depth)
            )
        )
        self.norm = norm(width)
        self.patches = nn.Identity()
        self.head = nn.Linear(width, num_classes)
        self.head_conv = nn.Linear(width, num_classes) if distilled else None
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits of the class token in training, the mean of the heads in evaluation."""
        patches = self.conv_embed(images)
        tokens = [self.cls_token.expand(len(patches), -1, -1)]
        if self.head_conv is not None:
            tokens.append(patches.mean(1, keepdim=True))
        x = torch.cat([*tokens, patches], 1) + self.pos_embed
        x = self.norm(self.blocks(x))
        self.patches(x[:, self.prefix :])
        logits = self.head(x[:, 0])
        if self.head_conv is None:
            return logits
        taught = self.head_conv(x[:, 1])
        return logits if self.training else (logits + taught) / 2


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of a checkpoint of the paper's or of VkD's code as this model has them, without their projectors.

    VkD calls the second head ``head_dist``; both keep the projector inside of the student.

    Example:
        >>> list(
        ...     published_names(
        ...         {"module.head_dist.bias": torch.zeros(2), "distillation_loss.embed.bias": torch.zeros(3)}
        ...     )
        ... )
        ['module.head_conv.bias']
    """
    inside = re.compile(r"(^|\.)(distillation_loss|projector)\.")
    return {re.sub(r"(^|\.)head_dist\.", r"\1head_conv.", key): v for key, v in state.items() if not inside.search(key)}
