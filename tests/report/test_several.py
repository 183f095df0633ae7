"""Several runs on one page: who belongs together, what is left out, and the differences in pairs."""

import json
from pathlib import Path

import pytest

import planted
from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.report import write_comparison, write_report, write_runs
from limbeck.report.comparison import read_runs
from limbeck.report.groups import gather
from report.planted import check_page, comparison, make_run, read


def test_runs_that_differ_in_the_seed_are_one_method(tmp_path: Path):
    folders = [
        make_run(tmp_path / f"{method}{seed}", method=method, seed=seed, top1=top1 + 0.01 * seed)
        for seed in range(3)
        for method, top1 in (("kd", 0.85), ("alone", 0.8))
    ]
    found = gather(read_runs(folders))
    assert [(m.name, len(m.runs), m.mean) for m in found.methods] == [
        ("kd", 3, pytest.approx(0.86)),
        ("alone", 3, pytest.approx(0.81)),
    ]
    assert found.baseline == "alone"
    difference = found.methods[0].difference
    assert (difference["n"], difference["mean"]) == (3, pytest.approx(0.05))
    assert difference["low"] == pytest.approx(0.05)  # the seeds shift both by the same
    text, page = read(write_runs(folders, tmp_path / "all.html", command="limbeck report a b"))
    check_page(text, page)
    assert {"means", "differences", "curve-top1", "against-time"} == {figure["id"] for figure in page.all("figure")}
    assert "kd: +5.00 points against alone (95% interval +5.00 to +5.00, 3 seeds). Every seed differs" in page.words
    assert "kd − alone" in page.words
    assert "limbeck report a b" in page.words


def test_groups_are_named_by_what_differs_and_the_first_is_the_baseline(tmp_path: Path):
    runs = [make_run(tmp_path / f"r{lr}-{seed}", seed=seed, lr=lr, top1=lr) for lr in (0.1, 0.2) for seed in (0, 1)]
    found = gather(read_runs(runs))
    assert [m.name for m in found.methods] == ["lr 0.1", "lr 0.2"]
    assert found.baseline == "lr 0.1"
    assert "lr" not in found.recipe
    assert found.recipe["epochs"] == 4
    _, page = read(write_runs(runs, tmp_path / "page.html"))
    assert "Difference to lr 0.1, seed by seed" in page.words


def test_pairs_are_made_of_shared_seeds_only(tmp_path: Path):
    runs = [make_run(tmp_path / f"a{s}", method="alone", seed=s, top1=0.5 + s / 10) for s in (0, 1)]
    runs += [make_run(tmp_path / f"b{s}", method="kd", seed=s, top1=0.6 + s / 10) for s in (1, 2)]
    kd = gather(read_runs(runs)).methods[1]
    assert (kd.difference["n"], kd.difference["mean"], kd.difference["low"]) == (1, pytest.approx(0.1), None)


def test_what_is_left_out_is_said(tmp_path: Path):
    runs = [make_run(tmp_path / "a", seed=0), make_run(tmp_path / "b", seed=1, ended=False)]
    twice = make_run(tmp_path / "c", seed=0, top1=0.9)
    other = make_run(tmp_path / "d", seed=2)
    for run in (runs[0], twice, other):
        summarize(run, data={"val": 360, "fingerprint": "else" if run == other else "one"})
    found = gather(read_runs([*runs, twice, other]))
    assert found.remarks == [
        "b has not finished and is skipped.",
        "projector: seed 0 is there twice; c counts, a does not.",
        "The runs differ in digest of names, sizes and labels (one in a, c; else in d), so their figures do "
        "not compare as they stand.",
    ]
    assert (found.methods[0].row["n"], found.methods[0].mean) == (2, pytest.approx(0.85))
    assert set(found.methods[0].runs) == {"c", "d"}
    _, page = read(write_runs([*runs, twice, other], tmp_path / "page.html"))
    assert "b has not finished and is skipped." in page.words


def summarize(run: Path, **more: object) -> None:
    """Add to the summary of a run."""
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | more), encoding="utf-8")


FLOAT32 = {"precision": "float32", "memory_format": "contiguous", "compile": "off"}
TEACHER = {"weights": "hub", "digest": "d1", "classes": 10, "new_head": False}


@pytest.mark.parametrize(
    ("more", "remark"),
    [
        ({}, ""),
        ({"device": "cpu (x86_64, 2 threads)"}, ""),
        ({"device": "H200"}, "The runs differ in device (cpu in a; H200 in b), so their seconds do not compare."),
        (
            {"arithmetic": {**FLOAT32, "precision": "bf16"}},
            "The runs differ in arithmetic (float32, contiguous, not compiled in a; bf16, contiguous, not compiled in "
            "b), so a small difference of their figures may come from it.",
        ),
        (
            {"data": {"val": 100, "content": "c"}},
            "The runs differ in validation images (360 in a; 100 in b), so their figures do not compare as they stand.",
        ),
        (
            {"origins": {"teacher": {**TEACHER, "digest": "d2"}}},
            "The runs differ in the digest of big with 10 classes (d1 in a; d2 in b), so a difference of their "
            "figures may come from the teacher.",
        ),
        ({"origins": {"teacher": {**TEACHER, "digest": "d2", "new_head": True}}}, ""),  # a head that nothing reads
    ],
)
def test_what_runs_do_not_share_is_said(tmp_path: Path, more: dict[str, object], remark: str):
    runs = [make_run(tmp_path / name, seed=seed, teacher="big") for seed, name in enumerate("ab")]
    for run in runs:
        summarize(run, arithmetic=FLOAT32, origins={"teacher": TEACHER}, data={"val": 360, "fingerprint": "f"})
    summarize(runs[1], **more)
    found = gather(read_runs(runs))
    assert list(found.remarks) == ([remark] if remark else [])
    if not remark:
        assert found.in_common == "float32, contiguous, not compiled; cpu"
        assert f"All runs: {found.in_common}." in read(write_runs(runs, tmp_path / "page.html"))[1].words


def test_single_runs_link_to_their_pages_from_wherever_the_page_is(tmp_path: Path):
    runs = [make_run(tmp_path / "my runs" / name, seed=seed) for seed, name in enumerate(("a", 'b"<'))]
    write_report(runs[1])
    (tmp_path / "pages").mkdir()
    text, page = read(write_runs(runs, tmp_path / "pages" / "both.html"))
    check_page(text, page)
    assert [link["href"] for link in page.all("a")][1:] == ["../my%20runs/b%22%3C/report.html"]


def test_a_comparison_folder_stands_for_its_runs(tmp_path: Path):
    (tmp_path / "cmp").mkdir()
    found = gather(
        read_runs([comparison(tmp_path / "cmp", seeds=2), make_run(tmp_path / "mine", method="crd", top1=0.95)])
    )
    assert [m.name for m in found.methods] == ["alone", "kd", "projector", "crd"]
    assert found.methods[3].difference["n"] == 1


def test_logs_of_own_loops_can_be_compared(tmp_path: Path):
    for name, top1 in (("mine", 0.5), ("yours", 0.6)):
        (tmp_path / name).mkdir()
        record = {"kind": "epoch", "epoch": 1, "step": 5, "train": {"loss": 1.0}, "val": {"top1": top1}}
        (tmp_path / name / "log.jsonl").write_text(json.dumps(record), encoding="utf-8")
    found = gather(read_runs([tmp_path / "mine", tmp_path / "yours"]))
    assert [(m.name, m.mean) for m in found.methods] == [("mine", 0.5), ("yours", 0.6)]
    assert found.methods[1].difference == {}  # no seeds, no pairs
    check_page(*read(write_runs([tmp_path / "mine", tmp_path / "yours"], tmp_path / "page.html")))


def test_runs_that_cannot_be_compared(tmp_path: Path):
    with pytest.raises(UserError, match="none of these runs has ended"):
        write_runs([make_run(tmp_path / "a", ended=False)], tmp_path / "x.html")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log.jsonl").write_text('{"kind": "epoch", "val": {"loss": 1}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"the runs report different metrics \(loss, top1\)"):
        write_runs([make_run(tmp_path / "b"), tmp_path / "log"], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"), seed=0)
    make_run(Path("b"), seed=1)
    Path("cmp").mkdir()
    comparison(Path("cmp"))
    assert main(["report", "a"]) == 0
    assert main(["report", "cmp"]) == 0
    assert main(["report", "a", "b"]) == 0
    assert main(["report", "a", "--out", "pages/a.html"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "report: a/report.html",
        "report: cmp/report.html",
        "report: comparison.html",
        "report: pages/a.html",
    ]
    for page in ("a/report.html", "cmp/report.html", "comparison.html", "pages/a.html"):
        check_page(*read(Path(page)))
    assert "limbeck report a b" in read(Path("comparison.html"))[1].words
    assert main(["report", "a", "b"]) == 0  # a page of ours may be made again


def test_a_file_that_is_no_page_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"))
    Path("thesis.html").write_text("<h1>mine</h1>", encoding="utf-8")
    for words in (["a", "--out", "thesis.html"], ["a", "--out", "."], ["a", "--figures", "thesis.html"]):
        assert main(["report", *words]) == 2
    errors = capsys.readouterr().err
    assert "thesis.html: exists and was not written by limbeck; choose another with --out" in errors
    assert "--out .: is a folder; expected a file, for example report.html" in errors
    assert "--figures thesis.html: is a file; expected a folder" in errors
    assert Path("thesis.html").read_text(encoding="utf-8") == "<h1>mine</h1>"


def test_settings_that_change_nothing_of_a_training_make_no_method(tmp_path: Path):
    runs = [make_run(tmp_path / f"r{i}", seed=i, probe=probe, workers=i) for i, probe in enumerate(("auto", "off"))]
    assert [len(m.runs) for m in gather(read_runs(runs)).methods] == [2]


def test_a_method_in_two_settings_is_named_by_them_alone(tmp_path: Path):
    runs = [make_run(tmp_path / "a", method="alone", teacher=None, top1=0.7)]
    runs += [make_run(tmp_path / f"kd{lr}", method="kd", teacher="cifar/wrn_16_2", lr=lr) for lr in (0.1, 0.2)]
    assert [m.name for m in gather(read_runs(runs)).methods] == ["alone", "kd, lr 0.1", "kd, lr 0.2"]


@pytest.mark.parametrize("locked", ["b", "b/log.jsonl"])
def test_runs_that_cannot_be_read_are_one_line_or_left_out_of_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str, capsys: pytest.CaptureFixture[str]
):
    folder = comparison(tmp_path / "cmp", seeds=1)
    (tmp_path / "cmp" / "kd-seed0").rename(tmp_path / "cmp" / "b")
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    record["rows"][1]["runs"] = ["b"]
    (folder / "comparison.json").write_text(json.dumps(record), encoding="utf-8")
    planted.lock(monkeypatch, folder / locked)
    for words in (["b"], ["b", "alone-seed0", "--out", str(tmp_path / "x.html")]):
        assert main(["report", *(str(folder / w) if "seed" in w or w == "b" else w for w in words)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f'"{folder / "b"}' in err
        assert "cannot be used: permission denied" in err
    assert not (tmp_path / "x.html").exists()
    _, page = read(write_comparison(folder, tmp_path / "page.html"))
    assert "b: cannot be read, so it is missing in the curves and single runs." in page.words
