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
    from limbeck.distiller import Distiller, StepResult, shard_distiller
    from limbeck.distributed import sharding
    from limbeck.errors import UserError
    from limbeck.features import pooling
    from limbeck.features.taps import Captured, Taps
    from limbeck.logs.runlog import RunLog
    from limbeck.report import write_report
    from limbeck.storage.checkpoint import Checkpoints, load_weights
    from limbeck.tasks import Classification, LabelFree
    from limbeck.terms import FeatureTerm, LabelledLogitTerm, LogitTerm, RelationTerm, moments
    from limbeck.training import optim
    from limbeck.training.fit import FitResult, fit

__all__ = [
    "Captured",
    "Checkpoints",
    "Classification",
    "Distiller",
    "FeatureTerm",
    "FitResult",
    "LabelFree",
    "LabelledLogitTerm",
    "LogitTerm",
    "Probe",
    "RelationTerm",
    "RunLog",
    "StepResult",
    "Taps",
    "UserError",
    "data",
    "diagnostics",
    "fit",
    "load_weights",
    "losses",
    "models",
    "moments",
    "norms",
    "optim",
    "pooling",
    "projectors",
    "shard_distiller",
    "sharding",
    "tasks",
    "write_report",
]

_HOMES = {
    "Captured": "features.taps",
    "Checkpoints": "storage.checkpoint",
    "Classification": "tasks",
    "Distiller": "distiller",
    "FeatureTerm": "terms",
    "FitResult": "training.fit",
    "LabelFree": "tasks",
    "LabelledLogitTerm": "terms",
    "LogitTerm": "terms",
    "Probe": "diagnostics",
    "RelationTerm": "terms",
    "RunLog": "logs.runlog",
    "StepResult": "distiller",
    "Taps": "features.taps",
    "UserError": "errors",
    "fit": "training.fit",
    "load_weights": "storage.checkpoint",
    "shard_distiller": "distiller",
    "write_report": "report",
}

_ROOMS = {
    "moments": "terms.moments",
    "optim": "training.optim",
    "pooling": "features.pooling",
    "sharding": "distributed.sharding",
}
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
