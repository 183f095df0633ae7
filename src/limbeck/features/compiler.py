"""Compile a function by ``torch.compile`` for one owner alone, with the gradient that it has without the compiler."""

import contextlib
import inspect
import itertools
import types
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import fx, nn

_number = itertools.count()


class Compiled:
    """A function that ``torch.compile`` compiles for this object alone, in the first call of each kind.

    Three things differ from ``torch.compile(function)``:

    - Code that was compiled for another object is never taken. The compiler finds code by its source, and does not look
      at hooks, so two models with other taps would share it. Its limit of eight compilations holds for each object.
    - The backward pass runs without autocast, as it does without the compiler. By default the compiler has it run under
      the autocast of the forward pass, which lowers the products that the forward pass keeps in float32.
    - It counts what happened.

    Args:
        function: What to compile; called with positional arguments.

    Attributes:
        graphs: How many graphs were compiled.
        calls: How many calls returned.
        plain: In how many of them nothing compiled ran, since the compiler gave up.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.graphs = 0
        self.calls = 0
        self.plain = 0
        self._ran = False

        def call(*given: Any) -> Any:
            return function(*given)

        # The compiler keeps its state with the code object, and what it knows of sizes under file, line and name.
        code = call.__code__.replace(co_name=f"call_{next(_number)}")
        own = types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)
        # For parts that it cuts off, whose code objects are not ours; older versions of torch do not have it.
        known = "isolate_recompiles" in inspect.signature(torch.compile).parameters
        more = {"isolate_recompiles": True} if known else {}
        self._compiled: Callable[..., Any] = torch.compile(own, backend=self._backend, **more)  # pyright: ignore

    def __call__(self, *given: Any) -> Any:
        """The value of the function."""
        self._ran = False
        found = self._compiled(*given)
        self.calls += 1
        self.plain += not self._ran
        return found

    def _backend(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        with _plain_backward():
            compiled = lowered(graph, inputs)
        self.graphs += 1

        def run(*given: Any) -> Any:
            self._ran = True
            return compiled(*given)

        return run


def uncompiled(model: nn.Module) -> nn.Module:
    """The model without ``torch.compile`` around it or its parts, with the names that it then has.

    What comes compiled does not run hooks, and is compiled anew for each kind of call that looks at it: minutes, before
    a run begins. :class:`Compiled` compiles it with its taps.

    Example:
        >>> type(uncompiled(nn.Sequential(nn.Linear(3, 2)))[0]).__name__
        'Linear'
    """
    inner: nn.Module = getattr(model, "_orig_mod", model)
    inner._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]
    for name, part in list(inner.named_children()):
        if (plain := uncompiled(part)) is not part:
            inner.set_submodule(name, plain)
    return inner


def lowered(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A traced graph as code of this machine. Dropout draws the numbers that it draws without the compiler."""
    from torch._inductor.compile_fx import compile_fx  # takes a second, and most runs do not compile

    compiled: Any = compile_fx(graph, list(inputs), config_patches={"fallback_random": True})
    return compiled


@contextlib.contextmanager
def _plain_backward() -> Generator[None, None, None]:
    """Trace backward passes without autocast; older versions of torch cannot, and there the losses alone are right."""
    import torch._functorch.config as config

    if not hasattr(config, "backward_pass_autocast"):
        yield
        return
    with config.patch(backward_pass_autocast="off"):  # pyright: ignore[reportUnknownMemberType]
        yield
