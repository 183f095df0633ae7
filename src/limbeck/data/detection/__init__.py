"""Images with boxes: COCO, YOLO and Pascal VOC annotations, checked, and batches of them."""

from limbeck.data.detection.dataset import DetectionData, open_detection, open_for_scoring
from limbeck.data.detection.loader import DetectionLoader
from limbeck.data.detection.spec import DetectionSpec

__all__ = ["DetectionData", "DetectionLoader", "DetectionSpec", "open_detection", "open_for_scoring"]
