"""Pages of runs with a probe: every figure is there, whatever is missing or damaged, and the page stays small."""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.logs.records import number, numbers
from limbeck.report import write_report
from limbeck.report.behavior import balance_charts
from limbeck.report.record import RunRecord
from limbeck.report.result import wilson
from limbeck.report.run import run_charts
from limbeck.report.samples import samples
from limbeck.report.verdict import Verdict
from report.planted import (
    CHARTS,
    EVIL,
    FAULTS,
    WHOLE,
    Page,
    append,
    check_page,
    make_faulty,
    make_probed,
    make_run,
    picture,
    probe,
    read,
)


def test_the_balance_suggests_no_weight():
    """Logs of before held a weight that makes the gradients equal, which is no aim."""
    (balance, _) = balance_charts([probe(step, 10) for step in (0, 10)])
    assert balance.note == "Of each part of the loss, its weight included. Equal norms are no aim."
    assert balance.table is not None
    names = {"step", "task", "feature", "task, without its weight", "feature, without its weight"}
    assert set(balance.table.heads) <= names


def ids(page: Page) -> set[str]:
    return {str(attributes["id"]) for attributes in page.all("figure")}


def test_every_figure_is_drawn(tmp_path: Path):
    text, page = read(write_report(make_probed(tmp_path / "run")))
    check_page(text, page)
    assert {f"{kind}-feature" for kind in CHARTS} | set(WHOLE) <= ids(page)
    assert {"samples", "parts"} <= {str(attributes.get("id")) for _, attributes in page.tags}
    assert "feature: linear, 64 channels to 128." in page.words
    assert [f["id"] for f in page.all("figure") if "data-frames" in f] == ["spectrum-feature", "histogram-feature"]
    assert "No problems found in the 8 probes" in page.words
    assert "validation images that are also trained on, pixel for pixel: 3" in page.words
    assert "for example val/a.png is train/b.png" in page.words
    assert "what it sees at bn1 is 0.12 deviations from what it was trained on" in page.words
    assert "of it the probe 0.1 s in 8 probes (1%)" in page.words
    assert "95% interval of 360 images: 75.6 to 83.8%" in page.words


def test_figures_carry_words_and_numbers(tmp_path: Path):
    _, page = read(write_report(make_probed(tmp_path / "run")))
    assert len(page.all("desc")) == len(page.all("svg"))
    assert "At step 70, epoch 10: W as it is: largest 2, middle " in page.words
    assert "the fullest bar, 23% of the channels, is 0.7 to 0.8" in page.words
    inputs = page.all("input")
    assert [slider["type"] for slider in inputs] == ["range", "range"]
    assert all(slider["aria-label"] for slider in inputs)
    assert "the table has the others" in page.words  # without the script
    titles = {chart.id: chart.title for chart in run_charts(tmp_path / "run")}
    for figure in ("ranks-feature", "fit-feature", "balance"):
        assert f"Numbers of: {titles[figure]}" in page.words


def test_the_numbers_drawn_are_those_of_the_log(tmp_path: Path):
    charts = {chart.id: chart for chart in run_charts(make_probed(tmp_path / "run", probes=3))}
    table = charts["gradient-share-feature"].table
    assert table is not None
    assert len(table.heads) == 3 + 1 + 8
    frames = json.loads(charts["histogram-feature"].frames)
    assert frames["labels"] == ["step 0, epoch 0", "step 10, epoch 5", "step 20, epoch 10"]
    dynamics = charts["dynamics-feature"].table
    assert dynamics is not None
    assert dynamics.rows[0] == ("0", "0.9", "0.8", "0.8")
    assert dynamics.rows[-1] == ("20", "0.3", "0.1", "0.05")


def test_of_several_terms_each_has_its_figures(tmp_path: Path):
    _, page = read(write_report(make_probed(tmp_path / "run", terms=("deep", "shallow"))))
    for kind in CHARTS:
        assert {f"{kind}-deep", f"{kind}-shallow"} <= ids(page)
    assert "Ranks · shallow" in page.words


def test_terms_whose_names_differ_in_what_no_name_can_show(tmp_path: Path):
    text, page = read(write_report(make_probed(tmp_path / "run", terms=("a b", "a/b", EVIL))))
    check_page(text, page)
    assert {"ranks-a-b", "ranks-a-b-2"} <= ids(page)
    assert EVIL not in text


def test_an_own_loop_needs_no_more_than_a_log(tmp_path: Path):
    """A folder with a log of steps, epochs and probes, and nothing else."""
    append(
        tmp_path,
        *(
            {"kind": "step", "step": s, "loss": 2.0 / (s + 1), "parts": {"task": 1.0, "feature": -3.0 * s}}
            for s in range(5)
        ),
        *(probe(s, 4) for s in range(5)),
    )
    text, page = read(write_report(tmp_path))
    check_page(text, page)
    assert {f"{kind}-feature" for kind in CHARTS} <= ids(page)
    assert {"curve-loss", "curve-total", "part-feature"} <= ids(page)
    assert "A log with 5 records of steps and 5 of the probe." in page.words
    assert "has not ended" not in page.words
    assert "Run it again" not in page.words


def test_a_run_without_probes_says_so(tmp_path: Path):
    text, page = read(write_report(make_run(tmp_path / "run")))
    check_page(text, page)
    assert page.all("script") == []
    assert "this run recorded no probes" in page.words
    assert "runs no script" in page.words


def test_verdicts_lead_to_their_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_probed(tmp_path / "run")
    told: list[Any] = []

    def judge(records: Any) -> list[Verdict]:
        told.extend(records)
        return [
            Verdict("collapse", "The projector has collapsed", "Rank 2.", "It forgot.", "Less decay.", "ranks-feature"),
            Verdict("lost", "Elsewhere", EVIL, "b", "c", "no-such-figure"),
            Verdict("balance", "One part drowns the other", "a", "b", "c", "parts"),
        ]

    monkeypatch.setattr("limbeck.report.run.verdicts", judge)
    text, page = read(write_report(run))
    check_page(text, page)
    links = [a["href"] for a in page.all("a")]
    assert links.count("#ranks-feature") == links.count("#parts") == 1
    assert "#no-such-figure" not in links
    assert EVIL not in text
    assert text.index("The projector has collapsed") < text.index('<h2 id="s-setting">')
    assert {record["kind"] for record in told} >= {"step", "epoch", "probe", "data", "inputs"}


def test_every_rule_names_a_figure_of_the_page(tmp_path: Path):
    run = make_faulty(tmp_path / "run")
    text, page = read(write_report(run))
    check_page(text, page)
    links = [str(a["href"])[1:] for a in page.all("a")]
    assert [figure for figure in links if figure in FAULTS.values()] == list(FAULTS.values())
    assert set(FAULTS.values()) <= ids(page)


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of everything in a record, from the top."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*above, key)
        if not isinstance(item, list) or len(item) == 0 or isinstance(item[0], list):
            yield from paths(item, (*above, key))


def changed(record: dict[str, Any], path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    copied = copy.deepcopy(record)
    inner: Any = copied
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return copied


def remove(inner: Any, key: Any) -> None:
    del inner[key]


def put(value: Any) -> Callable[[Any, Any], None]:
    def change(inner: Any, key: Any) -> None:
        inner[key] = value

    return change


DAMAGES = {
    "missing": remove,
    "null": put(None),
    "text": put(EVIL),
    "not a number": put(float("nan")),
    "list": put([1, None, "x"]),
    "empty list": put([]),
    "mapping": put({"": {}}),
    "negative": put(-1.0),
    "zeros": put([0, 0]),
}


def check_charts(run: Path) -> None:
    charts = run_charts(run)
    assert {f"{kind}-feature" for kind in CHARTS} | set(WHOLE) - {"equivariance"} <= {chart.id for chart in charts}
    for chart in charts:
        assert "nan" not in chart.frames
        for canvas in (chart.wide, chart.narrow):
            assert canvas is None or not any("nan" in stroke.path for stroke in canvas.strokes)


@pytest.mark.parametrize("damage", DAMAGES)
def test_probes_damaged_anywhere_give_their_page(tmp_path: Path, damage: str):
    """A log with a probe for each field that a probe has, in which this field is damaged, between two good ones."""
    run = make_run(tmp_path / "run")
    good = probe(10, 20, count=8)
    broken = [changed(good, path, DAMAGES[damage]) for path in paths(good) if path not in (("kind",), ("step",))]
    assert len(broken) > 80
    steps = ({**record, "step": 10 + i} if record.get("step") == 10 else record for i, record in enumerate(broken))
    append(run, probe(0, 20, count=8), *steps, probe(500, 500, count=8))
    check_charts(run)
    check_page(*read(write_report(run)))


@pytest.mark.parametrize("damage", ["missing", "list"])
def test_the_last_probe_may_be_damaged(tmp_path: Path, damage: str):
    """From the last one comes what a page shows without its script."""
    good = probe(20, 20, count=8)
    make_run(tmp_path / "run")
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    for path in [
        p for p in paths(good) if len(p) <= 3 and p != ("kind",) and p[0] in ("terms", "step", "equivariance")
    ]:
        (tmp_path / "run" / "log.jsonl").write_text(log, encoding="utf-8")
        broken = changed(good, path, DAMAGES[damage])
        append(tmp_path / "run", probe(0, 20, count=8), probe(10, 20, count=8), broken)
        check_charts(tmp_path / "run")
    check_page(*read(write_report(tmp_path / "run")))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"samples": 3}',
        '{"samples": [3, {}, {"png": 5}, {"png": "@@@"}, {"png": "AAAA"}]}',
        json.dumps({"samples": [{"png": picture(0), "student": [[0]], "teacher": [[1, "x"], 3], "label": None}]}),
        json.dumps({"classes": 3, "samples": [{"png": picture(0), "student": 3, "label": 99}]}),
        json.dumps({"classes": [EVIL], "samples": [{"png": picture(0), "student": [[0, 7.0]], "label": 0}]}),
    ],
)
def test_damaged_samples(tmp_path: Path, text: str):
    run = make_run(tmp_path / "run")
    (run / "samples.json").write_text(text, encoding="utf-8")
    html, page = read(write_report(run))
    check_page(html, page)
    assert EVIL not in html


def test_samples_say_what_they_show(tmp_path: Path):
    _, page = read(write_report(make_probed(tmp_path / "run")))
    images = page.all("img")
    assert len(images) == 24
    assert images[1]["alt"] == "Validation image 7, labelled dog: student says lighthouse, teacher says dog"
    assert (images[0]["width"], images[0]["height"]) == ("32", "32")
    assert "lighthouse 62%" in page.words
    assert "dog ✓ (right) 91%" in page.words


def test_an_image_that_is_too_large_is_left_out():
    def of(png: str) -> int:
        record = RunRecord("", {}, "", {}, (), (), (), (), {}, samples={"samples": [{"png": png}]})
        return len(samples(record))

    assert of(picture(0)) == 1
    assert of(picture(0, size=1025)) == 0


@pytest.mark.parametrize(
    "record", [3, {"kind": 3}, {"kind": "probe"}, {"kind": "data"}, {"kind": "inputs", "teacher": 3}]
)
def test_odd_records(tmp_path: Path, record: Any):
    run = make_run(tmp_path / "run")
    append(run, record)
    check_page(*read(write_report(run)))


def test_confidence_by_normalization(tmp_path: Path):
    run = make_run(tmp_path / "run")
    append(run, {"kind": "inputs", "teacher": {"confidence": {"own": 0.91, "half": 0.42, "none": "x"}}})
    words = read(write_report(run))[1].words
    assert "mean confidence by the normalization of the images: own 91%, half 42%" in words


def test_a_term_without_a_projector_has_its_similarity(tmp_path: Path):
    run = make_run(tmp_path / "run")
    append(run, *({"kind": "probe", "step": step, "terms": {"relation": {"cka": 0.1 * step}}} for step in (1, 2)))
    charts = {chart.id: chart for chart in run_charts(run)}
    table = charts["cka-relation"].table
    assert table is not None
    assert table.rows == (("1", "0.1"), ("2", "0.2"))
    assert "spectrum-relation" not in charts


def test_blocks_are_placed_by_their_depth(tmp_path: Path):
    run = make_run(tmp_path / "run")
    append(run, {"kind": "probe", "step": 1, "equivariance": {"blocks.11": 0.4, "blocks.2": 0.1, "blocks.5": 0.2}})
    table = {chart.id: chart for chart in run_charts(run)}["equivariance"].table
    assert table is not None
    assert table.rows == (("2", "0.1"), ("5", "0.2"), ("11", "0.4"))


def test_no_image_twice_is_said(tmp_path: Path):
    run = make_run(tmp_path / "run")
    append(run, {"kind": "data", "leaked": 0, "conflicting": 0, "train_duplicates": 0})
    assert "no image is there twice" in read(write_report(run))[1].words


def test_of_a_run_that_went_on_the_later_probe_counts(tmp_path: Path):
    run = make_run(tmp_path / "run")
    early = {**probe(10, 20), "student": {"top1": 0.1}}
    append(run, probe(0, 20), early, probe(20, 20), probe(10, 20))
    chart = {chart.id: chart for chart in run_charts(run)}["agreement"]
    assert chart.table is not None
    assert [row[2] for row in chart.table.rows] == ["10.0%", "45.0%", "80.0%"]


def test_the_page_of_a_long_run_is_small(tmp_path: Path):
    """2,000 logged steps and 200 probes of two projectors with 512 singular values."""
    run = make_probed(tmp_path / "run", probes=200, steps=2000, terms=("a", "b"), count=512, epochs=300)
    text, page = read(write_report(run))
    check_page(text, page)
    assert len(text.encode()) < 2_000_000  # measured: 0.8 MB; 6 are allowed
    assert "Sliders have 60 of the 200 probes and lines have at most 160 points" in page.words
    assert "log.jsonl has everything" in page.words


@pytest.mark.processes
def test_the_command_makes_the_page_of_a_thousand_steps_quickly_and_without_torch(tmp_path: Path):
    """From its first line to its last, in a process of its own, as a user waits for it; verdicts included."""
    run = make_probed(tmp_path / "run", probes=60, steps=1000, epochs=100)
    code = (
        "import sys; from limbeck.cli import main; code = main(['report', sys.argv[1]]); "
        "print(*[name for name in ('torch', 'timm', 'numpy') if name in sys.modules]); sys.exit(code)"
    )
    source = str(Path(__file__).resolve().parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True, env=environment
    )
    assert time.perf_counter() - began < 10  # measured: 0.7 s
    assert done.stdout.splitlines() == [f"report: {run / 'report.html'}", ""]


def test_the_interval_of_a_share_against_scipy():
    from scipy.stats import binomtest

    for hits, n in ((0, 10), (9, 10), (45, 60), (500, 500), (123, 5000)):
        low, high = wilson(hits / n, n)
        exact = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (low, high) == (pytest.approx(exact.low, abs=1e-7), pytest.approx(exact.high, abs=1e-7))


def test_numbers_are_finite_or_nothing():
    assert numbers({"a": {"b": [1, 2.5]}}, "a", "b") == [1.0, 2.5]
    for bad in ([1, float("inf")], [True], ["1"], "12", None, {"0": 1}):
        assert numbers({"a": bad}, "a") == []
    assert number({"a": 10**400}, "a") is None
