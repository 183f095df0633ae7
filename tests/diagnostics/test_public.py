import ast
import importlib
import pkgutil
import re
from pathlib import Path

from limbeck import diagnostics

HERE = Path(__file__).resolve().parent
MATHS = HERE.parents[1] / "docs" / "maths.md"


def test_every_function_is_public_and_described() -> None:
    own: set[str] = set()
    for _, name, _ in pkgutil.iter_modules(diagnostics.__path__):
        if name != "inputs":  # what they share
            module = importlib.import_module(f"limbeck.diagnostics.{name}")
            own |= {key for key, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__}
    public = {name for name in own if not name.startswith("_")}
    assert public == set(diagnostics.__all__)
    text = MATHS.read_text(encoding="utf-8")
    assert not sorted(name for name in public if name.islower() and f"`{name}" not in text)


def test_every_test_named_in_the_maths_is_here() -> None:
    named = set(re.findall(r"::(test_\w+)", MATHS.read_text(encoding="utf-8")))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in HERE.glob("test_*.py")]
    there = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert len(named) > 50
    assert not sorted(named - there)
