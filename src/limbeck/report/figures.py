"""The figures of a page as files: each drawing as an SVG of its own, one column of a paper wide."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from limbeck.report.chart import Chart, Key
from limbeck.report.page import source, write_page
from limbeck.report.samples import Sample

LETTER, BOLD = 7.8, 8.8  # width of a letter, in the canvas's units
ROW = 18  # height of a line of text
SIDE, GAP, COLUMNS, LONGEST = 100, 12, 6, 21  # of the samples; letters of a line below one


def write_figures(charts: Sequence[Chart], folder: Path, samples: Sequence[Sample] = ()) -> list[Path]:
    """Write every chart into an SVG file of its own, named by the figure's name on the page.

    The drawings, colors and letters are those of the page on a narrow screen, in its light colors; a file needs nothing
    else and has no date, so that the same run gives the same bytes.

    Args:
        charts: The charts of a page.
        folder: Where the files go; made where it is missing.
        samples: Images with the classes of student and teacher, as one more figure.

    Returns:
        The files.

    Raises:
        UserError: If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    views = {chart.id: _view(chart) for chart in charts}
    if samples:
        views["samples"] = _sample_view(samples)
    palette, style = _style()
    own = {"style": Markup(style), "ink": palette["ink"]}
    return [write_page("figure.svg.j2", folder / f"{name}.svg", {**own, **view}) for name, view in views.items()]


def _style() -> tuple[dict[str, str], str]:
    """The light colors of the page, and its rules for charts with those colors in them: variables are for browsers."""
    palette = dict(re.findall(r"--(\w+): (#\w{6})", source("style.css").partition("}")[0]))
    rules = re.sub(r"var\(--(\w+)\)", lambda m: palette.get(m[1], "currentColor"), source("chart.css"))
    return palette, re.sub(r"var\(--c, [^)]*\)", "currentColor", rules).replace("--c:", "color:")


def _view(chart: Chart) -> dict[str, Any]:
    """Title and legend above the drawing."""
    canvas = chart.narrow or chart.wide
    titles = textwrap.wrap(chart.title, int(canvas.width / BOLD))
    texts = [(0, ROW * row - 4, text) for row, text in enumerate(titles, 1)]
    keys: list[tuple[float, float, Key]] = []
    x, y = 0.0, ROW * (len(titles) + 1) - 2
    for key in chart.legend:
        width = 40 + LETTER * len(key.name)
        if x and x + width > canvas.width:
            x, y = 0.0, y + ROW
        keys.append((x, y, key))
        x += width
    top = y + 6 if keys else ROW * len(titles) + 4
    view = {"title": chart.title, "texts": texts, "keys": keys, "canvas": canvas, "top": top, "samples": ()}
    return {**view, "width": canvas.width, "height": canvas.height + top}


def _sample_view(samples: Sequence[Sample]) -> dict[str, Any]:
    placed: list[tuple[int, int, Sample, list[str]]] = []
    for place, sample in enumerate(samples):
        said = [f"{who}: {first[0].name}" for who, first in (("S", sample.student), ("T", sample.teacher)) if first]
        row, column = divmod(place, COLUMNS)
        lines = [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in (sample.label, *said)]
        placed.append((column * (SIDE + GAP), row * (SIDE + 4 * GAP), sample, lines))
    height = -(-len(samples) // COLUMNS) * (SIDE + 4 * GAP)
    view = {"title": "Where they disagree", "texts": (), "keys": (), "canvas": None, "samples": placed, "side": SIDE}
    return {**view, "width": COLUMNS * (SIDE + GAP), "height": height}
