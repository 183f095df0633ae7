"""Which model a state dict is of, when it does not fit the one that was named."""

import difflib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.models.cifar import NETS

MOST = 24  # models of a library that are tried: those of the nearest names; each takes some hundredths of a second
_HEADS = 4  # tensors that may have another shape: two classifiers, which have a row for each class
_COUNTER = ".num_batches_tracked"


def lookalike(state: dict[str, Tensor], name: str) -> str | None:
    """The model that has the names and, but for the classifier, the shapes of a state dict.

    Args:
        state: the state dict.
        name: the model that was named; those of its library that are called nearly so are tried, and the CIFAR nets.

    Returns:
        Its name, or None if none of those that were tried fits.
    """
    shapes = {key: value.shape for key, value in state.items() if not key.endswith(_COUNTER)}
    for found in _candidates(name):
        own = _shapes(found)
        if own.keys() == shapes.keys() and sum(own[key] != shapes[key] for key in own) <= _HEADS:
            return found
    return None


def _candidates(name: str) -> Iterator[str]:
    family, _, rest = name.partition("/")
    known: list[str] = []
    if family == "timm":
        from limbeck.models.quiet_timm import timm

        known, rest = timm.list_models(), rest.partition(".")[0]  # without the tag of its weights
    elif family == "torchvision":
        import torchvision

        known = torchvision.models.list_models(torchvision.models)
    yield from (f"{family}/{near}" for near in difflib.get_close_matches(rest, known, n=MOST, cutoff=0.5))
    yield from (f"cifar/{net}" for net in NETS)


@functools.cache
def _shapes(name: str) -> dict[str, torch.Size]:
    """Of a model's state dict; none where it cannot be made."""
    try:
        with torch.device("meta"):
            module = _make(name)
    except Exception:  # of another library, and only asked what it looks like
        return {}
    return {key: value.shape for key, value in module.state_dict().items() if not key.endswith(_COUNTER)}


def _make(name: str) -> nn.Module:
    family, _, rest = name.partition("/")
    if family == "cifar":
        return NETS[rest](num_classes=100)
    if family == "timm":
        from limbeck.models.quiet_timm import timm

        create: Any = timm.create_model
        return create(rest)
    import torchvision

    return torchvision.models.get_model(rest)
