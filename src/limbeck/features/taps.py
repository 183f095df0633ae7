"""Read named submodules of any ``nn.Module`` without editing it."""

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.distributed import sharding
from limbeck.errors import UserError, did_you_mean
from limbeck.features.compiler import Compiled

OUTPUT = "output"
INPUT_SUFFIX = ":input"


class Captured(NamedTuple):
    """What one forward pass of one model gave.

    Attributes:
        output: What the model returned: logits, or the feature of a headless model.
        features: Tap name to raw feature, as the submodule gave it (maps, tokens or vectors).
        target: Class labels ``(n,)`` or class probabilities ``(n, k)``, of detection the boxes with their class
            ``(n, m, 5)``, for the terms that need them; the same object on the student's and the teacher's side. None
            where the batch has no labels.
        index: Which images of the training set these are, ``(n,)``, for the terms that remember images (CRD). None
            where the batch does not say.
    """

    output: Tensor
    features: dict[str, Tensor]
    target: Tensor | None = None
    index: Tensor | None = None  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index)


class Taps:
    """Run a model and keep the features of some of its submodules.

    A tap is the dotted name of a submodule, as ``model.named_modules()`` spells it. Three forms are understood:

    - ``"layer4"``: the output of that submodule;
    - ``"fc:input"``: its first positional input. The input of the classifier is the pooled penultimate feature of
      every model, whatever it is called there;
    - ``"output"``: what the model itself returned.

    Names are checked here, once. Forward hooks are set for the length of one call and none outlives it, also when the
    model raises. The captured tensor is the live one: gradients flow, nothing is copied. Two quiet faults of
    hook-based readers are errors here: a submodule that runs twice in one pass (which of the two is meant?), and a
    feature that a layer overwrote in place (``nn.ReLU(inplace=True)`` behind a batch norm).

    To compile the model use :meth:`compile`, not ``model.compile``: a model that was compiled and called without its
    taps no longer runs hooks, and a call with them then ends with an error.

    Args:
        model: Any module whose forward returns one tensor.
        names: Taps to read; may be empty.
        called: What messages call the model.

    Raises:
        UserError: If a name is no submodule of the model; the message gives the nearest one.

    Deviates from: the published code, which edits the models to return their features.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> captured = Taps(model, ["0", "2:input"])(torch.ones(5, 4))
        >>> captured.output.shape, captured.features["2:input"].shape
        (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    def __init__(self, model: nn.Module, names: Iterable[str] = (), *, called: str = "model") -> None:
        self.model = model
        self.names = tuple(dict.fromkeys(names))
        self._called = called
        self._features: dict[str, Tensor] = {}
        self._versions: dict[str, tuple[int, bool]] = {}
        self.compiled: Compiled | None = None
        modules: dict[str, nn.Module] = dict(model.named_modules())  # pyright: ignore[reportUnknownArgumentType]
        self._points: list[tuple[nn.Module, _Reader]] = []
        for name in self.names:
            if name == OUTPUT:
                continue
            path = name.removesuffix(INPUT_SUFFIX)
            if path not in modules or path == "":
                kind = type(model).__name__
                raise UserError(f'no submodule "{path}" in {kind}{did_you_mean(path, modules)}')
            self._points.append((modules[path], _Reader(name, self._features, self._versions)))

    def compile(self) -> None:
        """From now on run the model compiled by ``torch.compile``; it is compiled in the first call of each kind.

        The model itself is left alone: called without the taps it is not compiled, and its state dict has the same
        names. The hooks are the same objects in every call, and set for its length, so that what has been compiled
        with them holds. A compiled pass cannot see that a feature was overwritten in place: call the taps once before.
        A copy of the taps is not compiled.
        """
        self.compiled = Compiled(self._run)

    def __call__(self, x: Tensor) -> Captured:
        """Run the model on ``x`` and return its output with the tapped features.

        Raises:
            UserError: If a tap did not run, ran twice, gave no tensor, was overwritten in place, or lies in a part that
                runs without gradient in a pass with gradients; if the model does not compute in the images' format.
        """
        with _locks.setdefault(self.model, threading.RLock()):  # the hooks would fire in another thread's pass
            handles: list[RemovableHandle] = []
            try:
                for module, reader in self._points:  # an input is read before the module runs: it may overwrite it
                    register = module.register_forward_pre_hook if reader.of_input else module.register_forward_hook
                    handles.append(register(reader.read))
                run = self._run if self.compiled is None else self.compiled
                output, features = run(x)
                versions = dict(self._versions)
            except RuntimeError as error:
                if (reason := sharding.reason(self.model, error) or self._reason(x)) is None:
                    raise
                raise UserError(reason) from error
            finally:
                for handle in handles:
                    handle.remove()
                self._features.clear()  # or they would live until the next call
                self._versions.clear()
        if not isinstance(output, Tensor):
            kind = type(self.model).__name__
            raise UserError(f"{kind} returned {_describe(output)}; expected one tensor: wrap it so that it returns one")
        if OUTPUT in self.names:
            features[OUTPUT] = output
        self._check(features, versions)
        return Captured(output, features)

    def _run(self, x: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """The part that can be compiled: the model, and what its hooks have put aside."""
        output: Any = self.model(x)
        return output, dict(self._features)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "compiled": None}  # compiled code belongs to this model, not to the copy's

    def _reason(self, x: Tensor) -> str | None:
        """Why the model cannot read images of a number format that it does not compute in."""
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        if x.dtype == own or x.dtype in (torch.float16, torch.bfloat16):
            return None
        return (
            f"the {self._called} cannot read images of {x.dtype}; expected {own}, as its weights are: images.to({own})"
        )

    def _check(self, features: dict[str, Tensor], versions: dict[str, tuple[int, bool]]) -> None:
        for name in self.names:
            if name not in features:
                raise UserError(f'tap "{name}" did not run in the forward pass of {type(self.model).__name__}')
        for name, (version, with_gradient) in versions.items():
            if torch.is_grad_enabled() and not with_gradient and not features[name].requires_grad:
                raise UserError(
                    f'tap "{name}" lies inside a part that runs without gradient, so no loss on it would reach the '
                    "model; tap the block around it, or checkpoint activations with use_reentrant=False"
                )
            if features[name]._version != version:
                raise UserError(
                    f'tap "{name}" was overwritten in place by another layer, so its value is gone; '
                    "tap the block around it"
                )


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
"""One for each model, whoever taps it: threads that share one take turns."""


class _Reader:
    """The hook of one tap; what it reads goes into dictionaries that all taps of a model share."""

    def __init__(self, name: str, features: dict[str, Tensor], versions: dict[str, tuple[int, bool]]) -> None:
        self.of_input = name.endswith(INPUT_SUFFIX)
        self._name = name
        self._features = features
        self._versions = versions

    def read(self, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
        name = self._name
        if self.of_input and not inputs:
            kind = type(module).__name__
            raise UserError(f'tap "{name}": {kind} was called without a positional input; tap its output')
        value = inputs[0] if self.of_input else output
        if not isinstance(value, Tensor):
            raise UserError(f'tap "{name}" gave {_describe(value)}; expected one tensor: tap a submodule inside it')
        if name in self._features:
            raise UserError(f'tap "{name}" ran more than once in one forward pass; tap the block around it')
        self._features[name] = value
        # Where a graph is traced, or in inference mode, tensors have no version.
        if not torch.compiler.is_compiling() and not value.is_inference():
            # Re-entrant checkpointing runs its parts without gradient, and what is inside them is in no graph.
            self._versions[name] = value._version, torch.is_grad_enabled()


def _describe(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"  # pyright: ignore[reportUnknownArgumentType]
    return f"a {type(value).__name__}"
