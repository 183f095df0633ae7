"""Models that the benchmarks name as ``benchmarks.pairs:FUNCTION``, from the root of the checkout."""

import timm
from torch import nn

from limbeck.models import InputSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def deit_tiny(num_classes: int) -> nn.Module:
    """DeiT-Tiny for images of 64 pixels with patches of 8, so 64 tokens and not the 16 of its usual patches."""
    model = timm.create_model("deit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=num_classes)
    model.input_spec = InputSpec(mean=MEAN, std=STD, size=64)
    return model
