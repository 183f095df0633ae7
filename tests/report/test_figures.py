"""Figures as files: every chart as an SVG of its own that needs no page, no script and no variables."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from limbeck.cli import main
from limbeck.report.chart import Chart, Line
from limbeck.report.comparison import comparison_charts
from limbeck.report.draw import line_chart
from limbeck.report.figures import write_figures
from limbeck.report.groups import read_comparison
from limbeck.report.run import run_charts, run_samples
from limbeck.report.words import Format
from report.planted import CHARTS, WHOLE, comparison, make_detected, make_probed, make_run

SVG = "{http://www.w3.org/2000/svg}"


def check(path: Path) -> str:
    """Well formed, with no variable and no address: what a browser with the page knows, other programs do not."""
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert "var(" not in text
    assert not re.findall(r"(?:href|src)=\"(?!data:image/png;base64,)", text)
    return text


def test_every_chart_is_a_file(tmp_path: Path):
    run = make_probed(tmp_path / "run")
    written = write_figures(run_charts(run), tmp_path / "figures", run_samples(run))
    names = {path.stem for path in written}
    assert {f"{kind}-feature" for kind in CHARTS} | set(WHOLE) | {"samples"} <= names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in written)
    texts = {path.stem: check(path) for path in written}
    assert texts["samples"].count("<image") == len(run_samples(run))
    assert {path.name: path.read_bytes() for path in write_figures(run_charts(run), tmp_path / "again")}.items() <= {
        path.name: path.read_bytes() for path in written
    }.items()


def chart_of(title: str, *names: str) -> Chart:
    lines = [Line(name, f"c{place}", [(0.0, 1.0), (1.0, 2.0 + place)]) for place, name in enumerate(names, 1)]
    chart = line_chart(title, lines, x_title="step", fmt=Format(), id="it", large=True)
    assert chart is not None
    return chart


def test_a_figure_has_its_title_its_legend_and_its_size(tmp_path: Path):
    """The drawing is that of a narrow screen, 3.4 inches wide, below title and legend, each of several lines here."""
    names = ("one & <b>", "a second line's rather long name", "c")
    (path,) = write_figures([chart_of("A title of so many words that it takes two lines", *names)], tmp_path)
    root = ElementTree.fromstring(check(path))
    assert (root.get("width"), root.get("height")) == ("3.4in", f"{int(root.get('viewBox', '').split()[3]) / 100}in")
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert texts[:5] == ["A title of so many words that it takes", "two lines", *names]
    heights = [
        float(re.findall(r"[\d.]+", str(group.get("transform")))[1])
        for group in root.iter(f"{SVG}g")  # the keys, and the drawing
    ]
    assert heights == [52, 70, 70, 76]
    style = "".join(root.find(f"{SVG}style").itertext())  # pyright: ignore[reportOptionalMemberAccess]
    assert ".c1 { color: #0072b2; }" in style
    assert "svg path { fill: none; stroke: currentColor;" in style


def test_of_a_detector(tmp_path: Path):
    written = write_figures(run_charts(make_detected(tmp_path / "run", classes=30)), tmp_path / "figures")
    assert {"precision-recall", "precision-figures", "precision-classes"} <= {path.stem for path in written}
    for path in written:
        check(path)


def test_of_a_comparison(tmp_path: Path):
    written = write_figures(comparison_charts(read_comparison(comparison(tmp_path))), tmp_path / "figures")
    assert {path.stem for path in written} == {"means", "differences", "curve-top1", "against-time"}


def test_the_command_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"))
    make_run(Path("b"), seed=1)
    assert main(["report", "a", "--figures", "f"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"figures: {len(list(Path('f').iterdir()))} files in f"
    assert Path("f/curve-top1.svg").is_file()
    assert main(["report", "a", "b", "--figures", "g"]) == 0
    assert Path("g/means.svg").is_file()
