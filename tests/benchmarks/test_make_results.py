"""docs/results.md is what its template and records give, and each figure in its tables comes from a record."""

import importlib
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from limbeck.errors import UserError
from limbeck.studies.verdicts import judge_again

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def make_results() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("make_results")


@pytest.fixture
def page(make_results: ModuleType, tmp_path: Path) -> Any:
    records = [
        {"run": f"{name}-s{seed}", "seed": seed, "last": {"top1": value}, "best": {"top1": value + 0.01}}
        for name, values in {"a": {0: 0.5, 1: 0.6, 100: 0.9}, "b": {0: 0.4, 1: 0.4}, "b-2": {100: 0.3}}.items()
        for seed, value in values.items()
    ]
    (tmp_path / "runs.json").write_text(json.dumps([*records, {"run": "failed-s0", "seed": 0, "error": "x"}]))
    return make_results.Page(tmp_path)


def test_the_page_is_what_the_records_give(make_results: ModuleType) -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == make_results.render()


@pytest.mark.parametrize("path", sorted([*RECORDS.glob("tables/*.json"), *RECORDS.glob("longer/*.json")]), ids=str)
def test_verdicts_of_tables_are_those_of_todays_rule(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert judge_again(record) == record


def test_claims_are_judged_again_from_the_figures_by_seed(make_results: ModuleType, tmp_path: Path) -> None:
    """Alone the claim would hold; beside a second one that is shown by neither, Holm's correction refutes it."""
    rows = {"a": (1.97, 1.0, 0.03), "b": (0.0, 0.0, 0.0), "c": (-5.0, 1.0, 5.0)}
    claims = [
        {"pair": "p", "better": better, "worse": "b", "words": "x", "difference": None, "verdict": "holds"}
        for better in ("a", "c")
    ]
    record = {
        "rows": [{"pair": "p", "row": row, "by seed": dict(enumerate(found))} for row, found in rows.items()],
        "claims": claims,
    }
    sure = {**record, "rows": [{**record["rows"][0], "by seed": {"0": 1.0, "1": 1.01, "2": 0.99}}, *record["rows"][1:]]}
    assert [claim["verdict"] for claim in judge_again(record)["claims"]] == ["not decided", "not decided"]
    assert [claim["verdict"] for claim in judge_again(sure)["claims"]] == ["holds", "not decided"]
    (tmp_path / "tables").mkdir()
    path = tmp_path / "tables" / "t.json"
    path.write_text(json.dumps(record))
    make_results.judge_tables(tmp_path)
    assert [claim["verdict"] for claim in json.loads(path.read_text())["claims"]] == ["not decided", "not decided"]


def test_no_table_of_the_template_is_typed_by_hand() -> None:
    assert not re.findall(r"^\|", (RECORDS / "template.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_record_is_used_or_shown_somewhere() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("decisions/*.md"), RECORDS / "template.md"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    for path in [*RECORDS.glob("*.json"), *RECORDS.glob("sweeps/*.json")]:  # all of tables/ are on the page
        assert path.name in text or f'"{path.stem}"' in text, f"{path.name} is read by nothing"


def test_figures_are_those_of_the_runs(page: Any) -> None:
    assert page.top("runs", "a") == "55.00 ± 7.07"  # without the seed that chooses
    assert page.top("runs", "b-2") == "30.00"
    assert page.best("runs", "a") == "56.00"
    assert page.minus("runs", "a", "b") == "+15.00 (95% -48.53 to +78.53, 2 seeds)"
    assert page.plus("runs", "b", "a") == "-15.00"
    assert page.methods("runs", [["A", "4", "a"], ["B", "", "b"], ["C", "1", "b-2"]], "b").splitlines() == [
        "| method | weight | last, mean ± sd | 95% of the mean | best | minus b, paired | 95% |",
        "|---|---|---|---|---|---|---|",
        "| A | 4 | 55.00 ± 7.07 | -8.5 to 118.5 | 56.00 | +15.00 | -48.5 to +78.5 |",
        "| B |  | 40.00 ± 0.00 | 40.0 to 40.0 | 41.00 |  |  |",
        "| C | 1 | 30.00 (seed 100 only) |  |  |  |  |",
    ]
    versus = page.versus("runs", [["B", "", "b"], ["A", "4", "a"]], {"b": "b"}, {"A": "2.0", "B": "1.0"})
    assert versus.splitlines()[2] == "| A | 4 | 55.00 ± 7.07 | -8.5 to 118.5 | +15.00 (-48.5 to +78.5) | 2.0 |"
    assert page.weights("runs", {"B": "b-{}"}, [1, 2]).splitlines()[2:] == ["| 1 | not run |", "| 2 | **30.00** |"]
    assert page.tried("runs", [["B", "b"]], 100).splitlines()[2:] == ["| B | 2: 30.00 |"]


def test_a_row_against_those_of_another_table(page: Any) -> None:
    def rows(**values: dict[str, float]) -> dict[str, Any]:
        last = {"n": 2, "mean": 1.0, "sd": 0.5, "low": None, "high": None}
        return {"rows": [{"pair": "p", "row": row, "by seed": seeds, "last": last} for row, seeds in values.items()]}

    (page.folder / "short.json").write_text(json.dumps(rows(A={"0": 3.0, "1": 5.0}, B={"0": 9.0})))
    (page.folder / "long.json").write_text(json.dumps(rows(C={"0": 2.0, "1": 3.0, "2": 99.0})))
    (page.folder / "other.json").write_text(json.dumps(rows(C={"7": 2.0})))
    lines = page.against("short", "A", "long").splitlines()
    assert lines[0] == "| pair | row | last, mean ± sd | A minus it, paired | 95% |"
    assert lines[2:] == ["| p | C | 1.00 ± 0.50 | +1.50 | -4.85 to +7.85 |"]
    with pytest.raises(UserError, match=r"short.json and other.json share no seed of p"):
        page.against("short", "A", "other")


def test_a_name_that_no_record_has_is_an_error(page: Any) -> None:
    with pytest.raises(UserError, match=r"runs.json has no run c"):
        page.top("runs", "c")
    with pytest.raises(UserError, match="a and b-2 share no seed"):
        page.minus("runs", "a", "b-2")


def test_tables_of_reproduce_and_sweeps_are_rendered_by_their_own_code(
    make_results: ModuleType, tmp_path: Path
) -> None:
    shutil.copytree(RECORDS, tmp_path / "results")
    (tmp_path / "results" / "tables").mkdir(exist_ok=True)
    plan = {
        "table": "alpha",
        "scale": "tiny",
        "changes": {},
        "pairs": ["p"],
        "rows": ["r"],
        "seeds": [0],
        "factors": [1],
    }
    row = {"pair": "p", "row": "r", "printed": None, "factor": None, "factor at the edge": False, "seconds": 2.0}
    row |= {"last": None, "best": None, "by seed": {}, "failed": "no images"}
    record = {
        "command": "limbeck reproduce alpha",
        "plan": plan,
        "title": "Exponents",
        "source": "table 0",
        "notes": "",
    }
    (tmp_path / "results" / "tables" / "alpha.json").write_text(json.dumps({**record, "rows": [row], "claims": []}))
    text = make_results.render(tmp_path / "results")
    assert "## The paper's tables again" in text
    assert "### Exponents (table 0; scale tiny)" in text
    assert "- failed: p, r: no images" in text


def test_check_says_when_the_page_is_old(
    make_results: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["make_results.py", "--check"])
    make_results.main()
    (tmp_path / "results.md").write_text("old")
    monkeypatch.setattr(make_results, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(make_results, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"results.md is not what its records give"):
        make_results.main()
    monkeypatch.setattr("sys.argv", ["make_results.py"])
    make_results.main()
    assert (tmp_path / "results.md").read_text() == make_results.render()
