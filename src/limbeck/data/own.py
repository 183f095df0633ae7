"""A function of the user's, by `module:function`; and augmentation by one."""

import hashlib
import importlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8, UInt64
from torch import Tensor

from limbeck.errors import UserError, did_you_mean, reason_of

_SLACK = 0.1  # of the range of pixels, by which resizing floats overshoots


class Own(NamedTuple):
    """Augmentation of the user's own.

    Attributes:
        name: `module:function`.
        source: A digest of the module's source file; empty if it has none.
        function: From a uint8 image of 3 x s x s to one of the same shape, as the transforms of torchvision have it.
    """

    name: str
    source: str
    function: Callable[[Tensor], Any]


def own_augmentation(name: str, side: int) -> Own:
    """Find a function, and try it on one image of this side.

    Raises:
        UserError: It cannot be imported, fails, or returns something else than an image.
    """
    with current_folder():
        function = find_function(name)
        module = sys.modules[name.partition(":")[0]]
        file = inspect.getsourcefile(module)
        source = hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest() if file else ""
        own = Own(name, source, function)
        noise = torch.randint(256, (1, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        augmented(own, noise, np.zeros(1, np.uint64))
    return own


def augmented(
    own: Own, images: UInt8[Tensor, "n 3 s s"], words: UInt64[np.ndarray, " n"]
) -> Float32[Tensor, "n 3 s s"]:
    """Each image through the function, with the generators of torch, numpy and Python seeded by its word; in [0, 1].

    Raises:
        UserError: The function fails, or returns something else than an image.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            return torch.stack([_one(own, image, word) for image, word in zip(images, words.tolist(), strict=True)])
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _one(own: Own, image: Tensor, word: int) -> Tensor:
    torch.default_generator.manual_seed(word >> 1)  # not that of a GPU, which models draw from
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)
    shape = " x ".join(map(str, image.shape))
    try:
        result: object = own.function(image.clone(memory_format=torch.contiguous_format))
    except Exception as error:  # the user's own code may raise anything
        given = f"it gets a uint8 tensor of {shape}, as torchvision.transforms.v2 take it"
        raise UserError(f"augmentation {own.name} failed: {reason_of(error)}; {given}") from error
    if not isinstance(result, Tensor) or result.shape != image.shape:
        got = " x ".join(map(str, result.shape)) if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise UserError(f"augmentation {own.name} returned {got}; expected a tensor of {shape}, as it was given")
    if result.dtype == torch.uint8:
        return result.float() / 255
    low, high = float(result.min()), float(result.max())
    if not result.is_floating_point() or not (-_SLACK <= low <= high <= 1 + _SLACK):
        raise UserError(
            f"augmentation {own.name} returned {str(result.dtype)[6:]} from {low:.3g} to {high:.3g}; expected uint8, "
            "or floats from 0 to 1: each model normalizes its input itself"
        )
    return result.float().clamp(0, 1)


def find_function(name: str) -> Callable[..., Any]:
    """What `module:function` names; within :func:`current_folder`.

    Raises:
        UserError: It cannot be imported, or there is no such function.
    """
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except Exception as error:  # importing runs the user's own code, which may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == path.split(".", maxsplit=1)[0]:
            near = did_you_mean(path, (file.stem for file in Path.cwd().glob("*.py")))
            raise UserError(f'no module "{path}" in the current folder or on PYTHONPATH{near}') from error
        raise UserError(f'importing "{path}" failed: {type(error).__name__}: {error}') from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(f'no function "{attribute}" in module "{path}" (of {name}){did_you_mean(attribute, known)}')
    return function


@contextmanager
def current_folder() -> Iterator[None]:
    """The current folder first on the path: a console script, unlike `python -m`, does not have it there."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
