"""Another process writes between two looks: exactly there, by hand."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.storage.shared import check_free, first_card
from limbeck.storage.untrusted import text_of


def test_a_card_that_is_written_during_the_listing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def and_then_the_other_writes(folder: Path) -> Iterator[Path]:
        (folder / "rows.bin").touch()
        found = list(listed(folder))
        (folder / "card.json").write_text("{}")
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", and_then_the_other_writes)
    check_free(tmp_path, "card.json", kind="table")
    with pytest.raises(UserError, match="is not empty and holds no sweep; choose another --out"):
        check_free(tmp_path, "plan.json", kind="sweep")


def test_the_first_of_two_cards_holds_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "new" / "card.json"
    link = os.link

    def after_the_other(source: str, target: str) -> None:
        Path(target).write_text(json.dumps({"lr": 1, "more": 2}))
        link(source, target)

    monkeypatch.setattr(os, "link", after_the_other)
    assert first_card({"lr": 3}, card) == {"lr": 1, "more": 2}
    assert [path.name for path in card.parent.iterdir()] == ["card.json"]
    card.unlink()
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError()))  # no links on this disk
    assert first_card({"lr": 3}, card) == first_card({"lr": 4}, card) == {"lr": 3}


def test_a_file_that_is_removed_before_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert text_of(tmp_path / "recipe.yaml") is None
