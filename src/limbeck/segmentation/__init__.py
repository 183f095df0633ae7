"""What segmentation adds to the core: batches with masks, the task, its scores, and terms of logits at each place.

:class:`SegmentationBatch` is what a loader gives, :class:`Segmentation` the task, :func:`confusion` and
:func:`scores_of` score it. Terms: :class:`PixelTerm` (KD at each place) and :class:`ChannelTerm` (CWD). Importing this
package does not import torch, so that a page is drawn without it; its names are loaded when used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.segmentation.batch import VOID, SegmentationBatch
    from limbeck.segmentation.scores import Scores, confusion, scores_of
    from limbeck.segmentation.task import Segmentation
    from limbeck.segmentation.terms import ChannelTerm, PixelTerm

__all__ = [
    "VOID",
    "ChannelTerm",
    "PixelTerm",
    "Scores",
    "Segmentation",
    "SegmentationBatch",
    "confusion",
    "scores_of",
]

_HOMES = {
    "VOID": "batch",
    "ChannelTerm": "terms",
    "PixelTerm": "terms",
    "Scores": "scores",
    "Segmentation": "task",
    "SegmentationBatch": "batch",
    "confusion": "scores",
    "scores_of": "scores",
}


def __getattr__(name: str) -> object:
    """Load a public name on its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
