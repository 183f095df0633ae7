"""The page of a table that was made again."""

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.studies.table_page import write_table

TABLES = sorted((Path(__file__).parents[2] / "docs/results/tables").glob("*.json"))


def record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_page_has_every_row_and_every_claim(path: Path, tmp_path: Path) -> None:
    table = record(path)
    text = write_table(table, tmp_path / "table.html").read_text(encoding="utf-8")
    assert text.count("<figure") == len(table["plan"]["pairs"]) * (1 + len(table.get("curves", ())))
    for row in table["rows"]:
        assert f"{row['last']['mean']:.{table.get('digits', 2)}f}" in text
    assert text.count("<table") >= len(table["plan"]["pairs"]) + 1
    verdicts = [claim["verdict"] for claim in table["claims"]]
    for verdict in set(verdicts):
        assert text.count(f">{verdict}<") == verdicts.count(verdict)
    assert f"Of {len(verdicts)} claims" in text
    table |= {"in common": ["float32, contiguous, not compiled"], "devices": ["cpu"]}
    text = write_table(table, tmp_path / "table.html").read_text(encoding="utf-8")
    assert "All runs: float32, contiguous, not compiled; cpu." in text


def test_the_highest_mean_stands_out_and_nothing_of_a_record_is_code(tmp_path: Path) -> None:
    table = record(TABLES[0])
    table["title"] = "<script>alert(1)</script>"
    text = write_table(table, tmp_path / "table.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_rows_without_a_run_are_left_out_of_the_figure(tmp_path: Path) -> None:
    table = record(TABLES[0])
    for row in table["rows"]:
        row |= {"last": None, "best": None, "by seed": {}, "failed": "the loss is not finite"}
    table["claims"] = []
    text = write_table(table, tmp_path / "table.html").read_text(encoding="utf-8")
    assert "<figure" not in text
    assert text.count(">failed<") == len(table["rows"])
