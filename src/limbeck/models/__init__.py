"""Models by name, from every library with one answer: the plain module, its input, and its penultimate feature."""

import sys

if "wandb" not in sys.modules:
    # timm imports it wherever it is installed, and it makes temporary folders, which a killed run leaves behind.
    sys.modules["wandb"] = None  # pyright: ignore[reportArgumentType]
    import timm.utils  # noqa: F401  # pyright: ignore[reportUnusedImport]

    del sys.modules["wandb"]

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
