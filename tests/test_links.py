"""Links between the pages lead to files and headings that are there; every piece of advice has one."""

import re
from pathlib import Path

import pytest

from test_readme import PAGES

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in LINK.findall(prose(page)):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: no {file}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {target.name} has no heading for #{anchor}"


def test_headings_become_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two: `three`'s\n```sh\n# no heading\n```\n## Four-five (6x6)\n")
    assert anchors(page) == {"one-two-threes", "four-five-6x6"}


def test_every_piece_of_advice_says_what_it_rests_on() -> None:
    text = prose(ROOT / "docs" / "advice.md")
    pieces = re.findall(r"^(?:-|\d\.) .*?(?=^(?:-|\d\.) |^#|\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(pieces) > 20
    for piece in pieces:
        assert "](" in piece or "*not decided*" in piece, f"rests on nothing: {piece}"
