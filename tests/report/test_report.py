"""Pages of finished, killed, damaged and hostile runs: complete, self-contained, escaped, small."""

import json
import math
import re
from importlib import resources
from pathlib import Path

import pytest
import yaml

from limbeck.errors import UserError
from limbeck.report import write_comparison, write_report
from limbeck.report.groups import read_comparison
from limbeck.report.record import read_run
from limbeck.report.words import duration
from report.planted import EVIL, check_page, comparison, make_run, read


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


@pytest.mark.parametrize("ended", [True, False])
def test_the_teachers_share_stands_beside_the_time(tmp_path: Path, ended: bool):
    """8 seconds of training, of which the teacher took 3: by the summary, or of a run that goes on by its steps."""
    cost = {"cost": {"teacher": "run", "teacher_seconds": 3.0, "teacher_share": 0.375}}
    run = make_run(tmp_path / "run", ended=ended)
    if ended:
        edit(run, cost)
    with (run / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in (50, 60):
            log.write(json.dumps({"kind": "step", "step": step, "teacher_seconds": 1.5}) + "\n")
    _, page = read(write_report(run))
    assert "training time 8.0 s of it the teacher's forward passes 3.0 s (38%)" in page.words


def test_a_teacher_that_was_read_from_a_cache_is_named_so(tmp_path: Path):
    run = make_run(tmp_path / "run", cache_views=2)
    edit(run, {"cost": {"teacher": "cache", "teacher_seconds": 0.08, "teacher_share": 0.01}})
    _, page = read(write_report(run))
    assert "of it reading the teacher's outputs from the cache 0.1 s (1%)" in page.words


def test_projectors_at_every_stage_are_said(tmp_path: Path):
    runs = [make_run(tmp_path / name, projector="linear", method=name) for name in ("stages", "projector")]
    words = [read(write_report(run))[1].words for run in runs]
    assert "projector linear, at every stage" in words[0]
    assert "at every stage" not in words[1]


def test_a_run_that_did_not_time_its_teacher_says_nothing_of_it(tmp_path: Path):
    _, page = read(write_report(make_run(tmp_path / "run")))
    assert "of it" not in page.words


def edit(run: Path, more: dict) -> None:
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **more}), encoding="utf-8")


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


def test_page_of_a_comparison(tmp_path: Path):
    text, page = read(write_comparison(comparison(tmp_path)))
    check_page(text, page)
    assert "The method “kd” has the best mean: 90.00% top-1 accuracy, +11.00 points against alone" in page.words
    assert "kd: +11.00 points against alone (95% interval +0.50 to +21.50, 3 seeds). Zero lies outside" in page.words
    assert "but not when corrected for 2 claims (Holm): no difference shown." in page.words
    assert (
        "projector: +10.00 points against alone (95% interval −0.50 to +20.50, 3 seeds). Zero lies inside" in page.words
    )
    assert "limbeck compare --recipe digits" in page.words
    assert "teacher 99.00%" in page.words
    assert len(page.all("svg")) == 6  # means, differences, curves and accuracy against time (wide and narrow)


def test_a_comparison_shows_what_its_runs_share_and_links_their_pages(tmp_path: Path):
    folder = comparison(tmp_path, seeds=1)
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    record["recipe"] |= {"method": "projector+kd", "lr": 0.7}  # what was planned, and no run used
    record["in common"] = "float32, contiguous, not compiled; cpu (2 threads)"
    (folder / "comparison.json").write_text(json.dumps(record), encoding="utf-8")
    for name in ("kd-seed0", "projector-seed0"):
        recipe = yaml.safe_load((folder / name / "recipe.yaml").read_text(encoding="utf-8")) | {"teacher": "big"}
        (folder / name / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        write_report(folder / name)
    shared = read_comparison(folder).recipe
    assert dict(shared) == {
        "name": "digits", "seed": 0, "epochs": 4, "lr": 0.05, "teacher_tap": None, "teacher": "big"
    }  # fmt: skip
    text, page = read(write_comparison(folder))
    check_page(text, page)
    assert "projector+kd" not in page.words
    assert "All runs: float32, contiguous, not compiled; cpu (2 threads)." in page.words
    assert [link["href"] for link in page.all("a")][1:] == ["kd-seed0/report.html", "projector-seed0/report.html"]


def test_comparison_of_one_seed_concludes_nothing(tmp_path: Path):
    _, page = read(write_comparison(comparison(tmp_path, seeds=1)))
    assert "Fewer than 3 seeds: nothing can be concluded" in page.words


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


def test_durations_round_to_whole_units():
    assert duration(59.96) in ("60.0 s", "1 min 0 s")
    assert duration(3599.9) == "1 h 0 min"


def contrast(one: str, other: str) -> float:
    """Of two colors, as the rules for accessible pages have it."""

    def luminance(color: str) -> float:
        digits = color if len(color) == 7 else "#" + "".join(2 * letter for letter in color[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colors_can_be_read_in_light_in_dark_and_on_paper():
    """Every color that letters may have, on a card and on the page: at least 4.5 to 1."""
    style = resources.files("limbeck.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    palettes = [
        dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(palettes) == 3
    for palette in palettes:
        for name in palette.keys() - {"page", "card", "rule", "grid", "code"}:
            for ground in ("card", "page"):
                assert contrast(palette[name], palette[ground]) >= 4.5, (name, palette[name], ground)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
