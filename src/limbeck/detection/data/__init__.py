"""Images with boxes: COCO, YOLO and Pascal VOC annotations, checked, and batches of them."""

from limbeck.detection.data.dataset import DetectionData, open_detection, open_for_scoring
from limbeck.detection.data.loader import DetectionLoader
from limbeck.detection.data.spec import DetectionSpec

__all__ = ["DetectionData", "DetectionLoader", "DetectionSpec", "open_detection", "open_for_scoring"]
