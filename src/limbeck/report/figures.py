"""The figures of a page once more, for a paper: one file each, drawn by matplotlib, an extra.

The colors are those of Okabe and Ito, and cividis where there is an order: both can be told apart with each of the
common forms of color blindness; what belongs together but differs is also told apart by its dashes.
"""

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.report.axes import pick
from limbeck.report.chart import BarPlot, Chart, CloudPlot, DotPlot, FramePlot, LinePlot, Plot
from limbeck.report.samples import Sample
from limbeck.report.words import Format

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, SKY, BLACK, GREY = "#D55E00", "#56B4E9", "#000000", "#777777"
COLORS = {
    "student": BLUE, "projector": BLUE, "teacher": BLACK, "train": VERMILION, "alone": GREY, "kd": ORANGE,
    "both": GREEN, "other": PURPLE, "c1": BLUE, "c2": VERMILION, "c3": GREEN, "c4": PURPLE, "c5": ORANGE, "c6": SKY,
}  # fmt: skip
"""Color class of the page -> color (Okabe and Ito, and a grey)."""

FORMATS = ("svg", "pdf", "png")
WIDTH, HEIGHT = 3.4, 2.2  # inches: one column of a paper; the height is without the legend,
ROW = 0.14  # of which a row takes this much
LONGEST_NAME, LONGEST_TITLE = 24, 26  # letters: of a name that has another beside it, of a line of an axis's title
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "limbeck",  # the same bytes for the same figure
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
}
STATES = 5  # probes of a chart with a slider
UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def write_figures(
    charts: Sequence[Chart], folder: Path, formats: Sequence[str] = FORMATS, samples: Sequence[Sample] = ()
) -> list[Path]:
    """Write every chart into a file of its own, named by the figure's name on the page.

    Args:
        charts: The charts of a page.
        folder: Where the files go; made where it is missing.
        formats: Of "svg", "pdf" and "png".
        samples: Images with the classes of student and teacher, as one more figure.

    Returns:
        The files.

    Raises:
        UserError: If matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('figures need the package matplotlib: pip install "limbeck[figures]"') from None
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with matplotlib.rc_context(STYLE):
        for chart in charts:
            rows = _rows(chart.plot)
            figure = Figure(figsize=(WIDTH, max(HEIGHT, 0.35 * rows + 0.9) if rows else HEIGHT))
            _draw(chart, figure.add_subplot())
            written += _save(figure, folder / chart.id, formats)
        if samples:
            figure = Figure(figsize=(2 * WIDTH, 1.55 * -(-len(samples) // 6)))
            _draw_samples(samples, figure)
            written += _save(figure, folder / "samples", formats)
    return written


def _rows(plot: Plot) -> int:
    """The rows of a chart that grows with them."""
    if isinstance(plot, DotPlot):
        return len(plot.spans)
    return len(plot.rows) if isinstance(plot, BarPlot) else 0


def _save(figure: Any, place: Path, formats: Sequence[str]) -> list[Path]:
    """One file a format, each put in place at once."""
    paths: list[Path] = []
    for kind in formats:
        path = place.with_name(f"{place.name}.{kind}")
        unfinished = path.with_name(path.name + ".part")
        figure.savefig(unfinished, format=kind, metadata=UNDATED[kind])
        os.replace(unfinished, path)
        paths.append(path)
    return paths


def _draw(chart: Chart, axes: "Axes") -> None:
    plot = chart.plot
    if isinstance(plot, DotPlot):
        _draw_dots(plot, axes)
    elif isinstance(plot, BarPlot):
        _draw_bars(plot, axes)
    elif isinstance(plot, LinePlot):
        _draw_lines(plot, axes)
        _write_y(axes, chart.title, plot.fmt, log=plot.log)
    elif isinstance(plot, FramePlot):
        _draw_frames(plot, axes)
        _write_y(axes, plot.y_title, plot.fmt, log=plot.log)
    else:
        _draw_clouds(plot, axes)
        _write_y(axes, chart.title.split(" against ")[0], plot.fmt, log=False)
    axes.set_xlabel(plot.x_title)


def _write_y(axes: "Axes", title: str, fmt: Format, *, log: bool) -> None:
    """Title in two lines where it is long; ticks as on the page, of a logarithmic axis matplotlib's powers of ten."""
    axes.set_ylabel("\n".join(textwrap.wrap(title, LONGEST_TITLE)))
    if not log:
        axes.yaxis.set_major_formatter(lambda value, _: fmt.tick(round(value, 10)))


def _draw_lines(plot: LinePlot, axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    if plot.log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    for band in plot.bands:
        x, low = zip(*band.low, strict=True)
        _, high = zip(*band.high, strict=True)
        axes.fill_between(x, low, high, color=COLORS.get(band.style, BLUE), alpha=0.18, linewidth=0, label=band.name)
    for line in plot.lines:
        x, y = zip(*line.points, strict=True)
        axes.plot(
            x,
            y,
            color=COLORS.get(line.style, BLUE),
            linestyle="--" if line.dashed else "-",
            marker="o" if len(x) == 1 else "",
            markersize=3,
            linewidth=0.6 if line.faint else None,
            alpha=0.35 if line.faint else 1.0,
            label="_" if line.faint else line.name,
        )
    for level in plot.levels:
        axes.axhline(level.value, color=COLORS.get(level.style, GREY), linestyle=":", linewidth=1, label=level.name)
    if len([line for line in plot.lines if not line.faint]) + len(plot.levels) + len(plot.bands) > 1:
        _legend(axes)


def _legend(axes: "Axes") -> None:
    """Above the axes, where it covers nothing; the figure grows by its rows."""
    figure = axes.get_figure(root=True)
    names = axes.get_legend_handles_labels()[1]
    if figure is None or not names:
        return
    columns = 1 if max(map(len, names)) > LONGEST_NAME else 2
    figure.set_figheight(HEIGHT + ROW * -(-len(names) // columns))
    figure.legend(loc="outside upper center", ncols=columns, handlelength=2.2, columnspacing=1.2)


def _draw_frames(plot: FramePlot, axes: "Axes") -> None:
    import matplotlib

    if plot.log:
        axes.set_yscale("log", nonpositive="mask")
    shown = pick(plot.frames, STATES)
    shades = matplotlib.colormaps["cividis"]
    for place, frame in enumerate(shown):
        color = shades(0.82 - 0.82 * place / max(len(shown) - 1, 1)) if len(shown) > 1 else BLUE
        for number, curve in enumerate(frame.curves):
            if curve:
                x, y = zip(*curve, strict=True)
                label = frame.label if number == 0 else "_"
                axes.plot(x, y, color=color, linestyle="-" if number == 0 else "--", label=label)
    if plot.area:
        axes.set_ylim(bottom=0)
    for number, (name, _) in enumerate(plot.series):
        if len(plot.series) > 1:
            axes.plot([], [], color=GREY, linestyle="-" if number == 0 else "--", label=name)
    _legend(axes)


def _draw_clouds(plot: CloudPlot, axes: "Axes") -> None:
    for cloud in plot.clouds:
        color, span = COLORS.get(cloud.span.style, BLUE), cloud.span
        axes.scatter(
            [x for x, _ in cloud.points], [y for _, y in cloud.points], color=color, alpha=0.4, s=8, linewidths=0
        )
        error = None if span.low is None or span.high is None else [[span.mean - span.low], [span.high - span.mean]]
        axes.errorbar(cloud.x, span.mean, yerr=error, color=color, marker="o", markersize=5, capsize=2, label=span.name)
    for level in plot.levels:
        axes.axhline(level.value, color=COLORS.get(level.style, GREY), linestyle=":", linewidth=1, label=level.name)
    _legend(axes)


def _draw_dots(plot: DotPlot, axes: "Axes") -> None:
    for row, span in enumerate(plot.spans):
        color = COLORS.get(span.style, BLUE)
        axes.scatter(list(span.values), [row + 0.22] * len(span.values), color=color, alpha=0.4, s=8, linewidths=0)
        error = None if span.low is None or span.high is None else [[span.mean - span.low], [span.high - span.mean]]
        axes.errorbar(span.mean, row, xerr=error, color=color, marker="o", markersize=5, capsize=2)
    if plot.level is not None:
        axes.axvline(plot.level.value, color=COLORS.get(plot.level.style, GREY), linestyle=":", linewidth=1)
        where = (plot.level.value, 1.0)
        axes.annotate(plot.level.name, where, xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)
    axes.set_yticks(range(len(plot.spans)), [span.name for span in plot.spans])
    axes.set_ylim(len(plot.spans) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: plot.fmt.tick(round(value, 10)))


def _draw_bars(plot: BarPlot, axes: "Axes") -> None:
    thick = 0.8 / len(plot.series)
    for which, (name, style) in enumerate(plot.series):
        bars = [(row + thick * which, bar.values[which]) for row, bar in enumerate(plot.rows)]
        there = [(y, value) for y, value in bars if value is not None]
        color = COLORS.get(style, BLUE)
        axes.barh([y for y, _ in there], [value for _, value in there], 0.9 * thick, color=color, label=name)
    axes.set_yticks([row + 0.4 - thick / 2 for row in range(len(plot.rows))], [bar.name for bar in plot.rows])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: plot.fmt.tick(round(value, 10)))
    if len(plot.series) > 1:
        axes.legend(loc="lower right")


def _draw_samples(samples: Sequence[Sample], figure: Any) -> None:
    from matplotlib.image import imread

    grid = figure.subplots(-(-len(samples) // 6), 6, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for sample, axes in zip(samples, grid.flat, strict=False):
        image = imread(io.BytesIO(sample.data), format="png")
        axes.imshow(image, interpolation="nearest", cmap="gray" if image.ndim == 2 else None)
        says = [f"{who}: {first[0].name}" for who, first in (("S", sample.student), ("T", sample.teacher)) if first]
        axes.set_title("\n".join([sample.label, *says]), fontsize=5.5, loc="left")
