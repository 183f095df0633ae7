"""Figures for a paper: every chart as a file of its own, in colors that can be told apart."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.report.comparison import comparison_charts
from limbeck.report.figures import COLORS, write_figures
from limbeck.report.groups import read_comparison
from limbeck.report.run import run_charts, run_samples
from report.planted import CHARTS, WHOLE, comparison, make_detected, make_probed, make_run

pytest.importorskip("matplotlib", reason="figures are drawn by matplotlib, an extra")


def test_every_chart_is_a_file(tmp_path: Path):
    run = make_probed(tmp_path / "run")
    written = write_figures(run_charts(run), tmp_path / "figures", ["svg"], run_samples(run))
    names = {path.stem for path in written}
    assert {f"{kind}-feature" for kind in CHARTS} | set(WHOLE) | {"samples"} <= names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in written)
    for path in written:
        ElementTree.parse(path)


def test_formats(tmp_path: Path):
    charts = [chart for chart in run_charts(make_probed(tmp_path / "run")) if chart.id in ("fit-feature", "balance")]
    write_figures(charts, tmp_path, ["svg", "pdf", "png"])
    assert (tmp_path / "balance.pdf").read_bytes().startswith(b"%PDF-")
    with Image.open(tmp_path / "fit-feature.png") as image:
        assert image.size == (1020, 786)  # 3.4 x 2.2 inches at 300 dpi, and three rows of the legend


def test_the_same_figure_has_the_same_bytes(tmp_path: Path):
    charts = run_charts(make_probed(tmp_path / "run"))[:3]
    for folder in ("a", "b"):
        write_figures(charts, tmp_path / folder, ["svg", "pdf"])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_of_a_detector(tmp_path: Path):
    written = write_figures(run_charts(make_detected(tmp_path / "run", classes=30)), tmp_path / "figures", ["svg"])
    assert {"precision-recall", "precision-figures", "precision-classes"} <= {path.stem for path in written}
    for path in written:
        ElementTree.parse(path)


def test_of_a_comparison(tmp_path: Path):
    written = write_figures(comparison_charts(read_comparison(comparison(tmp_path))), tmp_path / "figures", ["svg"])
    assert {path.stem for path in written} == {"means", "differences", "curve-top1", "against-time"}


def test_the_command_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"))
    make_run(Path("b"), seed=1)
    assert main(["report", "a", "--figures", "f", "--format", "png"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"figures: {len(list(Path('f').iterdir()))} files in f"
    assert Path("f/curve-top1.png").is_file()
    assert main(["report", "a", "b", "--figures", "g", "--format", "svg"]) == 0
    assert Path("g/means.svg").is_file()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'figures need the package matplotlib: pip install "limbeck\[figures\]"'):
        write_figures([], tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def luminance(color: str) -> float:
    """Relative luminance, as in the contrast rules for the web."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colors_can_be_seen_on_paper():
    """Okabe and Ito's colors are told apart by hue and lightness; none is nearly white."""
    assert len({COLORS[f"c{i}"] for i in range(1, 7)}) == 6
    for color in COLORS.values():
        assert 1.05 / (luminance(color) + 0.05) > 2.0
