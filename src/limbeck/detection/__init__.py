"""What detection adds to the core: batches with boxes, what a detector is, and average precision.

:class:`DetectionBatch` is what a loader gives, :class:`Detector` what a model has to do, and
:func:`average_precision` scores detections as COCO does; :func:`match` says which of them are right. Terms that know of
boxes and heads: :class:`ForegroundTerm`, :class:`DenseHeadTerm`, :class:`RegionTerm`.
"""

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
