"""The audit of the dependencies: what is known fails, and what could not be asked is said and does not."""

import importlib.util
import json
import re
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "audit.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="a source distribution has no .ci")

CLEAN = {"name": "torch", "version": "2.9", "vulns": []}
UNKNOWN = {"name": "mine", "skip_reason": "not on the index"}
BAD = {
    "name": "pillow",
    "version": "10.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["10.1", "11"]}, {"id": "PYSEC-2", "fix_versions": []}],
}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a service that answers."""
    module = load()
    monkeypatch.setattr(module, "answers", lambda url: True)
    return module


def auditor(folder: Path, body: str) -> Path:
    """A pip-audit of our own."""
    script = folder / "pip-audit"
    script.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n", encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return folder


def reporting(*packages: dict) -> str:
    return f"print({json.dumps({'dependencies': packages, 'fixes': []})!r}); sys.exit(1)"


def test_what_is_known_fails_and_is_named(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main(auditor(tmp_path, reporting(CLEAN, UNKNOWN, BAD))) == 1
    assert capsys.readouterr().out.splitlines() == [
        "pillow 10.0: PYSEC-1, mended in 10.1, 11",
        "pillow 10.0: PYSEC-2, not mended yet",
    ]


def test_where_nothing_is_known_it_passes(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main(auditor(tmp_path, reporting(CLEAN, UNKNOWN))) == 0
    assert capsys.readouterr().out == "audit: nothing is known of the installed packages\n"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("print('ERROR: no route', file=sys.stderr); sys.exit(1)", r"pip-audit gave no report \(ERROR: no route\)"),
        ("print('{}'); sys.exit(1)", r"pip-audit gave no report \(it said nothing\)"),
        ("time.sleep(60)", "no answer for all packages within 1 seconds"),
    ],
)
def test_what_cannot_be_asked_is_skipped_aloud(
    audit: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
    why: str,
) -> None:
    monkeypatch.setattr(audit, "LIMIT", 1.0)
    assert audit.main(auditor(tmp_path, body)) == 0
    out = capsys.readouterr().out
    assert out.startswith("audit: skipped, nothing was checked: ")
    assert re.search(why, out)


def test_it_is_installed_where_it_is_missing(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a python that, as pip, puts one there; and by one that cannot."""
    made = auditor(tmp_path, reporting(CLEAN))
    (made / "pip-audit").rename(tmp_path / "waiting")
    auditor(tmp_path, f"import os; os.rename({str(tmp_path / 'waiting')!r}, {str(tmp_path / 'pip-audit')!r})")
    (tmp_path / "pip-audit").rename(tmp_path / "python")
    assert audit.main(tmp_path) == 0
    assert capsys.readouterr().out == "audit: nothing is known of the installed packages\n"
    (tmp_path / "pip-audit").unlink()
    assert audit.main(tmp_path) == 0  # nothing is left to be put there
    assert capsys.readouterr().out == "audit: skipped, nothing was checked: pip-audit cannot be installed\n"


def test_a_service_that_is_not_there_is_skipped_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load().main(tmp_path / "no such folder", "http://127.0.0.1:9/") == 0
    assert capsys.readouterr().out == "audit: skipped, nothing was checked: OSV is not reachable from here\n"
