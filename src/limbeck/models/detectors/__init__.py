"""Detectors on any trunk, as modules from images to one tensor."""

from limbeck.models.detectors.build import build_detector, is_detector, trunk_only
from limbeck.models.detectors.one_stage import OneStage
from limbeck.models.detectors.two_stage import TwoStage

__all__ = ["OneStage", "TwoStage", "build_detector", "is_detector", "trunk_only"]
