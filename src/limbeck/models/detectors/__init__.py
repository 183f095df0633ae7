"""Detectors on any trunk, as modules from images to one tensor."""

from limbeck.models.detectors.build import build_detector, heads_shape, is_detector, trunk_only
from limbeck.models.detectors.decoded import Decoded
from limbeck.models.detectors.one_stage import OneStage
from limbeck.models.detectors.queries import Queries
from limbeck.models.detectors.two_stage import TwoStage

__all__ = ["Decoded", "OneStage", "Queries", "TwoStage", "build_detector", "heads_shape", "is_detector", "trunk_only"]
