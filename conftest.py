"""What holds for the tests and for the doctests in the source."""

import ast
import builtins
import gc
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from jaxtyping._import_hook import JaxtypingTransformer

LONG = "takes minutes; run by `make faults`, or with --long"
GPU = "needs a CUDA device; run by `make gpu`"

_check = JaxtypingTransformer.visit_FunctionDef


def _check_shapes(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.AST:
    """Check only what has a shape in its annotations, ``Float[Tensor, "n d"]``: the rest took a third of all time."""
    annotations = [argument.annotation for argument in ast.walk(node.args) if isinstance(argument, ast.arg)]
    parts = [part for found in (*annotations, node.returns) if found is not None for part in ast.walk(found)]
    if any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts):
        return _check(self, node)
    return self.generic_visit(node)


JaxtypingTransformer.visit_FunctionDef = _check_shapes


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long``: also what takes minutes."""
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the same examples in every run of the checks, and new ones with ``--long``."""
    hypothesis.settings.register_profile("seeded", derandomize=True)
    if not config.getoption("--long"):
        hypothesis.settings.load_profile("seeded")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what takes minutes and what needs a GPU, and say so."""
    skipped = {} if config.getoption("--long") else {"long": LONG}
    skipped |= {} if torch.cuda.is_available() else {"gpu": GPU}
    for item in items:
        for marker, reason in skipped.items():
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Leave what all imports and tests are out of later collections of garbage, of which each takes a second for it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter take all of it away at its end."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_last_value() -> Iterator[None]:
    """Take back the last value of a doctest: it stays among the builtins, as ``_``, and tyro reads through those."""
    yield
    vars(builtins).pop("_", None)
