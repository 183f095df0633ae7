"""Detectors on any trunk, as modules from images to one tensor."""

from limbeck.detection.models.build import build_detector, heads_shape, is_detector, trunk_only
from limbeck.detection.models.decoded import Decoded
from limbeck.detection.models.one_stage import OneStage
from limbeck.detection.models.queries import Queries
from limbeck.detection.models.two_stage import TwoStage

__all__ = ["Decoded", "OneStage", "Queries", "TwoStage", "build_detector", "heads_shape", "is_detector", "trunk_only"]
