"""How a projector moves, and what it leaves of the features' correlations."""

from collections.abc import Sequence

from limbeck.logs.records import Record
from limbeck.report.chart import Chart, Level, Line, course, figure_id, lines, of_term, present
from limbeck.report.draw import line_chart
from limbeck.report.words import PERCENT

DISTANCES = (
    ("whitened", "c1", ("dynamics", "whitened")),
    ("least squares", "c2", ("dynamics", "least_squares")),
    ("ridge", "c3", ("dynamics", "ridge")),
)
FORCES = (("gradient", "c1", ("dynamics", "gradient")), ("weight decay", "c2", ("dynamics", "decay")))
MEMORY = (
    ("still its first value", "c1", ("dynamics", "initial_share")),
    ("changed since the last probe", "c2", ("dynamics", "step_change")),
)
DECORRELATION = (
    ("projector's input with its output", "c2", ("decorrelation", "input_output")),
    ("among the student's channels", "student", ("decorrelation", "student")),
    ("among the projected channels", "c3", ("decorrelation", "projected")),
    ("among the teacher's channels", "teacher", ("decorrelation", "teacher")),
)
SIMILARITY = (
    ("student with teacher", "student", ("cka",)),  # of a term without a projector
    ("student with teacher", "student", ("fit", "cka_before")),
    ("after the projector with teacher", "c3", ("fit", "cka_after")),
    ("student's change since the first probe", "c2", ("fit", "student_change")),
)
DEAD = (
    ("student", "student", ("fit", "dead_student")),
    ("projected", "c3", ("fit", "dead_projected")),
    ("teacher", "teacher", ("fit", "dead_teacher")),
)


def dynamics_charts(probes: Sequence[Record], name: str, heading: str) -> list[Chart]:
    """Distance from the fixed points, the two forces on W, and what of W is old."""
    pairs = of_term(probes, name)
    distances = line_chart(
        f"Distance from the fixed points{heading}",
        lines(pairs, DISTANCES),
        id=figure_id("dynamics", name),
        levels=[Level("there", "alone", 0.0)] if lines(pairs, DISTANCES) else [],
        note="One less the agreement, channel by channel, with the solutions that this batch has; 0 is at one of them.",
    )
    forces = line_chart(
        f"The two forces on W{heading}",
        lines(pairs, FORCES),
        id=figure_id("forces", name),
        log=True,
        unseen=[Line("gradient over decay", "c1", course(pairs, "dynamics", "pull"))],
        note="Norms of the gradient and of weight decay's pull. At rest they are equal, but not if a norm follows W.",
    )
    memory = line_chart(
        f"What the projector remembers{heading}",
        lines(pairs, MEMORY),
        fmt=PERCENT,
        id=figure_id("memory", name),
        unseen=[Line("norm over the first norm", "c1", course(pairs, "dynamics", "initial_norm_ratio"))],
        note="The share of W that is still its first value; the rest is what the batches have written.",
    )
    return present([distances, forces, memory])


def similarity_charts(probes: Sequence[Record], name: str, heading: str) -> list[Chart]:
    """Correlation within and across the projector, CKA of both sides, and channels without signal."""
    pairs = of_term(probes, name)
    decorrelation = line_chart(
        f"Decorrelation{heading}",
        lines(pairs, DECORRELATION),
        id=figure_id("decorrelation", name),
        note="Mean absolute correlation across the projector, and the mean squared one within each side. "
        "0 is decorrelated.",
    )
    cka = line_chart(
        f"Similarity of the features (CKA){heading}",
        lines(pairs, SIMILARITY),
        id=figure_id("cka", name),
        note="1 is the same up to rotation and scale. Where only the projected feature becomes similar, "
        "the projector does the work and the student learns little.",
    )
    dead = line_chart(
        f"Channels without signal{heading}",
        lines(pairs, DEAD),
        fmt=PERCENT,
        id=figure_id("dead", name),
        note="Share of channels that hardly vary over the images.",
    )
    return present([decorrelation, cka, dead])
