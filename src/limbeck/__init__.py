"""Knowledge distillation of vision models through a learned projector.

The names below are loaded when they are first used, so that ``import limbeck`` and ``limbeck --help`` stay quick:
PyTorch is imported with the first of them that needs it.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck import data, diagnostics, losses, models, norms, projectors, tasks
    from limbeck.diagnostics import Probe
    from limbeck.distiller import Distiller, StepResult
    from limbeck.features import pooling
    from limbeck.features.taps import Captured, Taps
    from limbeck.terms import FeatureTerm, LabelledLogitTerm, LogitTerm, RelationTerm, moments
    from limbeck.training import optim
    from limbeck.training.fit import FitResult, fit

__all__ = [
    "Captured",
    "Distiller",
    "FeatureTerm",
    "FitResult",
    "LabelledLogitTerm",
    "LogitTerm",
    "Probe",
    "RelationTerm",
    "StepResult",
    "Taps",
    "data",
    "diagnostics",
    "fit",
    "losses",
    "models",
    "moments",
    "norms",
    "optim",
    "pooling",
    "projectors",
    "tasks",
]

_HOMES = {
    "Captured": "features.taps",
    "Distiller": "distiller",
    "FeatureTerm": "terms",
    "FitResult": "training.fit",
    "LabelledLogitTerm": "terms",
    "LogitTerm": "terms",
    "Probe": "diagnostics",
    "RelationTerm": "terms",
    "StepResult": "distiller",
    "Taps": "features.taps",
    "fit": "training.fit",
}

_ROOMS = {"moments": "terms.moments", "optim": "training.optim", "pooling": "features.pooling"}
"""Public modules that lie in a package."""

try:
    __version__ = metadata.version("limbeck")
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"limbeck.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f"limbeck.{_ROOMS.get(name, name)}")
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
