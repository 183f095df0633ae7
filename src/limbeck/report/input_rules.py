"""Rules on what a run was given: its images, and a teacher that sees them as it was trained to."""

from collections.abc import Iterator

from limbeck.logs.records import Record, mapping, number
from limbeck.report.evidence import Evidence, Verdict, percent

# Each threshold with what was seen on both its sides, by benchmarks/faults.py and, at the first batch norm, by
# benchmarks/input_faults.py (docs/results.md). Healthy images of one class alone are further off than mixed ones.
LEAK = 0.005  # share of images
VARYING = 1e-3  # relative difference of outputs: faults 0.4 and more; healthy 1e-7
SHIFT = 0.75  # in deviations: faults 1.2 and more; healthy 0.003 to 0.20, of one class to 0.89
SCALE = 1.5  # of the deviation: faults 0.25 to 0.58 and 2.2 to 255; healthy 0.85 to 1.04, of one class 0.67 and more
SWAPPED = 1.5  # shift over that with red and blue exchanged: fault 1.58 and more; healthy to 0.61, of one class to 1.8
COLORED = 0.2  # shift above which that is looked at: fault 0.27 and more
CONFIDENCE = 0.15  # gain of mean confidence under other input statistics, where there is no batch norm


def leaking_data(run: Evidence) -> Iterator[Verdict]:
    """Validation images that are trained on."""
    leaked, count = number(run.data, "leaked"), number(run.data, "val")
    if leaked is None or not count or leaked < LEAK * count:
        return
    pairs = run.data.get("leaked_examples")
    first = pairs[0] if isinstance(pairs, list) and pairs else None
    example = f", for instance {first[0]} ({first[1]})" if isinstance(first, list) and len(first) == 2 else ""
    yield Verdict(
        "leaking-data",
        "Validation images are among the training images",
        f"{leaked:.0f} of {count:.0f} validation images ({100 * leaked / count:.1f}%) are, pixel by pixel, also images "
        f"of the training set{example}.",
        "The validation figures are too good: a part of them is memory.",
        "Remove the duplicates from the training set and train again; compare nothing with these figures.",
    )


def conflicting_labels(run: Evidence) -> Iterator[Verdict]:
    """Training images that are there under two labels."""
    conflicting, count = number(run.data, "conflicting"), number(run.data, "train")
    if conflicting is None or not count or conflicting < LEAK * count:
        return
    yield Verdict(
        "conflicting-labels",
        "The same images under different labels",
        f"{conflicting:.0f} of {count:.0f} training images ({100 * conflicting / count:.1f}%) also occur under another "
        "label.",
        "No model can learn both; the labels were merged or sorted wrongly.",
        "Check the folders of these classes; remove one of each pair, or merge the classes.",
    )


def varying_teacher(run: Evidence) -> Iterator[Verdict]:
    """A teacher whose outputs depend on chance, or on the rest of the batch."""
    first = run.probes[0] if run.probes else {}
    batch, again = number(first, "teacher", "batch_dependence"), number(first, "teacher", "repeatability")
    if again is not None and again > VARYING:
        yield Verdict(
            "random-teacher",
            "The teacher gives other outputs for the same images",
            f"Called twice on the same batch its outputs differ by {percent(again)} of their size.",
            "Dropout or stochastic depth is active in it, whatever its mode says: the student learns from noise.",
            "Use layers that follow eval(), for instance nn.Dropout instead of F.dropout(x) without training=.",
        )
    elif batch is not None and batch > VARYING:
        yield Verdict(
            "teacher-in-train-mode",
            "The teacher's outputs depend on the other images of a batch",
            f"Its outputs for an image differ by {percent(batch)} of their size between a small and a large batch.",
            "It normalizes by batch statistics (train mode, or batch norm that keeps none): a known cause of worse "
            "students, and of results that change with the batch size.",
            "Put it in eval mode; build its batch norms with track_running_stats=True and load their statistics.",
        )


_STATISTICS_MEAN = (
    "Its input statistics (mean, std, 0 to 1 or 0 to 255, RGB or BGR) are not those of its training, or these images "
    "are of another kind; its outputs are worse than it could give."
)
_STATISTICS_REMEDY = (
    "Check the mean and std that `limbeck doctor` prints for the teacher against its model card; if they are right, "
    "fine-tune the teacher on these images first."
)


def wrong_input_statistics(run: Evidence) -> Iterator[Verdict]:
    """Images that do not reach the teacher as those of its training did.

    A teacher that Limbeck has trained or fine-tuned on these images has seen them just so: its batch norms may still
    hold the statistics of its first images, which a short fine-tuning does not replace.
    """
    if mapping(run.start, "origins", "teacher").get("trained_first") is True:
        return
    layer = mapping(run.inputs, "teacher")
    own = number(layer, "confidence", "own")
    others = {name: number(layer, "confidence", name) for name in mapping(layer, "confidence") if name != "own"}
    best = max(others, key=lambda name: others[name] or 0.0, default="")
    if own is not None and best and (others[best] or 0.0) > own + CONFIDENCE:
        yield Verdict(
            "wrong-input-statistics",
            "The teacher does not see what it was trained on",
            f"Its mean confidence is {percent(own)} under its own mean and std, and {percent(others[best] or 0.0)} "
            f"under the usual ones called {best}.",
            _STATISTICS_MEAN,
            _STATISTICS_REMEDY,
        )
        return
    shift, scale = number(layer, "shift"), number(layer, "scale")
    off = (shift is not None and shift > SHIFT) or (scale is not None and scale > 0 and not 1 / SCALE <= scale <= SCALE)
    if not off:
        yield from _swapped_colors(layer)
        return
    parts = [f"the mean is {shift:.1f} deviations off"] if shift is not None else []
    parts += [f"the deviation is {scale:.2g} times as large"] if scale is not None else []
    yield Verdict(
        "wrong-input-statistics",
        "The teacher does not see what it was trained on",
        f"At its first batch norm ({layer.get('layer', '?')}), compared with its training, {' and '.join(parts)}.",
        _STATISTICS_MEAN,
        _STATISTICS_REMEDY,
    )


def _swapped_colors(layer: Record) -> Iterator[Verdict]:
    shift, swapped = number(layer, "shift"), number(layer, "swapped")
    if shift is None or swapped is None or shift <= max(COLORED, SWAPPED * swapped):
        return
    yield Verdict(
        "wrong-input-statistics",
        "The teacher knows these images with red and blue exchanged",
        f"At its first batch norm ({layer.get('layer', '?')}) the mean is {shift:.2f} deviations off, and "
        f"{swapped:.2f} with red and blue exchanged.",
        "Its weights were trained on images in the order BGR, as OpenCV and Caffe read them, or these images are all "
        "of one kind; its outputs are worse than it could give.",
        "Exchange the first and the last input channel of its first convolution, or take weights that were trained on "
        "RGB.",
    )
