"""Rules on what became of a term: its weight, its projector, and the student behind it."""

from collections.abc import Iterator
from statistics import median

from limbeck.logs.records import mapping, number
from limbeck.report.evidence import Evidence, Verdict, percent

# Each threshold with what was seen on both its sides, by benchmarks/faults.py (docs/results.md).
COLLAPSED = 0.1  # effective rank over the number of directions: fault 0.06; healthy 0.25 and more
SHRUNK = 0.05  # norm of W over its first one: fault 1e-10; healthy 0.76 and more
PASSIVE = 0.25  # 1 - CKA of the student's feature with its first: faults 0 and 0.16; healthy 0.57 and more
LEARNED = 0.1  # rise of the mean correlation: passive students 0.5 and 0.7
DEAD = 0.05  # share of channels: faults 0.25 and 0.5; healthy 0
UNEXPLAINED = 0.5  # mean correlation at the end: faults 0.23 and 0.45; healthy 0.61 and more
FOLLOWED = 0.1  # rise of the CKA above that of random weights, over what is left to 1: faults -0.04 and 0; healthy 0.63
FEWEST = 32  # images: the CKA of fewer is chance
TRAIN_GAP = 0.2  # top-1 of the student on seen images below the teacher's: faults 0.64 and 0.88
# Median ratios of gradients, of the tables of `limbeck reproduce` (docs/log.md):
OVERWEIGHT = 110.0  # lost a third of the top-1 from 127 on; the best up to 98
OVERWEIGHT_LOGITS = 40.0  # KD and DKD lost a fifth and more from 42 on, but for one; the best up to 36
UNDERWEIGHT = 1 / 60.0  # fault 1/1,100; healthy 0.2 and more
AT_FIRST = 200.0  # before training, since one that is overrun soon has no gradient: lost from 231 on; best rows to 164
LOGITS = ("logit", "dkd")
SHORT = 0.75  # top-1 of the student over the teacher's: default runs of the demo pull up to 47 times and end above


def collapsed_projector(run: Evidence) -> Iterator[Verdict]:
    """A projector that passes few directions, or nothing."""
    for name, first, last in run.feature_terms():
        count = number(last, "spectrum_normalized", "count")
        rank = number(last, "spectrum_normalized", "effective_rank")
        shrunk = number(last, "dynamics", "initial_norm_ratio")
        began = number(first, "spectrum_normalized", "effective_rank")
        if shrunk is not None and shrunk < SHRUNK:
            seen = f"Its weights have shrunk to {percent(shrunk)} of their initial size."
        elif rank is not None and count is not None and rank < COLLAPSED * count:
            start = f", {began:.0f} before training" if began is not None else ""
            seen = f"{rank:.1f} of {count:.0f} directions carry it (entropy effective rank{start})."
        else:
            continue
        yield Verdict(
            "collapsed-projector",
            f"The projector of {name} has collapsed",
            seen,
            "What the teacher says of all other directions is cut off; the student is taught very little by it.",
            "Use batch norm on both sides, less weight decay on the projector, or a linear projector of full rank.",
            f"spectrum-{name}",
            name,
        )


def passive_student(run: Evidence) -> Iterator[Verdict]:
    """A term that is learned by its projector alone.

    The end of an early stage may change little: random filters are near enough to those of a trained network.
    """
    for name, first, last in run.feature_terms(stages=False):
        change = number(last, "fit", "student_change")
        before, after = (number(record, "fit", "correlation", "mean") for record in (first, last))
        if change is None or before is None or after is None:
            continue
        if change < PASSIVE and after - before > LEARNED:
            yield Verdict(
                "passive-student",
                f"The projector of {name} does all the work",
                f"The correlation with the teacher rose from {before:.2f} to {after:.2f}, while the student's feature "
                f"is {percent(1 - change)} what it was at the start (CKA).",
                "The projector has learned to translate a student that does not learn: the term falls, the student "
                "gains nothing (unless it started from weights that were good already).",
                "Check whether the layers before the tap are frozen or have a tiny learning rate; take a smaller "
                "projector (linear instead of mlp), a larger weight, or an earlier tap.",
                f"cka-{name}",
                name,
            )


def dead_channels(run: Evidence) -> Iterator[Verdict]:
    """Channels of either side that do not move."""
    for name, _, last in run.feature_terms():
        for side, key, remedy in (
            (
                "student",
                "dead_student",
                "Lower the learning rate or warm up; check for units that ReLU switched off.",
            ),
            ("teacher", "dead_teacher", "Tap the teacher elsewhere, or before its ReLU; fine-tune a pruned teacher."),
        ):
            share = number(last, "fit", key)
            if share is not None and share > DEAD:
                yield Verdict(
                    "dead-channels",
                    f"Dead channels in the {side}'s feature of {name}",
                    f"{percent(share)} of its channels do not move at all over the probe's images.",
                    "They carry nothing, and a batch norm makes noise of what is left of them.",
                    remedy,
                    f"dead-{name}",
                    name,
                )


def capacity_gap(run: Evidence) -> Iterator[Verdict]:
    """A student that fails on images that it has seen, and whose last feature is far from the teacher's."""
    last = mapping(run.probes[-1], "student") if len(run.probes) > 1 else {}
    train, teacher = number(last, "train_top1"), number(last, "teacher_top1")
    if train is None or teacher is None:
        return
    for name, _, record in run.feature_terms(stages=False):
        fit = number(record, "fit", "correlation", "mean")
        if fit is not None and fit < UNEXPLAINED and teacher - train > TRAIN_GAP:
            yield Verdict(
                "capacity-gap",
                f"The student cannot follow the teacher ({name})",
                f"At the end it explains a correlation of {fit:.2f} of the teacher's feature, and is right on "
                f"{percent(train)} of training images, the teacher on {percent(teacher)} of validation images.",
                "The student is too small for this teacher, or was trained for too short: it fails on images that it "
                "has seen.",
                "Train longer; then a larger student, or a smaller teacher in between.",
                f"fit-{name}",
                name,
            )


def not_following(run: Evidence) -> Iterator[Verdict]:
    """A student without labels that is no more like its teacher than one with random weights."""
    if (found := following(run)) and found[0] < FOLLOWED:
        yield Verdict(
            "not-following",
            "The student does not follow its teacher",
            _alike(found),
            "The student learned nothing from its teacher; fine-tuning it may be no better than training from scratch.",
            "Train longer or on more images, with a larger learning rate; check that the student's layers train.",
        )


def follows(run: Evidence) -> str:
    """That a student without labels follows its teacher, in a sentence; empty if it does not, or nobody looked."""
    found = following(run)
    return f"The student follows its teacher: {_alike(found)}" if found and found[0] >= FOLLOWED else ""


def following(run: Evidence) -> tuple[float, float, float, int] | None:
    """How far a student without labels has come from random weights (0) to its teacher (1), and what says so.

    That is its CKA, that of random weights, and the images; None if nothing was measured after training began.
    """
    last = run.probes[-1] if len(run.probes) > 1 else {}
    now, before = number(last, "following", "cka"), number(last, "following", "untrained")
    images = number(last, "images")
    if now is None or before is None or images is None or images < FEWEST or before >= 1:
        return None
    return (now - before) / (1 - before), now, before, int(images)


def _alike(found: tuple[float, float, float, int]) -> str:
    _, now, before, images = found
    return f"CKA {now:.2f} on {images} held-back images, {before:.2f} with random weights."


def overweight(run: Evidence) -> Iterator[Verdict]:
    """A term whose gradient drowns the task's, if the student ends far behind its teacher.

    The best weights of our tables pull 4 to 100 times as hard as the labels, so the ratio alone is no fault.
    """
    last = mapping(run.probes[-1], "student") if run.probes else {}
    own, teacher = number(last, "top1"), number(last, "teacher_top1")
    if own is not None and teacher is not None and own >= SHORT * teacher:
        return
    for name, ratios in _weighted_ratios(run).items():
        most = OVERWEIGHT_LOGITS if name in LOGITS else OVERWEIGHT
        if median(ratios) > most or ratios[0] > AT_FIRST:
            yield _weight_verdict(
                name,
                "large",
                f"Its gradient on the student was {ratios[0]:.3g} times that of the task loss at the first probe, and "
                f"{median(ratios):.3g} times in the median of the run.",
                "The labels hardly count, and the student is far behind its teacher; the weight may be why.",
            )


def underweight(run: Evidence) -> Iterator[Verdict]:
    """A term whose gradient is nothing beside the task's."""
    for name, ratios in _weighted_ratios(run).items():
        if median(ratios) == 0:
            yield Verdict(
                "weight-too-small",
                f"{name} gives the student no gradient",
                "Its gradient on the student was 0 at the probes, whatever its weight.",
                "No trainable layer of the student comes before the layer that it reads; its trunk may be frozen.",
                "Train what comes before that layer, or read a later one.",
                "balance",
                name,
            )
        elif median(ratios) < UNDERWEIGHT:
            yield _weight_verdict(
                name,
                "small",
                f"Its gradient on the student was {median(ratios):.2g} times that of the task loss, in the median.",
                "The term hardly counts: the student is trained as if alone.",
            )


def _weighted_ratios(run: Evidence) -> dict[str, list[float]]:
    """Of each term the ratio of its weighted gradient on the student to the task's, probe by probe."""
    found: dict[str, list[float]] = {}
    for probe in run.probes:
        weighted = mapping(probe, "balance", "weighted")
        task = number(weighted, "task")
        for name in weighted:
            value = number(weighted, name)
            if name != "task" and value is not None and task:
                found.setdefault(name, []).append(value / task)
    return found


def _weight_verdict(name: str, size: str, seen: str, means: str) -> Verdict:
    return Verdict(
        f"weight-too-{size}",
        f"The weight of {name} is too {size}",
        seen,
        means,
        "Change the weight by steps of 4 and compare with `limbeck compare`. Equal gradients are no aim: the best "
        "weights pull 4 to 100 times as hard as the labels.",
        "balance",
        name,
    )
