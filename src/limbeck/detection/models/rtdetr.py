"""RT-DETR by its name, from a configuration that is written down here, so that nothing has to be fetched."""

import importlib.util
from typing import Any, NamedTuple

from limbeck.detection import Level
from limbeck.detection.models.queries import Queries
from limbeck.errors import UserError, did_you_mean
from limbeck.models.spec import InputSpec

FAMILY = "transformers"
STRIDES = (8, 16, 32)
HEADS = ("model.enc_score_head", "model.decoder.class_embed")
UNUSED = "model.denoising_class_embed."
"""Of published weights: what embeds denoising queries, which are not made here."""

_QUERIES = 300
_WIDTH, _HEADS = 256, 8


class _Size(NamedTuple):
    """What differs between the published models."""

    depths: tuple[int, ...]
    layer: str
    expansion: float
    decoder_layers: int
    encoder_width: int
    encoder_hidden: int


SIZES = {
    "r18vd": _Size((2, 2, 2, 2), "basic", 0.5, 3, 256, 1024),
    "r34vd": _Size((3, 4, 6, 3), "basic", 0.5, 4, 256, 1024),
    "r50vd": _Size((3, 4, 6, 3), "bottleneck", 1.0, 6, 256, 1024),
    "r101vd": _Size((3, 4, 23, 3), "bottleneck", 1.0, 6, 384, 2048),
}
"""Name of the trunk -> size; ResNets of the "vd" kind."""


def build_rtdetr(trunk: str, *, width: int, num_classes: int, size: int, frozen_norms: bool) -> Queries:
    """RT-DETR with random weights.

    Args:
        trunk: ``transformers/r18vd`` and the others of :data:`SIZES`.
        width: Channels of encoder and decoder; 256 is the published model's (its largest has a wider encoder).
        num_classes: Classes of objects.
        size: Shorter side of its frames: a small one has fewer places than the published 300 queries, and then as many
            queries as places. No weight depends on it.
        frozen_norms: Fix the trunk's batch norms, as the published models do.

    Raises:
        UserError: There is no such model, or transformers or scipy, which matches queries and boxes, is not installed.
    """
    family, _, name = trunk.partition("/")
    if family.lower() != FAMILY or name.lower() not in SIZES:
        near = did_you_mean(name.lower(), list(SIZES))
        raise UserError(f'"rtdetr/{trunk}" is not there{near}: expected rtdetr/{FAMILY}/ and one of {", ".join(SIZES)}')
    if width % (4 * _HEADS):
        raise UserError(f"rtdetr-{width}: expected a multiple of {4 * _HEADS}")
    for package in ("transformers", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f'RT-DETR needs the package {package}: pip install "limbeck[detection,hub]"')
    from transformers import RTDetrForObjectDetection

    chosen = SIZES[name.lower()]
    plain = RTDetrForObjectDetection(_config(chosen, width, num_classes, size, frozen_norms))
    encoder_width = plain.config.encoder_hidden_dim
    taps = ("model.encoder.fpn_blocks.1", "model.encoder.pan_blocks.0", "model.encoder.pan_blocks.1")
    return Queries(
        plain,
        levels=tuple(Level(tap, stride, encoder_width) for tap, stride in zip(taps, STRIDES, strict=True)),
        stages=tuple(
            Level(f"model.backbone.model.encoder.stages.{place}", stride, channels)
            for place, stride, channels in zip((1, 2, 3), STRIDES, plain.config.encoder_in_channels, strict=True)
        ),
        divisor=STRIDES[-1],
    )


def input_spec() -> InputSpec:
    """Images as they are, in [0, 1]."""
    return InputSpec((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 640, "bilinear")


def _config(chosen: _Size, width: int, num_classes: int, size: int, frozen_norms: bool) -> Any:
    import transformers

    resnet: Any = transformers.RTDetrResNetConfig
    whole: Any = transformers.RTDetrConfig
    channels = tuple(64 * 2**stage * (4 if chosen.layer == "bottleneck" else 1) for stage in range(4))
    backbone = resnet(
        hidden_sizes=list(channels),
        depths=list(chosen.depths),
        layer_type=chosen.layer,
        out_features=["stage2", "stage3", "stage4"],
    )
    published = width == _WIDTH
    encoder_width = chosen.encoder_width if published else width
    places = sum((size // stride) ** 2 for stride in STRIDES)
    return whole(
        backbone_config=backbone,
        freeze_backbone_batch_norms=frozen_norms,
        encoder_in_channels=list(channels[1:]),
        encoder_hidden_dim=encoder_width,
        encoder_ffn_dim=chosen.encoder_hidden if published else 4 * width,
        hidden_expansion=chosen.expansion,
        d_model=width,
        decoder_in_channels=[encoder_width] * len(STRIDES),
        decoder_ffn_dim=4 * width,
        decoder_layers=chosen.decoder_layers,
        num_queries=min(_QUERIES, places),
        num_denoising=0,
        num_labels=num_classes,
    )
