"""Models by name, from every library with one answer: the plain module, its input, and its penultimate feature."""

from limbeck.models.build import build, own_classes
from limbeck.models.probe import unused_parameters
from limbeck.models.spec import InputSpec, InputTransform, Model, Normalization
from limbeck.models.synchronized import synchronized
from limbeck.models.weights import WeightsUnavailable

__all__ = [
    "InputSpec",
    "InputTransform",
    "Model",
    "Normalization",
    "WeightsUnavailable",
    "build",
    "own_classes",
    "synchronized",
    "unused_parameters",
]
