"""Data: from one typed spec to batches of images that every process and every model sees alike.

Importing this package does not import torch, so that `limbeck.data.spec` stays cheap; its names are loaded when used.
"""

import importlib
from typing import TYPE_CHECKING

from limbeck.data.spec import DataSpec

if TYPE_CHECKING:
    from limbeck.data.dataset import Data, open_data, open_for_scoring
    from limbeck.data.loader import Batch, Loader

__all__ = ["Batch", "Data", "DataSpec", "Loader", "open_data", "open_for_scoring"]

_HOMES = {
    "Batch": "loader",
    "Data": "dataset",
    "Loader": "loader",
    "open_data": "dataset",
    "open_for_scoring": "dataset",
}


def __getattr__(name: str) -> object:
    """Load a public name on its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
