"""What the checks of the images and of the models' inputs found, in sentences."""

from limbeck.report.record import Record, RunRecord, mapping, number

COUNTS = (
    ("leaked", "training images are also validation images, pixel for pixel"),
    ("conflicting", "training images are there more than once, under different labels"),
    ("train_duplicates", "training images are there more than once"),
)


def image_lines(record: RunRecord) -> list[tuple[str, str]]:
    """Name and sentence of each check; the last record of a kind counts."""
    last = {str(item.get("kind")): item for item in record.inputs}
    lines = _data(last.get("data", {}))
    inputs = last.get("inputs", {})
    for who in ("student", "teacher"):
        lines += _inputs(who, mapping(inputs, who))
    first = next((mapping(probe, "teacher") for probe in record.probes if mapping(probe, "teacher")), {})
    for key, words in (
        ("batch_dependence", "its outputs alone and in a batch differ by {} of their size"),
        ("repeatability", "two calls on the same images differ by {} of their size"),
    ):
        if (value := number(first, key)) is not None:
            lines.append(("teacher", words.format(f"{value:.2g}") + (" (sound)" if value < 1e-3 else "")))
    return lines


def _data(data: Record) -> list[tuple[str, str]]:
    found = [(number(data, key), words) for key, words in COUNTS]
    known = [(value, words) for value, words in found if value is not None]
    if known and not any(value for value, _ in known):
        return [("images", "no image is there twice")]
    return [("images", f"{value:,.0f} {words}") for value, words in known if value]


def _inputs(who: str, part: Record) -> list[tuple[str, str]]:
    shift, scale = number(part, "shift"), number(part, "scale")
    if shift is None or scale is None:
        return []
    layer = f" at {part['layer']}" if part.get("layer") else ""
    return [(who, f"what it sees{layer} is {shift:.2g} deviations from what it was trained on, {scale:.3g} as wide")]
