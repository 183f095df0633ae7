"""Figures 2 and 3 of the paper: runs that begin alike, numbers that are those of the logs, curves, and a page."""

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli import main
from limbeck.studies.probed import at_the_end, points_of
from limbeck.studies.reproduce import make_plan
from limbeck.studies.table_page import write_table
from limbeck.studies.table_text import markdown, measures_of, table_record
from limbeck.studies.tables import Curve
from limbeck.studies.verdicts import Cell

SPECTRUM = Curve("W", "w.values", "w.index", "index", log=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both figures, in one folder, of two seeds and an epoch."""
    out = tmp_path_factory.mktemp("figures") / "out"
    for name in ("spectrum", "decorrelation"):
        words = ["reproduce", name, "--scale", "tiny", "--seeds", "2", "--epochs", "2", "--teacher-epochs", "4"]
        assert main([*words, "--subset", "0.4", "--device", "cpu", "--out", str(out)]) == 0
    return out


def record(made: Path, name: str) -> dict[str, Any]:
    return json.loads((made / f"{name}-tiny" / "table.json").read_text(encoding="utf-8"))


def terms(made: Path, run: str) -> list[dict[str, Any]]:
    """What the probes of a run saw of its projector."""
    lines = (made / "runs" / run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    probes = [line for line in map(json.loads, lines) if line["kind"] == "probe"]
    return [probe["terms"]["feature"] for probe in probes]


@pytest.mark.long
def test_the_numbers_are_those_of_the_last_probes(made: Path) -> None:
    found = {row["row"]: row for row in record(made, "spectrum")["rows"]}
    assert set(found) == {"none", "L2", "BatchNorm"}
    for row in found.values():
        ends = [terms(made, run)[-1] for run in row["runs"].values()]
        assert list(row["by seed"].values()) == pytest.approx([end["spectrum"]["below_initial"] for end in ends])
        mean = sum(end["spectrum"]["stable_rank"] for end in ends) / 2
        assert row["measures"]["stable rank"]["mean"] == pytest.approx(mean)
        curve = row["curves"]["W as it is"]["end"]
        first, second = (end["spectrum"]["values"] for end in ends)
        means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        assert [y for _, y in curve] == pytest.approx(means, rel=1e-5)
        assert [x for x, _ in curve] == ends[0]["spectrum"]["index"]
    starts = [row["curves"]["W as it is"]["start"] for row in found.values()]
    assert starts[0] == starts[1] == starts[2]  # the same W before training, whatever norm is behind it
    assert len({tuple(map(tuple, row["curves"]["W as it is"]["end"])) for row in found.values()}) == 3


@pytest.mark.long
def test_one_weight_for_all_rows_and_runs_that_both_figures_share(made: Path) -> None:
    norms, projectors = record(made, "spectrum"), record(made, "decorrelation")
    assert norms["plan"]["factors"] == projectors["plan"]["factors"] == [1.0]
    runs = {row["row"]: row["runs"] for row in norms["rows"] + projectors["rows"]}
    assert runs["BatchNorm"] == runs["linear"]
    assert runs["MLP 64"] != runs["MLP 512"]
    steps = [x for x, _ in projectors["rows"][0]["curves"]["Correlation of input and output"]["end"]]
    assert steps[0] == 0
    assert len(steps) >= 2
    (top1,) = {row["measures"]["top-1 in percent"]["mean"] for row in (norms["rows"][2], projectors["rows"][0])}
    assert 5 < top1 < 100


@pytest.mark.long
def test_a_page_with_curves_and_tables(made: Path) -> None:
    text = (made / "spectrum-tiny" / "table.html").read_text(encoding="utf-8")
    assert text.count("<figure") == 3
    assert "at the start" in text
    assert "effective rank, unit columns" in text
    assert "| stable rank |" in (made / "spectrum-tiny" / "table.md").read_text(encoding="utf-8")


def test_claims_about_what_else_was_measured() -> None:
    plan = make_plan("spectrum", "tiny", {"epochs": 1}, seeds=[0, 1, 2])
    (pair,) = plan.pairs

    def cell(row: str, *ranks: float) -> Cell:
        values = dict.fromkeys(range(3), 0.5)
        return Cell(pair, row, 1.0, False, values, {}, 1.0, measures={"stable rank": dict(enumerate(ranks))})

    made = table_record(plan, [cell("none", 3.0, 3.1, 2.9), cell("BatchNorm", 4.0, 4.1, 4.2)], command="x")
    verdicts = {(claim["measure"], claim["better"], claim["worse"]): claim["verdict"] for claim in made["claims"]}
    assert verdicts == {("", "none", "BatchNorm"): "not decided", ("stable rank", "BatchNorm", "none"): "holds"}
    assert f"({pair}: stable rank of BatchNorm minus none +1.100" in markdown(made)
    heads, lines = measures_of(made, pair)
    assert (heads, lines) == (["at the end", "none", "BatchNorm"], [["stable rank", "3.00 ± 0.10", "4.10 ± 0.10"]])


def test_without_a_probe_there_is_no_figure(tmp_path: Path) -> None:
    """Runs of a folder that were made with ``probe: off``, as detectors' are."""
    assert at_the_end([], "terms.feature") is None
    assert points_of({}, SPECTRUM) == ([], [])
    assert points_of({0: []}, Curve("c", "c")) == ([], [])
    plan = make_plan("spectrum", "tiny", {"epochs": 1}, seeds=[0])
    (pair,) = plan.pairs
    cell = Cell(pair, "none", 1.0, False, {}, {}, 1.0, curves={"W as it is": ([], [])})
    page = write_table(table_record(plan, [cell], command="x"), tmp_path / "table.html")
    assert "<figure" not in page.read_text(encoding="utf-8")


def test_curves_of_runs_that_were_looked_at_differently() -> None:
    """Over the steps only what all runs have counts; spectra that do not lie at the same places have no mean."""
    steps = {0: [{"step": 0, "c": 1.0}, {"step": 4, "c": 0.5}], 1: [{"step": 0, "c": 0.0}, {"step": 3, "c": 9.0}]}
    assert points_of(steps, Curve("c", "c")) == ([(0.0, 0.5)], [])
    one = {"w": {"values": [2.0, 1.0], "index": [0, 1]}}
    other = {"w": {"values": [4.0, 3.0], "index": [0, 5]}}
    assert points_of({0: [one], 1: [one]}, SPECTRUM)[0] == [(0, 2.0), (1, 1.0)]
    assert points_of({0: [one], 1: [other]}, SPECTRUM) == ([], [])
