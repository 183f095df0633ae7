"""What detection adds to the core: batches with boxes, what a detector is, and average precision.

:class:`DetectionBatch` is what a loader gives, :class:`Detector` what a model has to do, and
:func:`average_precision` scores detections as COCO does; :func:`match` says which of them are right. Terms that know of
boxes and heads: :class:`ForegroundTerm`, :class:`DenseHeadTerm`, :class:`RegionTerm`. Importing this package does not
import torch, so that a page is drawn without it; its names are loaded when used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.detection.batch import DetectionBatch, Detections, Truth, truth_of
    from limbeck.detection.fgd import FGDTerm
    from limbeck.detection.foreground import ForegroundTerm
    from limbeck.detection.heads import DenseHeadTerm, RegionTerm, soft_focal
    from limbeck.detection.interface import Detector, Level, Regions
    from limbeck.detection.matching import best_cut, match
    from limbeck.detection.precision import Precision, average_precision, measure_precision
    from limbeck.detection.task import Detection

__all__ = [
    "DenseHeadTerm",
    "Detection",
    "DetectionBatch",
    "Detections",
    "Detector",
    "FGDTerm",
    "ForegroundTerm",
    "Level",
    "Precision",
    "RegionTerm",
    "Regions",
    "Truth",
    "average_precision",
    "best_cut",
    "match",
    "measure_precision",
    "soft_focal",
    "truth_of",
]

_HOMES = {
    "DenseHeadTerm": "heads",
    "Detection": "task",
    "DetectionBatch": "batch",
    "Detections": "batch",
    "Detector": "interface",
    "FGDTerm": "fgd",
    "ForegroundTerm": "foreground",
    "Level": "interface",
    "Precision": "precision",
    "RegionTerm": "heads",
    "Regions": "interface",
    "Truth": "batch",
    "average_precision": "precision",
    "best_cut": "matching",
    "match": "matching",
    "measure_precision": "precision",
    "soft_focal": "heads",
    "truth_of": "batch",
}


def __getattr__(name: str) -> object:
    """Load a public name on its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
