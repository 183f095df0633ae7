"""What is shipped: the wheel's content, the lazy public names, versions that agree, a Makefile that runs."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import limbeck

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_constraints_are_names_and_versions_only():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), f"not a plain name==version: {line!r}"


def test_every_dependency_of_the_tests_is_constrained():
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    names = {canonical(found[0]) for line in wanted if (found := NAME.match(line))} - {"limbeck"}
    assert names <= constraints().keys(), f"missing in constraints.txt: {sorted(names - constraints().keys())}"


def test_public_names_are_there():
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None
        assert name in dir(limbeck)
    with pytest.raises(AttributeError, match="no attribute 'Distillr'"):
        _ = limbeck.Distillr  # pyright: ignore[reportAttributeAccessIssue]


def test_import_does_not_load_torch():
    code = "import limbeck, sys; assert 'torch' not in sys.modules; limbeck.losses; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})


def test_version_is_that_of_the_project():
    try:
        installed = metadata.version("limbeck")
    except metadata.PackageNotFoundError:
        pytest.skip("limbeck is not installed here")
    assert limbeck.__version__ == installed == PROJECT["version"]
    assert f"[{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_script_points_at_a_function():
    module, _, function = PROJECT["scripts"]["limbeck"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.timeout(120)
def test_wheel_holds_what_it_needs(tmp_path: Path):
    pytest.importorskip("hatchling", reason="the wheel is built by hatchling")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if not (ROOT / name).is_file():
            pytest.skip(f"no {name} yet")
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=source, check=True, capture_output=True
    )
    (wheel,) = (source / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in ("py.typed", "report/templates/run.html.j2", "report/templates/style.css", "cli/__init__.py"):
        assert f"limbeck/{needed}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "src"))]


def test_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
@pytest.mark.parametrize(("target", "command"), [("demo", "limbeck compare --recipe digits"), ("test", "-m pytest -n")])
def test_make_targets_install_then_run(target: str, command: str, tmp_path: Path):
    result = subprocess.run(
        ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    install = result.stdout.index("pip install")
    assert "--constraint constraints.txt" in result.stdout
    assert result.stdout.index(command) > install
    assert "://" not in result.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_says_when_python_is_missing(tmp_path: Path):
    result = subprocess.run(
        ["make", "demo", f"VENV={tmp_path / 'venv'}", "PYTHON=python0.0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "python0.0 was not found; limbeck needs Python 3.11 or newer" in result.stderr
    assert not (tmp_path / "venv").exists()
