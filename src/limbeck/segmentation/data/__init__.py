"""Images with masks: folders of pairs, checked, and batches of them."""

from limbeck.segmentation.data.dataset import SegmentationData, open_for_scoring, open_segmentation
from limbeck.segmentation.data.spec import SegmentationSpec

__all__ = ["SegmentationData", "SegmentationSpec", "open_for_scoring", "open_segmentation"]
