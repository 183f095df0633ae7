"""What detection adds to the core: batches with boxes, what a detector is, and average precision.

:class:`DetectionBatch` is what a loader gives, :class:`Detector` what a model has to do, and
:func:`average_precision` scores detections as COCO does.
"""

from limbeck.detection.batch import DetectionBatch, Detections, Truth, truth_of
from limbeck.detection.interface import Detector, Level
from limbeck.detection.precision import average_precision

__all__ = ["DetectionBatch", "Detections", "Detector", "Level", "Truth", "average_precision", "truth_of"]
