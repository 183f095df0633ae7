"""Pages of finished, killed, damaged and hostile runs: complete, self-contained, escaped, small."""

import itertools
import json
import math
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.errors import UserError
from limbeck.report import write_comparison, write_report
from limbeck.report.chart import Level, Line, Span
from limbeck.report.draw import dot_chart, line_chart, thin
from limbeck.report.record import read_run
from limbeck.report.words import Format, duration

VOID = {"meta", "br"}
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def make_run(
    folder: Path,
    *,
    method: str = "projector",
    seed: int = 0,
    epochs: int = 4,
    top1: float = 0.8,
    ended: bool = True,
    **more: Any,
) -> Path:
    """A run folder as the run itself writes it."""
    folder.mkdir(parents=True)
    recipe = {
        "name": "digits",
        "method": method,
        "seed": seed,
        "epochs": epochs,
        "lr": 0.05,
        "teacher_tap": None,
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    finding = {
        "level": "warning",
        "name": "gradients",
        "message": "feature pulls 14 times as hard",
        "advice": "lower it",
    }
    records: list[Mapping[str, Any]] = [
        {"kind": "note", "text": "data digits: 1437 train"},
        {"kind": "preflight", "findings": [{"level": "ok", "name": "frozen", "message": "yes", "advice": ""}, finding]},
        {
            "kind": "start",
            "counts": {"student": 1000, "teacher": 64_000, "terms": 32},
            "device": "cpu",
            "versions": {"torch": "2"},
        },
    ]
    for epoch in range(1, epochs + 1):
        value = top1 - 0.1 * (epochs - epoch)
        parts = {"task": 2.0 / epoch, "feature": 3.0 / epoch}
        readings = {"feature/correlation": 1 - 1 / epoch}
        records.append(
            {"kind": "step", "step": 10 * epoch, "epoch": epoch, "loss": 5.0, "parts": parts, "readings": readings}
            | {"lr": 0.05, "images_per_second": 900.0}
        )
        train = {"loss": 5.0 / epoch, **parts, "images_per_second": 900.0}
        val = {"top1": value, "top5": 0.99, "loss": 1.0 / epoch}
        records.append(
            {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "train": train, "val": val, "seconds": 2.0 * epoch}
        )
    if ended:
        summary = {
            "recipe": "digits",
            "method": method,
            "seed": seed,
            "metric": "top1",
            "last": {"top1": top1, "top5": 0.99, "loss": 0.25},
            "best": {"epoch": epochs, "top1": top1},
            "teacher": None if method == "alone" else {"top1": 0.95},
            "seconds": 8.0,
            "images_per_second": 900.0,
            "peak_memory_mib": 1234.5,
            "parameters": {"student": 1000, "teacher": 64_000, "terms": 32},
            "data": {"name": "digits", "train": 1437, "val": 360},
            "versions": {"limbeck": "0.1.0", "torch": "2.15.0"},
            "commit": "0123abc",
            "device": "cpu",
        }
        records.append({"kind": "end", "summary": summary})
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def check_page(text: str, page: Page) -> None:
    """What holds for every page: one file, no script, no network, names for what is drawn."""
    assert len(text.encode()) < 1_000_000
    assert "://" not in text
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [
        name
        for _, attributes in page.tags
        for name in attributes
        if name in ("src", "href") and "#" not in str(attributes[name])
    ]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert set(str(svg["aria-labelledby"]).split()) <= set(map(str, ids))
    assert len(page.all("h1")) == 1
    assert "nan" not in {value for _, attributes in page.tags for value in attributes.values()}


def test_page_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = write_report(make_run(tmp_path / "runs" / "one"))
    assert path == tmp_path / "runs" / "one" / "report.html"
    text, page = read(path)
    check_page(text, page)
    assert "digits · projector · seed 0" in page.words
    assert (
        "The student has 80.00% top-1 accuracy on the validation images; the teacher has 95.00% (−15.00 points)."
        in page.words
    )
    assert "the teacher has 64.0 times as many" in page.words
    assert "1,234 MiB" in page.words
    assert "limbeck distill --recipe runs/one/recipe.yaml --out NEW_FOLDER" in page.words
    assert page.words.index("feature pulls 14 times") < page.words.index("frozen")  # warnings before what is well
    assert str(tmp_path) not in text
    # validation (wide and narrow), task, weighted sum, feature, correlation, learning rate, speed
    assert len(page.all("svg")) == 8


def test_page_is_written_again(tmp_path: Path):
    run = make_run(tmp_path / "run")
    first = write_report(run).read_text(encoding="utf-8")
    assert write_report(run).read_text(encoding="utf-8") == first
    assert not list(run.glob("*.part"))


def test_killed_run_says_so(tmp_path: Path):
    run = make_run(tmp_path / "run", ended=False, epochs=30)
    log = run / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines()[:9]
    log.write_text("\n".join(lines) + '\n{"kind": "epoch", "epo', encoding="utf-8")
    text, page = read(write_report(run))
    check_page(text, page)
    assert "This run has not ended: 3 of 30 epochs" in page.words
    assert "limbeck distill --resume run" in page.words


@pytest.mark.parametrize("kept", ["log.jsonl", "recipe.yaml", "summary.json"])
def test_any_one_file_is_enough(tmp_path: Path, kept: str):
    run = make_run(tmp_path / "run")
    for path in run.iterdir():
        if path.name != kept:
            path.unlink()
    check_page(*read(write_report(run)))


@pytest.mark.parametrize(
    "log",
    [
        "",
        "not json\n[]\n3\nnull\n",
        '{"kind": "epoch"}\n{"kind": "step", "readings": null}\n{"kind": "preflight"}\n{"kind": "note"}\n',
        '{"kind": "end"}\n{"kind": "end", "summary": {"last": {"top1": "high"}, "best": {}, "teacher": {}}}\n',
        '{"kind": "epoch", "epoch": 1, "train": {"loss": NaN}, "val": {"top1": Infinity, "loss": "high"}}\n',
        '{"kind": "epoch", "epoch": 1, "train": {"loss": 1, "task": 0}, "val": {}}\n',
        '{"kind": "preflight", "findings": [{}, 3]}\n',
    ],
)
def test_damaged_log_gives_a_page(tmp_path: Path, log: str):
    (tmp_path / "log.jsonl").write_text(log, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text("a: [", encoding="utf-8")
    (tmp_path / "summary.json").write_text('{"last": ', encoding="utf-8")
    check_page(*read(write_report(tmp_path)))


def test_run_without_labels_is_judged_by_its_loss(tmp_path: Path):
    run = make_run(tmp_path / "run", ended=False)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        if record["kind"] == "epoch":
            record["val"] = {"loss": record["val"]["loss"]}
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    _, page = read(write_report(run))
    assert "The student's validation loss is 0.25 on the validation images." in page.words


def test_what_comes_from_a_run_is_escaped(tmp_path: Path):
    run = make_run(tmp_path / "run", data=EVIL)
    with (run / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"kind": "note", "text": EVIL}) + "\n")
        log.write(json.dumps({"kind": "step", "step": 1, "readings": {EVIL: 0.5}}) + "\n")
    text, page = read(write_report(run))
    assert EVIL not in text
    assert page.words.count(EVIL) >= 2
    check_page(text, page)


def test_no_run_is_a_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no run: expected at least one of log\.jsonl"):
        write_report(tmp_path)
    with pytest.raises(UserError, match=r"holds no comparison: expected comparison\.json"):
        write_comparison(tmp_path)


def test_long_log_stays_small(tmp_path: Path):
    run = make_run(tmp_path / "run", epochs=300)
    with (run / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in range(20_000):
            log.write(
                json.dumps({"kind": "step", "step": 3000 + step, "readings": {"feature/correlation": math.sin(step)}})
                + "\n"
            )
    text, page = read(write_report(run))
    check_page(text, page)
    assert len(text) < 300_000


def comparison(folder: Path, *, seeds: int = 3) -> Path:
    """A comparison folder with its runs."""
    rows: list[dict[str, Any]] = []
    for method, top1 in (("alone", 0.79), ("kd", 0.9), ("projector", 0.89)):
        names = [f"{method}-seed{seed}" for seed in range(seeds)]
        for seed, name in enumerate(names):
            make_run(folder / name, method=method, seed=seed, top1=top1 + 0.01 * seed)
        spread = (
            {"sd": 0.01, "low": top1 - 0.02, "high": top1 + 0.03}
            if seeds > 1
            else {"sd": None, "low": None, "high": None}
        )
        gap = top1 - 0.79
        ends = {"low": gap - 0.105, "high": gap + 0.105} if seeds > 1 else {"low": None, "high": None}
        paired = None if method == "alone" else {"against": "alone", "n": seeds, "mean": gap, "sd": None, **ends}
        rows.append(
            {"method": method, "n": seeds, "mean": top1, **spread, "best_mean": top1 + 0.01, "paired": paired}
            | {"seconds": 4.2, "runs": names}
        )
    record = {
        "command": "limbeck compare --recipe digits",
        "recipe": {"name": "digits", "lr": 0.05},
        "metric": "top1",
        "rows": rows,
        "teacher": {"top1": 0.99, "run": "teachers/one"},
    }
    (folder / "comparison.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_page_of_a_comparison(tmp_path: Path):
    text, page = read(write_comparison(comparison(tmp_path)))
    check_page(text, page)
    assert "The method “kd” has the best mean: 90.00% top-1 accuracy, +11.00 points against alone" in page.words
    assert "kd: +11.00 points against alone (95% interval +0.50 to +21.50, 3 seeds). Zero lies outside" in page.words
    assert (
        "projector: +10.00 points against alone (95% interval −0.50 to +20.50, 3 seeds). Zero lies inside" in page.words
    )
    assert "limbeck compare --recipe digits" in page.words
    assert "teacher 99.00%" in page.words
    assert len(page.all("svg")) == 4  # means, differences, curves (wide and narrow)


def test_comparison_of_one_seed_concludes_nothing(tmp_path: Path):
    _, page = read(write_comparison(comparison(tmp_path, seeds=1)))
    assert "One seed allows no conclusion." in page.words


def test_comparison_without_its_runs(tmp_path: Path):
    folder = comparison(tmp_path)
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    for row in record["rows"]:
        row["runs"] = ["gone", "../outside", 3]
    (folder / "comparison.json").write_text(json.dumps(record), encoding="utf-8")
    text, page = read(write_comparison(folder))
    check_page(text, page)
    assert len(page.all("svg")) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": 3}', '{"rows": [{}], "teacher": 3, "metric": null}'])
def test_damaged_comparison_gives_a_page(tmp_path: Path, text: str):
    (tmp_path / "comparison.json").write_text(text, encoding="utf-8")
    check_page(*read(write_comparison(tmp_path)))


def test_record_keeps_the_order_of_the_log(tmp_path: Path):
    record = read_run(make_run(tmp_path / "run"))
    assert [epoch["epoch"] for epoch in record.epochs] == [1, 2, 3, 4]
    assert record.finished
    assert record.notes == ("data digits: 1437 train",)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [0.0, 0.0], [-5.0, 1e9], [1e-12, 2e-12], [-3.0, -2.0]])
def test_lines_stay_on_their_canvas(values: list[float]):
    points = [(float(index), value) for index, value in enumerate(values)]
    chart = line_chart(
        "t", [Line("a", "s", points)], x_title="epoch", fmt=Format(), levels=[Level("l", "s", values[0])], large=True
    )
    assert chart is not None
    for canvas in (chart.wide, chart.narrow):
        assert canvas is not None
        assert canvas.y_ticks
        for tick in canvas.y_ticks:
            assert canvas.top - 0.1 <= tick.at <= canvas.bottom + 0.1
        for mark in canvas.marks:
            assert canvas.left <= mark.x <= canvas.right
            assert canvas.top <= mark.y <= canvas.bottom
        heights = sorted(label.y for label in canvas.labels)
        assert all(b - a >= 14.9 for a, b in itertools.pairwise(heights))


def test_empty_charts_are_left_out():
    assert line_chart("t", [Line("a", "s", [])], x_title="epoch", fmt=Format()) is None
    assert dot_chart("t", [], x_title="x", fmt=Format()) is None


def test_dot_chart_of_equal_values():
    chart = dot_chart("t", [Span("a", "s", 0.5, None, None), Span("b", "s", 0.5, 0.5, 0.5)], x_title="x", fmt=Format())
    assert chart is not None
    assert "no interval" in chart.description
    assert all(math.isfinite(mark.x) for mark in chart.wide.marks)


def test_thinning_keeps_the_mean():
    points = [(float(x), float(x % 7)) for x in range(1000)]
    thinned = thin(points, most=100)
    assert len(thinned) == 100
    assert sum(y for _, y in thinned) / 100 == pytest.approx(sum(y for _, y in points) / 1000)


def test_durations_round_to_whole_units():
    assert duration(59.96) in ("60.0 s", "1 min 0 s")
    assert duration(3599.9) == "1 h 0 min"
