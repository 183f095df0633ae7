"""What came out of a run, in words and headline figures, and what it cost."""

import math
from dataclasses import dataclass
from typing import Any, cast

from limbeck.logs.records import Record, mapping, number
from limbeck.report import words
from limbeck.report.curves import best_epoch, teacher_figure, validation
from limbeck.report.record import RunRecord

Z = 1.959964  # of the normal distribution, for 95%
WHOLE = words.Format(digits=0)


@dataclass(frozen=True)
class Figure:
    """One headline figure: what it is, its value, and a word on it."""

    name: str
    value: str
    remark: str = ""
    style: str = ""


def title(record: RunRecord) -> str:
    """Recipe, method and seed, as far as they are known."""
    recipe = str(record.recipe.get("name") or record.summary.get("recipe") or record.name)
    method = record.recipe.get("method") or record.summary.get("method")
    seed = record.recipe.get("seed", record.summary.get("seed"))
    parts = [recipe, *([str(method)] if method else []), *([f"seed {seed}"] if seed is not None else [])]
    return " · ".join(parts)


def status(record: RunRecord) -> str:
    """Says that a run has not ended; a loop that has only a log is not said to be unfinished."""
    if record.finished or not record.recipe:
        return ""
    planned = number(record.recipe, "epochs")
    done = max((int(number(epoch, "epoch") or 0) for epoch in record.epochs), default=0)
    of = f" of {planned:.0f}" if planned is not None else ""
    return f"This run has not ended: {done}{of} epochs are in its log. The figures are those of the last one."


def last_value(record: RunRecord, metric: str) -> float | None:
    """The metric at the last epoch."""
    final = number(record.summary, "last", metric)
    points = validation(record, metric)
    return final if final is not None else points[-1][1] if points else None


def headline(record: RunRecord, metric: str) -> str:
    """The result in a sentence."""
    last, teacher = last_value(record, metric), teacher_figure(record, metric)
    if last is None:
        return "No epoch has been validated yet." if record.recipe else _what_there_is(record)
    name, fmt = words.metric_name(metric), words.metric_format(metric)
    sentence = (
        f"The student has {fmt(last)} {name}" if metric != "loss" else f"The student's validation loss is {fmt(last)}"
    )
    sentence += " on the validation images"
    if teacher is None:
        return sentence + "."
    if metric == "loss":
        return f"{sentence}; the teacher's is {fmt(teacher)}."
    gap = words.difference_format(metric)(last - teacher)
    return f"{sentence}; the teacher has {fmt(teacher)} ({gap} points)."


def _what_there_is(record: RunRecord) -> str:
    return f"A log with {len(record.steps)} records of steps and {len(record.probes)} of the probe."


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95% interval of a share of ``n`` images (Wilson): what other images of the same kind could have given.

    Example:
        >>> low, high = wilson(0.9, 100)
        >>> round(low, 4), round(high, 4)
        (0.8256, 0.9448)
    """
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return middle - half, middle + half


def figures(record: RunRecord, metric: str) -> list[Figure]:
    """The tiles at the top."""
    fmt = words.metric_format(metric)
    found: list[Figure] = []
    last, best, teacher = last_value(record, metric), best_epoch(record, metric), teacher_figure(record, metric)
    if last is not None:
        found.append(Figure("student, last epoch", fmt(last), _sampling(record, metric, last), "student"))
    if best is not None:
        found.append(Figure("student, best epoch", fmt(best[1]), f"epoch {best[0]:.0f}" if best[0] is not None else ""))
    if teacher is not None:
        found.append(Figure("teacher", fmt(teacher), "on the same images", "teacher"))
    student, large = number(counts(record), "student"), number(counts(record), "teacher")
    if student:
        smaller = f"the teacher has {large / student:.1f} times as many" if large else ""
        found.append(Figure("student's parameters", words.count(student), smaller))
    return found


def _sampling(record: RunRecord, metric: str, value: float) -> str:
    n = number(record.summary, "data", "val")
    text = f"validation {words.metric_name(metric)}"
    if not metric.startswith("top") or not n or not 0 <= value <= 1:
        return text
    low, high = wilson(value, n)
    return f"{text}; 95% interval of {n:,.0f} images: {100 * low:.1f} to {100 * high:.1f}%"


def counts(record: RunRecord) -> Record:
    """Numbers of parameters by part."""
    return mapping(record.summary, "parameters") or mapping(record.start, "counts")


def setting(record: RunRecord) -> list[tuple[str, str]]:
    """What was run, in a few lines."""
    recipe = record.recipe
    shape = {key: str(recipe[key]) for key in _NAMED if recipe.get(key) is not None}
    found = [(key, shape[key]) for key in ("student", "teacher", "data") if key in shape]
    method = str(recipe.get("method") or "")
    if method:
        found.append(("method", f"{method}: {words.METHODS[method]}" if method in words.METHODS else method))
    at_stages = method.startswith("stages")
    if at_stages or "projector" in method:
        parts = [shape.get("projector", ""), f"distance {shape['feature_loss']}" if "feature_loss" in shape else ""]
        parts.append("at every stage" if at_stages else "")
        found.append(("projector", ", ".join(part for part in parts if part)))
    training = [
        f"{shape[key]} {name}".strip() if key == "epochs" else f"{name} {shape[key]}".strip()
        for key, name in (("epochs", "epochs"), ("batch_size", "batch"), ("optimizer", ""), ("lr", "rate"))
        if key in shape
    ]
    if training:
        found.append(("training", ", ".join(training)))
    return [(name, text) for name, text in found if text]


_NAMED = ("student", "teacher", "data", "projector", "feature_loss", "epochs", "batch_size", "optimizer", "lr")


def epoch_table(record: RunRecord, metric: str) -> dict[str, Any]:
    """The figures behind the curves, for those who would rather read than look."""
    val = dict.fromkeys([metric, *(str(name) for row in record.epochs for name in mapping(row, "val"))])
    train = dict.fromkeys(["loss", *(str(n) for row in record.epochs for n in mapping(row, "train"))])
    heads = [
        "epoch",
        *(f"val {words.METRICS.get(n, n)}" for n in val),
        *(f"train {n.replace('_', ' ')}" for n in train),
    ]
    rows: list[list[str]] = []
    for row in record.epochs:
        cells = [cell(number(row, "epoch"), words.Format())]
        cells += [cell(number(row, "val", name), words.metric_format(name)) for name in val]
        cells += [cell(number(row, "train", name), words.Format()) for name in train]
        rows.append(cells)
    return {"heads": heads, "rows": rows}


def cell(value: float | None, fmt: words.Format) -> str:
    """A value of a table; a dash where there is none."""
    return "–" if value is None else fmt(value)


def cost(record: RunRecord) -> list[tuple[str, str]]:
    """Time, memory, size, and what is needed to trust them."""
    found: list[tuple[str, str]] = []
    seconds = run_seconds(record)
    if seconds is not None:
        found.append(("training time", words.duration(seconds)))
    if (taught := _teacher_cost(record, seconds)) is not None:
        found.append(taught)
    if (probe := _probe_cost(record, seconds)) is not None:
        found.append(("of it the probe", probe))
    if skipped := number(record.summary, "skipped_steps"):
        found.append(("steps left out", f"{skipped:,.0f}, whose numbers were not finite"))
    if (memory := number(record.summary, "peak_memory_mib")) is not None:
        found.append(("most memory", f"{memory:,.0f} MiB"))
    if (speed := number(record.summary, "images_per_second")) is not None:
        found.append(("training images a second", f"{speed:,.0f}"))
    labels = {"student": "student's parameters", "teacher": "teacher's parameters", "terms": "parameters of the terms"}
    found += [(label, f"{n:,.0f}") for key, label in labels.items() if (n := number(counts(record), key)) is not None]
    data = mapping(record.summary, "data")
    if data:
        train, val = number(data, "train"), number(data, "val")
        found.append(
            ("data", f"{data.get('name')}: {cell(train, WHOLE)} training, {cell(val, WHOLE)} validation images")
        )
    device = record.summary.get("device") or record.start.get("device")
    if device:
        found.append(("device", str(device)))
    versions = mapping(record.summary, "versions") or mapping(record.start, "versions")
    if versions:
        found.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if record.summary.get("commit"):
        found.append(("commit of limbeck", str(record.summary["commit"])))
    return found


def run_seconds(record: RunRecord) -> float | None:
    """Training time of a run, finished or not."""
    seconds = number(record.summary, "seconds")
    return seconds if seconds is not None or not record.epochs else number(record.epochs[-1], "seconds")


def _teacher_cost(record: RunRecord, seconds: float | None) -> tuple[str, str] | None:
    """What the teacher took of the training, or the reading of what it computed before; its name and its time."""
    cost = mapping(record.summary, "cost")
    spent = number(cost, "teacher_seconds")
    if spent is None:
        found = [value for step in record.steps if (value := number(step, "teacher_seconds")) is not None]
        spent = math.fsum(found) if found else None
    if spent is None:
        return None
    is_cached = cost.get("teacher") == "cache" or record.recipe.get("cache_views") is not None
    share = f" ({100 * spent / seconds:.2g}%)" if seconds else ""
    name = "of it reading the teacher's outputs from the cache" if is_cached else "of it the teacher's forward passes"
    return name, f"{words.duration(spent)}{share}"


def _probe_cost(record: RunRecord, seconds: float | None) -> str | None:
    """Time and share of the probe: as the summary says, else as its records add up."""
    spent = number(record.summary, "probe", "seconds")
    share = number(record.summary, "probe", "share")
    if spent is None and record.probes:
        spent = math.fsum(number(probe, "seconds") or 0.0 for probe in record.probes)
    if spent is None:
        return None
    if share is None and seconds:
        share = spent / seconds
    times = f" in {len(record.probes)} probes" if record.probes else ""
    return f"{words.duration(spent)}{times}" + (f" ({100 * share:.2g}%)" if share is not None else "")


COUNTS = (
    ("leaked", "validation images that are also trained on, pixel for pixel"),
    ("conflicting", "training images that also occur under another label"),
    ("train_duplicates", "training images that occur more than once"),
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
    for key, text in (
        ("batch_dependence", "its outputs alone and in a batch differ by {} of their size"),
        ("repeatability", "two calls on the same images differ by {} of their size"),
    ):
        if (value := number(first, key)) is not None:
            lines.append(("teacher", text.format(f"{value:.2g}") + (" (sound)" if value < 1e-3 else "")))
    return lines


def _data(data: Record) -> list[tuple[str, str]]:
    found = [(number(data, key), text) for key, text in COUNTS]
    known = [(value, text) for value, text in found if value is not None]
    if known and not any(value for value, _ in known):
        return [("images", "no image is there twice")]
    lines = [("images", f"{text}: {value:,.0f}") for value, text in known if value]
    examples = data.get("leaked_examples")
    pairs = cast(list[object], examples)[:MOST_EXAMPLES] if isinstance(examples, list) else []
    return lines + [("for example", " is ".join(map(str, cast(list[object], p)))) for p in pairs if isinstance(p, list)]


def _inputs(who: str, part: Record) -> list[tuple[str, str]]:
    shift, scale = number(part, "shift"), number(part, "scale")
    sure = {str(name): number(part, "confidence", str(name)) for name in mapping(part, "confidence")}
    if said := [f"{name} {100 * value:.0f}%" for name, value in sure.items() if value is not None]:
        return [(who, f"mean confidence by the normalization of the images: {', '.join(said)}")]
    if shift is None or scale is None:
        return []
    layer = f" at {part['layer']}" if part.get("layer") else ""
    return [(who, f"what it sees{layer} is {shift:.2g} deviations from what it was trained on, {scale:.3g} as wide")]
