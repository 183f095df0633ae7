"""The rules of the design that a tool can check, read from the source itself."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "limbeck"

# From the bottom to the top. A module may import from lower ranks and from its own package.
ORDER = (
    "errors",
    "records",
    "untrusted",
    "collectives",
    "sharding",
    "losses",
    "moments",
    "norms",
    "chunked",
    "projectors",
    "pooling",
    "compiler",
    "taps",
    "terms",
    "distiller",
    "random_state",
    "accumulation",
    "manifest",
    "files",
    "checkpoint",
    "stopping",
    "sinks",
    "live",
    "runlog",
    "optim",
    "prefetch",
    "evaluation",
    "loading",
    "bad_batch",
    "buffers",
    "guard",
    "meter",
    "hardware",
    "compiling",
    "trained",
    "resuming",
    "train",
    "detection",
    ("models", "data", "tasks", "rivals"),
    ("cache", "diagnostics"),
    "intervals",
    "report",
    "recipes",
    ("benchmark", "export"),
    "cli",
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in ([names] if isinstance(names, str) else names)}
WORDS = {
    "limbeck.recipes.recipe",
    "limbeck.recipes.agreement",
}  # whoever reads a run's recipe may import these: they import no models
CORE = ORDER[: ORDER.index("train") + 1]

# What the core may import besides the standard library, so that it drops into anyone's loop.
EVERYWHERE = {"torch", "jaxtyping", "limbeck"}
FURTHER = {
    "files": {"safetensors"},
    "train": {"accelerate"},
    "loading": {"accelerate"},
    "runlog": {"rich"},
    "live": {"rich"},
}

# Command-line help must not wait for torch.
LIGHT = (
    "limbeck",
    "limbeck.errors",
    "limbeck.cli",
    "limbeck.recipes.recipe",
    "limbeck.data.spec",
    "limbeck.diagnostics",
    "limbeck.diagnostics.verdict",
    "limbeck.report",
    "limbeck.report.run",
    "limbeck.cli.report",
)
HEAVY = ("torch", "torchvision", "timm", "accelerate", "transformers", "datasets", "sklearn", "scipy", "onnx")

MOST_LINES = 300
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_.~:])/(?:home|root|Users|work|farm|mnt|tmp)/[A-Za-z.]")

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), filename=str(path)) for path in FILES}


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("limbeck", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path): path for path in FILES}


def under_type_checking(tree: ast.Module) -> set[ast.AST]:
    """Nodes that only a type checker sees."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and module of every import; a module imported by name from its package counts as itself."""
    tree = TREES[path]
    unseen = under_type_checking(tree)
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno}: imports are absolute"
            assert node.module is not None
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if name in MODULES else node.module) for name in inner]
    return found


def part_of(module: str) -> str | None:
    """The part of the library that a module belongs to: ``limbeck.models.build`` to ``models``."""
    names = module.split(".")
    return names[1] if names[0] == "limbeck" and len(names) > 1 else None


def test_every_module_has_a_place_in_the_order():
    unknown = sorted({part for module in MODULES if (part := part_of(module)) is not None} - RANK.keys())
    assert not unknown, f"give these a place in ORDER: {unknown}"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_go_downwards(path: Path):
    own = part_of(module_of(path))
    if own is None:  # limbeck/__init__.py: the public names, loaded when used
        assert not [name for _, name in imports(path) if part_of(name)]
        return
    for line, name in imports(path):
        other = part_of(name)
        if other is not None and other != own and name not in WORDS:
            assert RANK[other] < RANK[own], (
                f"{short(path)}:{line}: {own} imports {other}, which lies beside or above it"
            )


@pytest.mark.parametrize("path", [path for path in FILES if part_of(module_of(path)) in CORE], ids=short)
def test_core_imports_little(path: Path):
    own = part_of(module_of(path))
    assert own is not None
    allowed = EVERYWHERE | FURTHER.get(own, set())
    for line, name in imports(path):
        top = name.split(".")[0]
        assert top in allowed or top in sys.stdlib_module_names, f"{short(path)}:{line}: the core does not import {top}"


def lines_of_code(path: Path) -> int:
    """Lines without blank ones, comments and docstrings: a formula explained at length is not a longer read."""
    skipped: set[int] = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    return sum(1 for number, line in lines if number not in skipped and line.strip() and line.strip()[0] != "#")


def test_files_can_be_read_in_one_go():
    """Hard for the code of the core; whatever else is long is named in the test's output."""
    long: list[str] = []
    for path in FILES:
        if part_of(module_of(path)) in CORE:
            assert lines_of_code(path) <= MOST_LINES, f"{short(path)} has more than {MOST_LINES} lines of code"
        if (total := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES:
            long.append(f"{short(path)} {total}")
    if long:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # a hint, not a fault
            warnings.warn(f"longer than {MOST_LINES} lines: {', '.join(long)}", stacklevel=1)


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_do_not_import_torch(module: str):
    if module not in MODULES:
        pytest.skip(f"{module} is not there")
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.split() == [], f"importing {module} imports {result.stdout}"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_source_keeps_the_rules_of_style(path: Path):
    tree = TREES[path]
    for node in ast.walk(tree):
        where = f"{short(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            assert "annotations" not in {alias.name for alias in node.names}, f"{where}: shapes are checked at run time"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert part_of(module_of(path)) == "cli", f"{where}: print() outside of the command line; use the run log"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "NotImplementedError" not in ast.unparse(node.exc), f"{where}: a part that is not there yet"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not MACHINE_PATH.search(node.value), f"{where}: a path of one machine"


@pytest.mark.parametrize("path", [path for path in FILES if part_of(module_of(path)) in CORE], ids=short)
def test_public_functions_of_the_core_take_no_kwargs(path: Path):
    for node in ast.walk(TREES[path]):
        is_record = part_of(module_of(path)) == "runlog"  # a record's fields are data, not options
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not is_record:
            assert node.args.kwarg is None, f"{short(path)}:{node.lineno}: {node.name} takes **kwargs"


def test_no_code_left_for_later():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not marks.search(line), f"{short(path)}:{number}: {line.strip()}"


def test_strict_core_is_what_pyright_checks():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"]
    strict = {Path(name).stem for name in config["strict"]} - {"__init__"}
    there = {path.stem for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/")]} & set(CORE)
    assert there <= strict, f"add to tool.pyright.strict: {sorted(there - strict)}"
