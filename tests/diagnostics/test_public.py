import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from limbeck import diagnostics

HERE = Path(__file__).resolve().parent
MATHS = HERE.parents[1] / "docs" / "maths.md"


FUNCTIONS = (
    "balance",
    "dynamics",
    "equivariance",
    "fit",
    "fixed_points",
    "similarity",
    "spectrum",
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_public_and_in_the_maths(name: str) -> None:
    module = importlib.import_module(f"limbeck.diagnostics.{name}")
    own = {key for key, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__}
    public = {key for key in own if not key.startswith("_")}
    assert public
    assert not sorted(public - set(diagnostics.__all__))
    text = MATHS.read_text(encoding="utf-8")
    assert not sorted(key for key in public if inspect.isfunction(vars(module)[key]) and f"`{key}`" not in text)


def test_every_test_named_in_the_maths_is_here() -> None:
    named = set(re.findall(r"::(test_\w+)", MATHS.read_text(encoding="utf-8")))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in HERE.glob("test_*.py")]
    there = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert len(named) > 50
    assert not sorted(named - there)
