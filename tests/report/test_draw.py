"""Geometry: everything stays on its canvas, whatever the numbers are."""

import itertools
import json
import math

import pytest

from limbeck.report.axes import linear_axis, log_axis, pick, thin
from limbeck.report.chart import Band, Chart, Cloud, Frame, Level, Line, Span, Table
from limbeck.report.dots import cloud_chart, dot_chart
from limbeck.report.draw import line_chart
from limbeck.report.slider import MOST_FRAMES, frame_chart
from limbeck.report.words import Format


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


def test_bands_dashes_and_table_of_a_chart():
    low, high = [(1.0, 0.1), (2.0, 0.2)], [(1.0, 0.5), (2.0, 0.9)]
    lines = [Line("a", "c1", low), Line("b", "c1", high, dashed=True)]
    chart = line_chart(
        "t",
        lines,
        x_title="step",
        fmt=Format(),
        bands=[Band("all", "c2", low, high), Band("none", "c2", [], [])],
        unseen=[Line("c", "c3", [(2.0, 7.0)])],
    )
    assert chart is not None
    assert [stroke.kind for stroke in chart.wide.strokes] == ["band", "line", "dashed"]
    assert chart.wide.strokes[0].path.endswith("Z")
    assert [key.kind for key in chart.legend] == ["line", "level", "band"]
    assert chart.table is not None
    assert chart.table.heads == ("step", "a", "b", "all, from", "all, to", "c")
    assert chart.table.rows == (("1", "0.1", "0.5", "0.1", "0.5", "–"), ("2", "0.2", "0.9", "0.2", "0.9", "7"))


def test_a_table_that_leaves_rows_out_says_so():
    def table(count: int) -> Table:
        line = Line("a", "c1", [(float(x), 1.0) for x in range(count)])
        chart = line_chart("t", [line], x_title="step", fmt=Format())
        assert chart is not None
        assert chart.table is not None
        return chart.table

    assert (len(table(24).rows), table(24).note) == (24, "")
    assert (len(table(100).rows), table(100).note) == (24, "24 of 100 rows, evenly spaced; log.jsonl has all.")
    assert (table(100).rows[0][0], table(100).rows[-1][0]) == ("0", "99")


@pytest.mark.parametrize(
    "values", [[1e-9, 1.0], [0.0, 0.0], [0.0, 3.0], [-1.0, 5.0], [2.0, 2.1], [1.0, 1.0], [1e-30, 1e30]]
)
def test_logarithmic_axes_hold_their_ticks_and_never_leave_the_canvas(values: list[float]):
    axis = log_axis(values, 5)
    assert 0 < axis.low < axis.high
    assert axis.high >= max(values)
    assert 2 <= len(axis.ticks) <= 9
    place = axis.scale(100.0, 0.0)
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert all(-1e-6 <= place(value) <= 100.0 + 1e-6 for value in values)


def test_equal_factors_are_equally_far_apart():
    place = log_axis([1e-3, 10.0], 5).scale(0.0, 1.0)
    assert place(0.1) - place(0.01) == pytest.approx(place(10.0) - place(1.0))
    assert [log_axis([1e-5, 1.0], 5).label(value, Format()) for value in (1e-5, 2e-4, 0.1)] == ["10⁻⁵", "2·10⁻⁴", "0.1"]


def test_linear_axis_has_round_ticks():
    assert linear_axis([0.0, 1.0], 5, tight=True).ticks == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize("most", [2, 3, 60])
def test_picking_keeps_both_ends(most: int):
    kept = pick(range(200), most)
    assert (kept[0], kept[-1], len(kept)) == (0, 199, most)
    assert sorted(set(kept)) == kept


def slides(count: int, *, area: bool = False, log: bool = False) -> Chart | None:
    frames = [Frame(f"step {i}", f"w{i}", (((0.0, 1.0 + i), (1.0, 2.0), (4.0, 0.5)),)) for i in range(count)]
    return frame_chart(
        "t",
        [("a", "c1")],
        frames,
        x_title="x",
        fmt=Format(),
        id="i",
        table=Table(("p",), ()),
        area=area,
        log=log,
    )


@pytest.mark.parametrize("log", [True, False])
def test_the_script_draws_the_last_frame_where_the_page_did(log: bool):
    """What the script computes from thousandths is the path that the page already shows."""
    chart = slides(5, log=log)
    assert chart is not None
    script = json.loads(chart.frames)
    assert script["labels"] == [f"step {i}" for i in range(5)]
    for canvas in (chart.wide, chart.narrow):
        assert canvas is not None
        curve = script["curves"][-1][0]
        width, height = canvas.right - canvas.left, canvas.bottom - canvas.top
        places = [
            (canvas.left + x / 1000 * width, canvas.bottom - y / 1000 * height)
            for x, y in zip(curve[::2], curve[1::2], strict=True)
        ]
        (stroke,) = [stroke for stroke in canvas.strokes if stroke.series == 0]
        drawn = [tuple(map(float, pair.split())) for pair in stroke.path[1:].split("L")]
        assert len(drawn) == len(places)
        assert all(math.dist(a, b) < 1.0 for a, b in zip(drawn, places, strict=True))


def test_a_slider_has_first_and_last_probe_and_not_too_many():
    chart = slides(300)
    assert chart is not None
    labels = json.loads(chart.frames)["labels"]
    assert (labels[0], labels[-1], len(labels)) == ("step 0", "step 299", MOST_FRAMES)
    assert chart.description == "At step 299: w299."
    assert [stroke.kind for stroke in chart.wide.strokes] == ["frame", "first"]


def test_one_probe_needs_no_slider_and_none_no_chart():
    chart = slides(1)
    assert chart is not None
    assert chart.frames == ""
    assert slides(0) is None


def test_a_histogram_stands_on_zero():
    chart = slides(3, area=True)
    assert chart is not None
    (stroke,) = [stroke for stroke in chart.wide.strokes if stroke.kind == "area"]
    assert stroke.path.endswith(f" {chart.wide.bottom:.1f}Z")
    assert max(tick.at for tick in chart.wide.y_ticks) == pytest.approx(chart.wide.bottom)


def test_accuracy_against_cost():
    clouds = [Cloud(Span("a", "c1", 0.5, 0.4, 0.6, [0.45, 0.55]), 3.0, [(2.5, 0.45), (3.5, 0.55)])]
    clouds.append(Cloud(Span("b", "c2", 0.7, None, None, [0.7]), 5.0, [(5.0, 0.7)]))
    chart = cloud_chart("t", clouds, x_title="minutes", fmt=Format(), levels=[Level("teacher", "teacher", 0.9)])
    assert chart is not None
    assert chart.table is not None
    assert chart.table.rows == (("a", "3", "0.5", "0.4 to 0.6"), ("b", "5", "0.7", "–"))
    for canvas in (chart.wide, chart.narrow):
        assert canvas is not None
        assert [mark.kind for mark in canvas.marks] == ["seed", "seed", "mean", "seed", "mean"]
        assert all(canvas.left <= m.x <= canvas.right and canvas.top <= m.y <= canvas.bottom for m in canvas.marks)
    assert cloud_chart("t", [], x_title="x", fmt=Format()) is None


def test_long_names_stand_above_their_rows():
    spans = [Span("lr 0.05, batch_size 128, method projector", "c1", 0.5, 0.4, 0.6)]
    chart = dot_chart("t", spans, x_title="x", fmt=Format())
    assert chart is not None
    name, value = chart.wide.labels[:2]
    assert name.y < value.y - 10


def test_long_names_are_in_the_legend_and_not_beyond_the_edge():
    for name, keyed in (("kd", False), ("projector, lr 0.05, batch_size 128", True)):
        chart = line_chart("t", [Line(name, "c1", [(0.0, 1.0), (1.0, 2.0)])], x_title="x", fmt=Format(), large=True)
        assert chart is not None
        assert chart.keyed == keyed
        assert bool(chart.wide.labels) != keyed
