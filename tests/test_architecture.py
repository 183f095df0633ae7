"""The rules of the design that a tool can check, read from the source itself."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "limbeck"

ROOMS = [
    "errors",
    "distributed",
    "features",
    "losses",
    "norms",
    "projectors",
    "storage",
    "data",
    "recipes",
    "terms",
    "logs",
    "distiller",
    "models",
    "tasks",
    "rivals",
    "training",
    "cache",
    "diagnostics",
    "report",
    "assembly",
    "detection",
    "segmentation",
    "runs",
    "studies",
    "benchmark",
    "cli",
]
"""From the bottom to the top: a module imports from its own room and from lower ones; docs/architecture.md has why."""

# What the core may import besides the standard library, so that it drops into anyone's loop.
CORE = [
    "errors",
    "distributed",
    "features",
    "losses",
    "norms",
    "projectors",
    "terms",
    "distiller",
    "tasks",
    "rivals",
    "training",
]
EVERYWHERE = {"torch", "jaxtyping", "limbeck"}
FURTHER = {"distributed.processes": {"accelerate"}, "training.fit": {"accelerate"}, "training.loading": {"accelerate"}}

# Command-line help must not wait for torch.
LIGHT = [
    "limbeck",
    "errors",
    "cli",
    "recipes",
    "data.spec",
    "report",
    "report.verdict",
    "report.run",
    "detection.page",
    "segmentation.page",
    "cli.report",
]
HEAVY = ("torch", "torchvision", "timm", "accelerate", "transformers", "datasets", "sklearn", "scipy", "onnx")

MOST_LINES = 300  # of code; of declarations there may be more
DECLARATIONS = {"limbeck.recipes.fields"}
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_.~:])/(?:home|root|Users|work|farm|mnt|tmp)/[A-Za-z.]")
LATER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), filename=str(path)) for path in FILES}
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def imports(name: str) -> dict[str, int]:
    """Modules of the package, or of others, that a module imports anywhere, for types alone too, and the line."""
    found: dict[str, int] = {}
    for node in ast.walk(TREES[MODULES[name]]):
        if isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{name}:{node.lineno}: imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if one in MODULES else node.module: node.lineno for one in inner}
    return found


def room_of(name: str) -> str:
    return name.split(".")[1] if name.startswith("limbeck.") else ""


IMPORTS = {name: imports(name) for name in MODULES}


def test_the_package_is_its_rooms():
    there = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"} - {"__init__", "py"}
    assert there == set(ROOMS)


def test_imports_go_downwards():
    upwards = [
        f"{name}:{line} imports {other}"
        for name, found in IMPORTS.items()
        for other, line in found.items()
        if room_of(name) and room_of(other) and ROOMS.index(room_of(other)) > ROOMS.index(room_of(name))
    ]
    assert upwards == []


def test_a_task_is_known_from_the_list_alone():
    """So that another one is a folder of its own, and a line there."""
    others = {name: found for name, found in IMPORTS.items() if room_of(name) != "detection"}
    known = [name for name, found in others.items() if "detection" in map(room_of, found)]
    assert known == []


def test_no_imports_go_in_a_circle():
    """``__init__`` of the whole package loads its names when they are used; types count as the others do."""
    graph = {name: [one for one in found if one in MODULES and one != name] for name, found in IMPORTS.items()}
    graph["limbeck"] = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_core_imports_little():
    core = {name: name.removeprefix("limbeck.") for name in MODULES if room_of(name) in CORE}
    wrong = [
        f"{name}:{line} imports {other}"
        for name, own in core.items()
        for other, line in IMPORTS[name].items()
        if other.split(".")[0] not in EVERYWHERE | FURTHER.get(own, set()) | sys.stdlib_module_names
    ]
    assert wrong == []


def lines_of_code(path: Path) -> int:
    """Lines without blank ones, comments and docstrings: a formula explained at length is not a longer read."""
    skipped: set[int] = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    return sum(1 for number, line in lines if number not in skipped and line.strip() and line.strip()[0] != "#")


def test_files_can_be_read_in_one_go():
    long = {name for name, path in MODULES.items() if lines_of_code(path) > MOST_LINES}
    assert long == DECLARATIONS


def test_light_modules_do_not_import_torch():
    names = ["limbeck" if name == "limbeck" else f"limbeck.{name}" for name in LIGHT]
    code = f"""import sys
for name in {names!r}:
    __import__(name)
    print(*[f'{{name}}: {{other}}' for other in {HEAVY!r} if other in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.split() == []


def test_source_keeps_the_rules_of_style():
    found: list[str] = []
    for name, path in MODULES.items():
        for node in ast.walk(TREES[path]):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                found.append(f"{where}: shapes are checked at run time")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and room_of(name) != "cli":
                found.append(f"{where}: print() outside of the command line; use the run log")
            if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
                found.append(f"{where}: a part that is not there yet")
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and MACHINE_PATH.search(node.value):
                found.append(f"{where}: a path of one machine")
            is_public = isinstance(node, ast.FunctionDef) and node.name[0] != "_" and room_of(name) in CORE
            if is_public and node.args.kwarg is not None:
                found.append(f"{where}: {node.name} takes **kwargs")
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        found += [f"{name}:{number}: {line.strip()}" for number, line in lines if LATER.search(line)]
    assert found == []


def test_pyright_is_strict_about_the_core():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"]
    assert set(CORE) <= {Path(name).stem for name in config["strict"]}


def test_shapes_are_checked_in_the_tests():
    """The source's annotations, by the import hook that conftest.py narrows."""
    import torch
    from jaxtyping import TypeCheckError

    from limbeck import losses

    with pytest.raises(TypeCheckError):
        losses.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
