"""The spectrum of a projector: its singular values at every probe, and what they come to."""

from collections.abc import Sequence

from limbeck.logs.records import Record, mapping, numbers
from limbeck.report.chart import Chart, Frame, Group, Line, Point, course, figure_id, label, lines, of_term, present
from limbeck.report.draw import line_chart, some_rows
from limbeck.report.slider import frame_chart
from limbeck.report.words import PERCENT, Format

AS_IS, NORMALIZED = "spectrum", "spectrum_normalized"
BOTH = ((AS_IS, "W as it is", "c1"), (NORMALIZED, "columns of unit norm", "c2"))
RANKS = (("stable rank", "c1", "stable_rank"), ("effective rank", "c2", "effective_rank"))
RANKS += (("participation ratio", "c3", "participation_ratio"),)
SHARES = (("below their initial value", "c1", "below_initial"), ("below a tenth of the largest", "c2", "below_tenth"))


def spectrum_charts(probes: Sequence[Record], name: str, heading: str) -> list[Chart]:
    """Singular values with a slider, ranks, and shares of small values.

    Args:
        probes: The probe's records.
        name: The term.
        heading: Stands behind the titles, to tell several terms apart; may be empty.
    """
    pairs = of_term(probes, name)
    return present([_slider(pairs, name, heading), _ranks(pairs, name, heading), _shares(pairs, name, heading)])


def _curve(term: Record, which: str) -> tuple[Point, ...]:
    """Singular values over their index, counted from one."""
    values, index = numbers(term, which, "values"), numbers(term, which, "index")
    if not index and len(values) == number_of(term, which):
        index = [float(place) for place in range(len(values))]
    if len(values) != len(index):
        return ()
    return tuple((place + 1, value) for place, value in zip(index, values, strict=True))


def number_of(term: Record, which: str) -> int:
    """How many singular values there are; the length of the list where the record does not say."""
    count = mapping(term, which).get("count")
    return count if isinstance(count, int) else len(numbers(term, which, "values"))


def _slider(pairs: Sequence[tuple[Record, Record]], name: str, heading: str) -> Chart | None:
    series = [(which, *words) for which, *words in BOTH if any(_curve(term, which) for _, term in pairs)]
    frames: list[Frame] = []
    rows: list[tuple[str, ...]] = []
    fmt = Format()
    for probe, term in pairs:
        curves = tuple(_curve(term, which) for which, *_ in series)
        if not any(curves):
            continue
        ends = [_ends(curve) for curve in curves]
        words = "; ".join(
            f"{title}: largest {fmt(end[0])}, middle {fmt(end[1])}, smallest {fmt(end[2])}"
            for (_, title, _), end in zip(series, ends, strict=True)
            if end is not None
        )
        frames.append(Frame(label(probe), words, curves))
        rows.append((label(probe), *(cell for end in ends for cell in ([*map(fmt, end)] if end else ["–"] * 3))))
    heads = ("probe", *(f"{title}, {end}" for _, title, _ in series for end in ("largest", "middle", "smallest")))
    return frame_chart(
        f"Singular values of the projector{heading}",
        [(title, style) for _, title, style in series],
        frames,
        x_title="index of the singular value",
        fmt=fmt,
        id=figure_id("spectrum", name),
        table=some_rows(heads, rows),
        log=True,
        note="A curve that falls steeply has few directions left; a flat one uses all. Batch norm after the projector "
        "lets columns grow without effect, so the curve of the columns at unit norm is the one to compare runs by.",
    )


def _ends(curve: Sequence[Point]) -> tuple[float, float, float] | None:
    if not curve:
        return None
    values = sorted((value for _, value in curve), reverse=True)
    return values[0], values[len(values) // 2], values[-1]


def _ranks(pairs: Sequence[tuple[Record, Record]], name: str, heading: str) -> Chart | None:
    drawn: list[Line] = []
    for which, words, dashed in ((AS_IS, "", False), (NORMALIZED, ", unit columns", True)):
        group: Group = [(title + words, style, (which, key)) for title, style, key in RANKS]
        drawn += lines(pairs, group, dashed=dashed)
    unseen = [
        Line(f"{title}{words}", "c1", course(pairs, which, key))
        for which, words in ((AS_IS, ""), (NORMALIZED, ", unit columns"))
        for title, key in (("condition", "condition"), ("norm", "norm"))
    ]
    counts = {number_of(term, AS_IS) for _, term in pairs} - {0}
    full = f"At most {max(counts)}. " if counts else ""
    return line_chart(
        f"Ranks{heading}",
        drawn,
        id=figure_id("ranks", name),
        unseen=unseen,
        note=f"How many directions the projector uses, by three measures. {full}The stable rank counts the strong "
        "ones, the effective rank also the weak ones.",
    )


def _shares(pairs: Sequence[tuple[Record, Record]], name: str, heading: str) -> Chart | None:
    drawn: list[Line] = []
    for which, words, dashed in ((AS_IS, "", False), (NORMALIZED, ", unit columns", True)):
        group: Group = [(title + words, style, (which, key)) for title, style, key in SHARES]
        drawn += lines(pairs, group, dashed=dashed)
    return line_chart(
        f"Share of small singular values{heading}",
        drawn,
        fmt=PERCENT,
        id=figure_id("below", name),
        note="Weight decay shrinks what the batches do not use: both rise when the projector forgets directions.",
    )
