"""What the README shows, runs: its Python in a folder of its own, its commands against the real command line."""

import re
import shlex
from pathlib import Path

import pytest

from limbeck import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?P<before><!-- not run -->\s*\n)?^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL
)
NOT_COMMANDS = {"-h", "--help", "--version"}


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages, without those marked ``<!-- not run -->``."""
    if not page.is_file():
        return []
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [m["body"] for m in found if m["language"] in languages and not m["before"]]


def commands(page: Path) -> list[list[str]]:
    """The words of every ``limbeck`` line in the shell blocks; a line that ends in a backslash goes on."""
    found: list[list[str]] = []
    for body in blocks(page, "sh", "bash", "console", "shell"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            for separator in ("|", "&&", ">", ";"):
                words = words[: words.index(separator)] if separator in words else words
            if words and Path(words[0]).name == "limbeck":
                found.append(words[1:])
    return found


def flags(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def test_pages_are_there():
    if not PAGES[0].is_file():
        pytest.skip("no README.md yet")
    assert blocks(PAGES[0], "python"), "README.md shows no Python"
    assert commands(PAGES[0]), "README.md shows no limbeck command"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.timeout(600)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The blocks of a page run one after the other, as a reader would type them."""
    bodies = blocks(page, "python", "py")
    if not bodies:
        pytest.skip(f"no Python in {page.name}")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, body in enumerate(bodies, start=1):
        exec(compile(body, f"{page.name}, python block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page: Path, capsys: pytest.CaptureFixture[str]):
    shown = commands(page)
    if not shown:
        pytest.skip(f"no limbeck command in {page.name}")
    for words in shown:
        line = "limbeck " + shlex.join(words)
        assert words, f"{line}: no command"
        if words[0] in NOT_COMMANDS:
            continue
        assert words[0] in cli.COMMANDS, f"{line}: no such command"
        assert cli.main([words[0], "--help"]) == 0
        known = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
        for flag in flags(words[1:]):
            assert flag in known or flag == "--help", f"{line}: {words[0]} has no flag {flag}"


def test_reader_of_fences(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n\n<!-- not run -->\n```python\ny = 2\n```\n"
        "```sh\npip install limbeck\n"
        "CUDA_VISIBLE_DEVICES=0 limbeck compare --recipe digits \\\n  --seeds 2 | tee log  # c\n```\n",
        encoding="utf-8",
    )
    assert blocks(page, "python") == ["x = 1\n"]
    assert commands(page) == [["compare", "--recipe", "digits", "--seeds", "2"]]
    assert flags(["--a", "1", "--b=2"]) == ["--a", "--b"]
