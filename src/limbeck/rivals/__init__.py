"""Rivals of the projector: published methods that need parameters, memory or several layers, as terms.

``VIDTerm`` (variational information), ``CRDTerm`` (contrast against a memory of all images), ``ReviewTerm`` (fused
levels), ``HintTerm`` (a map through a regressor), and for SimKD the
student ``ReusedClassifier``. Each is a term as :mod:`limbeck.terms` describes it, and is weighted, trained, saved and
read like those.
"""

from limbeck.rivals.crd import CRDTerm
from limbeck.rivals.hints import HintTerm, regressor
from limbeck.rivals.review import Fusion, ReviewTerm
from limbeck.rivals.simkd import ReusedClassifier, bottleneck
from limbeck.rivals.vid import VIDTerm

__all__ = [
    "CRDTerm",
    "Fusion",
    "HintTerm",
    "ReusedClassifier",
    "ReviewTerm",
    "VIDTerm",
    "bottleneck",
    "regressor",
]
