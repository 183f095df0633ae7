"""The page on the published code's defects has all of them, and what it points at is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = [line for line in (ROOT / "docs" / "defects.md").read_text(encoding="utf-8").splitlines() if line[:3] == "| D"]


def test_there_is_a_row_for_each_of_the_27() -> None:
    assert [row.split("|")[1].strip() for row in ROWS] == [f"D{number}" for number in range(1, 28)]


def test_every_row_says_what_became_of_it_and_which_test_shows_it() -> None:
    for row in ROWS:
        name, _, _, here, shown = (cell.strip() for cell in row.strip("|").split("|"))
        assert here.startswith(("fixed", "kept", "absent")), name
        if here.startswith("absent"):
            assert shown == "-", name
            continue
        (path, _, test) = re.fullmatch(r"`(tests/[a-z_/]+\.py)(::)?(\w+)?`", shown).groups()  # pyright: ignore[reportOptionalMemberAccess]
        assert (ROOT / path).is_file(), name
        assert test is None or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), name
