"""Weights from a file or a run folder: read without running code, unwrapped, and fitted or refused with a table."""

import argparse
import copy
import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.distributed.sharding import versioned
from limbeck.errors import UserError
from limbeck.models.lookalike import lookalike
from limbeck.storage.untrusted import check_tensor_file, check_torch_file, read_object

# Where training scripts put the state dict, best guess first, and what wrappers put before its names.
NESTS = ("state_dict", "model_state_dict", "model", "model_ema", "teacher", "student", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "student.", "teacher.", "net.")
# Holders of plain values that checkpoints carry beside the weights (the options and the best accuracy of the CRD and
# DeiT scripts). Rebuilding them runs nothing of the file's choosing.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    np.float64(0).__reduce__()[0],  # what rebuilds a numpy scalar; its module has moved between versions
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
]
_ROWS = 10


class WeightsUnavailable(UserError):
    """Pretrained weights were asked for and the hub cannot be reached, or does not have them."""


@dataclass(frozen=True)
class Weights:
    """A state dict.

    Attributes:
        state: name to tensor.
        origin: where it came from, as `Model.weights` says it.
        model: name of the model that it is of, where its run folder says so.
    """

    state: dict[str, Tensor]
    origin: str
    model: str | None = None


def read_weights(source: Path) -> Weights:
    """Read a .safetensors file, a run folder's student, or, with any other ending, a state dict of torch.

    Args:
        source: the file or folder.

    Raises:
        UserError: if there is nothing there, if the file holds no state dict, or if reading it would run code.
    """
    if source.is_dir():
        student, card = source / "student.safetensors", source / "student.json"
        if not student.is_file() or not (card.is_file() or (source / "recipe.yaml").is_file()):
            raise UserError(f'folder "{source}" is no finished run: it needs student.json and student.safetensors')
        model = str(read_object(card).get("model", "")) if card.is_file() else None
        return Weights(_read_safetensors(student), f"run:{source.resolve().name}", model or None)
    if not source.is_file():
        raise UserError(f'no weights at "{source}": no such file or folder')
    if source.suffix == ".safetensors":
        return Weights(_read_safetensors(source), f"file:{source.name}")
    # State dicts of torch have all endings (.pt, .pth, .th, .bin, .tar, .ckpt), those of mdistiller none.
    return Weights(_unwrap(_read_pickle(source), source), f"file:{source.name}")


def weights_digest(source: Path) -> str:
    """A digest of the bytes of a file of weights, or of a run folder's student.

    Raises:
        UserError: There is no such file.
    """
    path = source / "student.safetensors" if source.is_dir() else source
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f'no weights at "{path}": {error.strerror or error}') from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        check_tensor_file(path)
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for every defect, and more for types torch has not
        raise UserError(f'"{path.name}" is not a readable safetensors file: {_first_line(error)}') from error


def _read_pickle(path: Path) -> object:
    try:
        # torch warns of old pickle protocols, and then reads or refuses them as it should.
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings(action="ignore"):
            check_torch_file(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'"{path.name}" cannot be read without running code from it: save `model.state_dict()` with safetensors'
        ) from error
    except Exception as error:  # unpickling alone knows a dozen types of error, that of too little memory among them
        raise UserError(
            f'"{path.name}" is not a readable torch file: {_first_line(error)}; expected a .safetensors file or a '
            "state dict that torch saved"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a training script saved."""
    if isinstance(content, Mapping):
        for nest in NESTS:
            if isinstance(content.get(nest), Mapping):
                return _unwrap(content[nest], path)
        state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if state:
            return state
        raise UserError(f'"{path.name}" holds no state dict: its keys are {", ".join(map(str, list(content)[:8]))}')
    raise UserError(f'"{path.name}" holds a {type(content).__name__}, not a state dict')


def strip_prefixes(state: dict[str, Tensor], wanted: set[str], *, depth: int = 3) -> dict[str, Tensor]:
    """Take wrappers' prefixes off, as far as that makes more of the names fit.

    A prefix that only some names have selects those names: "student." of a checkpoint that also holds a teacher.

    Example:
        >>> list(strip_prefixes({"module.model.fc.bias": torch.zeros(2)}, {"fc.bias"}))
        ['fc.bias']
    """
    best = state
    if depth:
        for prefix in PREFIXES:
            inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if inner:
                inner = strip_prefixes(inner, wanted, depth=depth - 1)
                if len(wanted & inner.keys()) > len(wanted & best.keys()):
                    best = inner
    return best


def fit_weights(
    module: nn.Module,
    weights: Weights,
    *,
    heads: tuple[str, ...],
    name: str,
    allow_new_head: bool,
) -> bool:
    """Copy a state dict into a model; everything must fit but, if allowed, the classifier.

    Args:
        module: the model, changed in place.
        weights: what `read_weights` gave; prefixes of wrappers are taken off.
        heads: names of the classifier's layers. If any of their parameters does not fit, none is copied, so that a
            head is either wholly the file's or wholly fresh.
        name: how messages call the model.
        allow_new_head: leave the classifier as it is where it does not fit, instead of refusing.

    Returns:
        Whether the classifier was left as it is.

    Raises:
        UserError: if the weights do not fit; the message is one line and a short table.
    """
    own = module.state_dict()
    state = strip_prefixes(weights.state, set(own))
    head = {key for key in own.keys() | state.keys() if key.startswith(tuple(f"{path}." for path in heads))}
    # Counters of batch norms: no weights, and absent from checkpoints of old versions of PyTorch.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    misfits = {*missing, *unexpected, *reshaped}
    if misfits and _reads(module, state):  # names of an older version, which the model's own parts translate
        _refuse_values({key: value for key, value in state.items() if key in own}, own, weights.origin)
        module.load_state_dict(state, strict=True)
        return False
    if misfits - head or (misfits and not allow_new_head):
        shapes = [f"{key}: file {tuple(state[key].shape)}, model {tuple(own[key].shape)}" for key in reshaped]
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape"
        what = "do not fit" if misfits - head else "have another classifier than"
        table = _table("missing", missing) + _table("unexpected", unexpected) + _table("another shape", shapes)
        like = (weights.model or lookalike(state, name)) if misfits - head else None
        hint = f"; they are those of {like}" if like and like != name else ""
        raise UserError(f"weights {weights.origin} {what} {name}: {counts}{hint}", table)
    fitting = {key: value for key, value in state.items() if not misfits or key not in head}
    _refuse_values(fitting, own, weights.origin)
    module.load_state_dict(versioned(fitting, module), strict=False)
    return bool(misfits)


def _reads(module: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether a model reads a state dict, all of it and nothing else, by its own rules for older versions."""
    twin = copy.deepcopy(module)
    try:
        twin.load_state_dict(state, strict=True)
    except Exception:  # what a part's own rules raise of a state that is not theirs
        return False
    return True


def _refuse_values(state: dict[str, Tensor], own: dict[str, Tensor], origin: str) -> None:
    """Refuse what would be copied without a word and be no weight: NaN, infinity, whole numbers for fractions."""
    for key, value in state.items():
        if value.is_meta or value.layout != torch.strided:
            raise UserError(f"weights {origin}: {key} holds no plain numbers ({value.layout} on {value.device})")
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex():
            raise UserError(f"weights {origin}: {key} is {value.dtype}, expected {own[key].dtype}")
        # Small formats (float8) know no isfinite of their own.
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise UserError(f"weights {origin}: {key} is not finite (NaN or infinity in it)")


def _table(kind: str, rows: list[str]) -> list[str]:
    more = [f"  {kind:<14} ... and {len(rows) - _ROWS} more"] if len(rows) > _ROWS else []
    return [f"  {kind:<14} {row}" for row in rows[:_ROWS]] + more
