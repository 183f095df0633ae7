"""What the checks of the images and of the models' inputs found, in sentences."""

from typing import cast

from limbeck.logs.records import Record, mapping, number
from limbeck.report.record import RunRecord

COUNTS = (
    ("leaked", "validation images that are also trained on, pixel for pixel"),
    ("conflicting", "training images that are there again under another label"),
    ("train_duplicates", "training images that are there more than once"),
)
MOST_EXAMPLES = 3


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
    lines = [("images", f"{words}: {value:,.0f}") for value, words in known if value]
    examples = data.get("leaked_examples")
    pairs = cast(list[object], examples)[:MOST_EXAMPLES] if isinstance(examples, list) else []
    return lines + [("for example", " is ".join(map(str, cast(list[object], p)))) for p in pairs if isinstance(p, list)]


def _inputs(who: str, part: Record) -> list[tuple[str, str]]:
    shift, scale = number(part, "shift"), number(part, "scale")
    sure = {str(name): number(part, "confidence", str(name)) for name in mapping(part, "confidence")}
    if words := [f"{name} {100 * value:.0f}%" for name, value in sure.items() if value is not None]:
        return [(who, f"mean confidence by the normalization of the images: {', '.join(words)}")]
    if shift is None or scale is None:
        return []
    layer = f" at {part['layer']}" if part.get("layer") else ""
    return [(who, f"what it sees{layer} is {shift:.2g} deviations from what it was trained on, {scale:.3g} as wide")]
