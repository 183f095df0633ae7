"""A trunk with a feature pyramid on top, as torchvision's detectors have it."""

from collections import OrderedDict
from typing import NamedTuple, final

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from limbeck.detection import Level
from limbeck.detection.models.trunk import Trunk, as_list, build_trunk
from limbeck.errors import UserError

FINEST = 4  # a finer map costs more than the rest of a detector


@final
class Pyramid(nn.Module):
    """Trunk and feature pyramid; its state dict is that of torchvision's ``BackboneWithFPN``.

    Args:
        body: Gives the maps.
        fpn: Mixes them from the deepest up.
        out_channels: Width of the pyramid.
    """

    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Name of a level to its map, finest first."""
        return self.fpn(OrderedDict((str(place), level) for place, level in enumerate(as_list(self.body(images)))))


class BuiltPyramid(NamedTuple):
    """A pyramid and what its parts are called in a detector that holds it as ``backbone``.

    Attributes:
        module: The pyramid.
        levels: Its levels that a submodule gives, finest first.
        stages: The maps that it is made of.
        strides: Of all its levels, that of a last pooling included.
        trunk: What it stands on.
    """

    module: Pyramid
    levels: tuple[Level, ...]
    stages: tuple[Level, ...]
    strides: tuple[int, ...]
    trunk: Trunk


def build_pyramid(name: str, *, width: int, dense: bool, pretrained: bool) -> BuiltPyramid:
    """The pyramid of a one-stage detector (``dense``) or of a two-stage one.

    Of one-stage detectors it stands on the three deepest stages and has two levels more by convolutions of stride 2;
    of two-stage ones it stands on up to four stages, and has one more by pooling. Stages finer than 4 pixels are left
    out.

    Raises:
        UserError: The trunk has no stage of at least 4 pixels.
    """
    trunk = build_trunk(name, pretrained=pretrained)
    coarse = [place for place, stride in enumerate(trunk.strides) if stride >= FINEST]
    if not coarse:
        strides = ", ".join(map(str, trunk.strides))
        raise UserError(f"{trunk.name} has stages of {strides} pixels; a detector wants one of at least {FINEST}")
    trunk = trunk.deepest(coarse[-(3 if dense else 4) :])
    extra = LastLevelP6P7(width, width) if dense else LastLevelMaxPool()
    fpn = FeaturePyramidNetwork(list(trunk.widths), width, extra_blocks=extra)
    fine = [f"backbone.fpn.layer_blocks.{place}" for place in range(len(trunk.strides))]
    coarsest = trunk.strides[-1]
    more = (2 * coarsest, 4 * coarsest) if dense else (2 * coarsest,)
    taps = [*fine, *(["backbone.fpn.extra_blocks.p6", "backbone.fpn.extra_blocks.p7"] if dense else [])]
    strides = (*trunk.strides, *more)
    levels = tuple(Level(tap, stride, width) for tap, stride in zip(taps, strides, strict=False))
    stages = tuple(
        Level(f"backbone.body.{tap}", stride, channels)
        for tap, stride, channels in zip(trunk.taps, trunk.strides, trunk.widths, strict=True)
        if tap
    )
    return BuiltPyramid(Pyramid(trunk.module, fpn, width), levels, stages, strides, trunk)
