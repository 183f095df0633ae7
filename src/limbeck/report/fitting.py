"""How well the projected feature fits the teacher's, channel by channel."""

from collections.abc import Sequence

from limbeck.logs.records import Record, number, numbers
from limbeck.report.chart import Band, Chart, Frame, Level, Line, Point, course, figure_id, label, of_term, present
from limbeck.report.draw import line_chart, some_rows
from limbeck.report.slider import frame_chart
from limbeck.report.words import PERCENT, Format

QUANTILES = 11  # 0, 10, ... 100%
BANDS = ((0, 10, "all channels", "fit-outer"), (1, 9, "middle 80%", "fit-middle"), (3, 7, "middle 40%", "fit-inner"))
Pairs = Sequence[tuple[Record, Record]]


def fit_charts(probes: Sequence[Record], name: str, heading: str) -> list[Chart]:
    """Correlations of the channels as quantiles and as a histogram, and who gets the gradient."""
    pairs = of_term(probes, name)
    return present([_histogram(pairs, name, heading), _quantiles(pairs, name, heading), _shares(pairs, name, heading)])


def _tenths(pairs: Pairs, *keys: str, count: int) -> list[tuple[float, list[float]]]:
    """Lists of ``count`` numbers over the steps."""
    found = ((number(probe, "step"), numbers(term, *keys)) for probe, term in pairs)
    return [(step, values) for step, values in found if step is not None and len(values) == count]


def _quantiles(pairs: Pairs, name: str, heading: str) -> Chart | None:
    table = _tenths(pairs, "fit", "correlation", "quantiles", count=QUANTILES)

    def at(index: int) -> list[Point]:
        return [(step, values[index]) for step, values in table]

    drawn = [Line("median channel", "student", at(5))]
    drawn.append(Line("mean", "c2", course(pairs, "fit", "correlation", "mean"), dashed=True))
    return line_chart(
        f"Correlation with the teacher{heading}",
        drawn,
        id=figure_id("fit", name),
        bands=[Band(words, style, at(low), at(high)) for low, high, words, style in BANDS],
        levels=[Level("a match", "alone", 1.0)] if any(line.points for line in drawn) else [],
        note="Of every channel of the projected feature with the teacher's, over the images of the probe.",
    )


def _outline(edges: Sequence[float], counts: Sequence[float]) -> tuple[Point, ...]:
    """The steps of a histogram as one curve, in shares of all channels."""
    total = sum(counts)
    if len(edges) != len(counts) + 1 or total <= 0:
        return ()
    return tuple((edge, count / total) for i, count in enumerate(counts) for edge in (edges[i], edges[i + 1]))


def _histogram(pairs: Pairs, name: str, heading: str) -> Chart | None:
    frames: list[Frame] = []
    rows: list[tuple[str, ...]] = []
    fmt, share = Format(), Format(100, "%", 0)
    for probe, term in pairs:
        edges, counts = numbers(term, "fit", "histogram", "edges"), numbers(term, "fit", "histogram", "counts")
        outline = _outline(edges, counts)
        if not outline:
            continue
        most = max(range(len(counts)), key=counts.__getitem__)
        fullest = f"{fmt(edges[most])} to {fmt(edges[most + 1])}"
        words = f"the fullest bar, {share(counts[most] / sum(counts))} of the channels, is {fullest}"
        frames.append(Frame(label(probe), words, (outline,)))
        weak = sum(count for edge, count in zip(edges[1:], counts, strict=True) if edge <= 0.5 + 1e-9)
        rows.append((label(probe), fullest, share(weak / sum(counts))))
    return frame_chart(
        f"Correlations of the channels{heading}",
        [("share of channels", "student")],
        frames,
        x_title="correlation with the teacher's channel",
        fmt=share,
        id=figure_id("histogram", name),
        table=some_rows(("probe", "fullest bar", "channels at most at 0.5"), rows),
        area=True,
        note="Channels that stay at the left are those that this student cannot follow.",
    )


def _shares(pairs: Pairs, name: str, heading: str) -> Chart | None:
    table = _tenths(pairs, "fit", "gradient_share", count=10)

    def of(title: str, style: str, index: int) -> Line:
        return Line(title, style, [(step, values[index]) for step, values in table])

    middle = [(step, (values[4] + values[5]) / 2) for step, values in table]
    worst = of("worst fitting tenth", "c2", 0)
    return line_chart(
        f"Who gets the gradient{heading}",
        [worst, Line("middle tenth", "c3", middle), of("best fitting tenth", "c1", 9)],
        fmt=PERCENT,
        id=figure_id("gradient-share", name),
        levels=[Level("even", "alone", 0.1)] if worst.points else [],
        unseen=[of(f"tenth {index + 1}", "c1", index) for index in range(1, 9)],
        note="Share of the loss's gradient by how well channels fit. A logarithm softens what the worst ones get.",
    )
