"""What each family of models hands to `build`, and the input statistics that they share."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from limbeck.errors import UserError, did_you_mean
from limbeck.models.spec import INTERPOLATIONS, InputSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Built:
    """A model with its classifier still on, before weights from a file are loaded.

    Attributes:
        module: the model.
        name: its name, spelt as its family spells it.
        input: its input.
        heads: names of its classifiers; None = find it in a forward pass.
        pretrained: published weights, or those of the function that made it, were loaded.
        new_head: they were loaded without those of the classifier.
        origin: where weights that were loaded came from, as `Model.weights` says it.
        notes: what was done that the user may not expect, a line each.
        rename: gives the names of a published checkpoint of this model, where they differ, as the model has them.
    """

    module: nn.Module
    name: str
    input: InputSpec
    heads: tuple[str, ...] | None = None
    pretrained: bool = False
    new_head: bool = False
    origin: str = "hub"
    notes: tuple[str, ...] = ()
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None


def find_name(name: str, known: Iterable[str], *, family: str) -> str:
    """The known name that is meant, whatever its case and separators: "WRN-40-2" is "wrn_40_2".

    Raises:
        UserError: if there is none; the message gives the nearest one.
    """
    known = list(known)
    found = same_name(name, known)
    if found is None:
        raise UserError(f'unknown model "{family}/{name}"{nearest(name, known, family=family)}')
    return found


def nearest(name: str, known: Iterable[str], *, family: str) -> str:
    """`did_you_mean` with the family before the nearest name, or an empty string."""
    return did_you_mean(name.lower().replace("-", "_"), known).replace('"', f'"{family}/', 1)


def same_name(name: str, known: list[str]) -> str | None:
    """The known name that is the same but for case and separators, or None."""
    if name in known:
        return name
    return next((candidate for candidate in known if _bare(candidate) == _bare(name)), None)


def _bare(name: str) -> str:
    # Separators between digits stay: "wrn_40_2" is not "wrn_402".
    joined = re.sub(r"(?<=\d)[-_ ](?=\d)", "+", name.lower())
    return re.sub(r"[-_ ]", "", joined)


def input_of(name: str, settings: Mapping[str, Any], size: int) -> InputSpec:
    """The input that a configuration of timm names (`pretrained_cfg`), at a size.

    Raises:
        UserError: if it is not of three channels.
    """
    mean, std = tuple(settings.get("mean", IMAGENET_MEAN)), tuple(settings.get("std", IMAGENET_STD))
    if len(mean) != 3 or len(std) != 3:
        raise UserError(f"{name} takes images of {len(mean)} channels, 3 are wanted")
    interpolation = settings.get("interpolation", "bicubic")
    # "lanczos" and "random" have no filter on tensors; the nearest in shape is the bicubic one.
    return InputSpec(mean, std, size, interpolation if interpolation in INTERPOLATIONS else "bicubic")


def check_size(name: str, size: int, patch: int) -> None:
    """Refuse a size that patches cannot tile.

    Raises:
        UserError: naming the nearest sizes that fit.
    """
    if size % patch:
        low = size // patch * patch
        fits = f"{low} and {low + patch}" if low else f"{patch}"
        raise UserError(f"{name} has patches of {patch}x{patch}, which do not tile {size}x{size}: {fits} would fit")
