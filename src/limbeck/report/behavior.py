"""What the probe sees of student and teacher as a whole: balance of the parts, agreement, calibration, equivariance."""

import re
from collections.abc import Sequence

from limbeck.logs.records import Record, mapping, number
from limbeck.report.chart import Chart, Level, Line, course, lines, present
from limbeck.report.draw import line_chart
from limbeck.report.words import PERCENT

PALETTE = ("c1", "c2", "c3", "c4", "c5", "c6")
AGREEMENT = (
    ("same first class as the teacher", "c3", ("student", "agreement")),
    ("student, top-1", "student", ("student", "top1")),
    ("teacher, top-1", "teacher", ("student", "teacher_top1")),
    ("student, top-1 on training images", "train", ("student", "train_top1")),
)
CALIBRATION = (("student", "student", ("student", "ece")), ("teacher", "teacher", ("student", "teacher_ece")))


def balance_charts(probes: Sequence[Record]) -> list[Chart]:
    """Gradient norms of the parts of the loss on the student, and the angles between them."""
    pairs = [(probe, mapping(probe, "balance")) for probe in probes]

    def names(key: str) -> list[str]:
        return list(dict.fromkeys(str(name) for _, part in pairs for name in mapping(part, key)))

    weighted = [
        Line(name, PALETTE[index % len(PALETTE)], course(pairs, "weighted", name))
        for index, name in enumerate(names("weighted"))
    ]
    plain = [Line(f"{name}, without its weight", "c1", course(pairs, "norms", name)) for name in names("norms")]
    balance = line_chart(
        "Gradient norms on the student",
        weighted or [Line(line.name, PALETTE[i % len(PALETTE)], line.points) for i, line in enumerate(plain)],
        id="balance",
        log=True,
        note="Of each part of the loss, its weight included. Equal norms are no aim.",
        unseen=plain if weighted else [],
    )
    cosines = [
        Line(name.replace("|", " and "), PALETTE[index % len(PALETTE)], course(pairs, "cosines", name))
        for index, name in enumerate(names("cosines"))
    ]
    angles = line_chart(
        "Angle between the gradients",
        cosines,
        id="angles",
        levels=[Level("right angle", "alone", 0.0)] if any(line.points for line in cosines) else [],
        note="Cosine: 1 is the same direction; below 0 the parts work against each other.",
    )
    return present([balance, angles])


def agreement_charts(probes: Sequence[Record]) -> list[Chart]:
    """Accuracy of both on the probe's images, how often they agree, and how far their confidence can be trusted."""
    pairs = [(probe, probe) for probe in probes]
    agreement = line_chart(
        "Agreement and accuracy",
        lines(pairs, AGREEMENT),
        fmt=PERCENT,
        id="agreement",
        note="On the probe's images. A student may agree with the teacher's errors too.",
    )
    confidence = [
        Line(f"{who}'s mean confidence", style, course(pairs, "student", key))
        for who, style, key in (("student", "student", "confidence"), ("teacher", "teacher", "teacher_confidence"))
    ]
    calibration = line_chart(
        "Calibration error",
        lines(pairs, CALIBRATION),
        fmt=PERCENT,
        id="calibration",
        unseen=confidence,
        note="How far confidence is from accuracy, on average (ECE); 0 is honest.",
    )
    return present([agreement, calibration])


def equivariance_charts(probes: Sequence[Record]) -> list[Chart]:
    """How far the blocks of a ViT commute with a shift of the image, from the first block to the last."""
    seen = [probe for probe in probes if mapping(probe, "equivariance")]
    if not seen:
        return []
    names = sorted((str(name) for name in mapping(seen[-1], "equivariance")), key=_natural)
    numbered = [found[0] for name in names if (found := re.findall(r"\d+$", name))]
    of_depth = len(set(numbered)) == len(names)
    places = {name: float(numbered[i]) if of_depth else i + 1.0 for i, name in enumerate(names)}

    def errors(probe: Record) -> list[tuple[float, float]]:
        found = ((places[name], number(probe, "equivariance", name)) for name in names)
        return [(x, y) for x, y in found if y is not None]

    drawn = [Line("last probe", "student", errors(seen[-1]))]
    if len(seen) > 1:
        drawn.append(Line("first probe", "alone", errors(seen[0]), dashed=True))
    chart = line_chart(
        "Translation equivariance of the blocks",
        drawn,
        x_title="block",
        id="equivariance",
        note=f"Error of a shift by whole patches; 0 is equivariant. From {names[0]} to {names[-1]}.",
    )
    return present([chart])


def _natural(name: str) -> list[tuple[int, str]]:
    """``blocks.10`` behind ``blocks.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
