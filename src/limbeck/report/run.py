"""The page of one run: what came out, how it got there, what it cost, and how to make it again."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.report import words
from limbeck.report.curves import (
    best_epoch,
    course_curves,
    main_curves,
    part_curves,
    reading_curves,
    run_metric,
    teacher_figure,
    validation,
)
from limbeck.report.page import REPORT_FILE, write_page
from limbeck.report.record import Record, RunRecord, mapping, number, read_run

FINDING_ORDER = ("error", "warning", "note", "ok")


@dataclass(frozen=True)
class Figure:
    """One headline figure: what it is, its value, and a word on it."""

    name: str
    value: str
    remark: str = ""
    style: str = ""


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder.

    The page needs no network and no script. A run that is still going on, or that was killed, gives a page of what is
    there and says so.

    Args:
        run: The run folder.

    Returns:
        Where the page is.

    Raises:
        UserError: If the folder is missing or holds no run.
    """
    record = read_run(run)
    metric = run_metric(record)
    view: dict[str, Any] = {
        "title": " · ".join(_title(record)),
        "method": words.METHODS.get(str(record.recipe.get("method")), ""),
        "status": _status(record),
        "headline": _headline(record, metric),
        "figures": _figures(record, metric),
        "charts": main_curves(record, metric),
        "parts": part_curves(record),
        "readings": reading_curves(record),
        "course": course_curves(record),
        "epochs": _epoch_table(record, metric),
        "cost": _cost(record),
        "findings": sorted(record.findings, key=_finding_rank),
        "notes": record.notes,
        "recipe": [(name, _shown(value)) for name, value in record.recipe.items()],
        "recipe_text": record.recipe_text,
        "files": [(name, words.size(bytes_)) for name, bytes_ in record.files.items() if name != REPORT_FILE],
        "commands": _commands(record, run),
    }
    return write_page("run.html.j2", run / REPORT_FILE, view)


def _title(record: RunRecord) -> list[str]:
    recipe = str(record.recipe.get("name") or record.summary.get("recipe") or record.name)
    method = record.recipe.get("method") or record.summary.get("method")
    seed = record.recipe.get("seed", record.summary.get("seed"))
    return [recipe, *([str(method)] if method else []), *([f"seed {seed}"] if seed is not None else [])]


def _status(record: RunRecord) -> str:
    if record.finished:
        return ""
    planned = number(record.recipe, "epochs")
    done = max((int(number(epoch, "epoch") or 0) for epoch in record.epochs), default=0)
    of = f" of {planned:.0f}" if planned is not None else ""
    return f"This run has not ended: {done}{of} epochs are in its log. The figures are those of the last one."


def _last(record: RunRecord, metric: str) -> float | None:
    final = number(record.summary, "last", metric)
    points = validation(record, metric)
    return final if final is not None else points[-1][1] if points else None


def _headline(record: RunRecord, metric: str) -> str:
    last, teacher = _last(record, metric), teacher_figure(record, metric)
    if last is None:
        return "No epoch has been validated yet."
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


def _figures(record: RunRecord, metric: str) -> list[Figure]:
    fmt = words.metric_format(metric)
    found: list[Figure] = []
    last, best, teacher = _last(record, metric), best_epoch(record, metric), teacher_figure(record, metric)
    if last is not None:
        found.append(Figure("student, last epoch", fmt(last), f"validation {words.metric_name(metric)}", "student"))
    if best is not None:
        found.append(Figure("student, best epoch", fmt(best[1]), f"epoch {best[0]:.0f}" if best[0] is not None else ""))
    if teacher is not None:
        found.append(Figure("teacher", fmt(teacher), "on the same images", "teacher"))
    counts = _counts(record)
    student, large = number(counts, "student"), number(counts, "teacher")
    if student:
        smaller = f"the teacher has {large / student:.1f} times as many" if large else ""
        found.append(Figure("student's parameters", words.count(student), smaller))
    return found


def _counts(record: RunRecord) -> Record:
    return mapping(record.summary, "parameters") or mapping(record.start, "counts")


def _epoch_table(record: RunRecord, metric: str) -> dict[str, Any]:
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
        cells = [_cell(number(row, "epoch"), words.Format())]
        cells += [_cell(number(row, "val", name), words.metric_format(name)) for name in val]
        cells += [_cell(number(row, "train", name), words.Format()) for name in train]
        rows.append(cells)
    return {"heads": heads, "rows": rows}


def _cell(value: float | None, fmt: words.Format) -> str:
    return "–" if value is None else fmt(value)


def _cost(record: RunRecord) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    seconds = number(record.summary, "seconds")
    if seconds is None and record.epochs:
        seconds = number(record.epochs[-1], "seconds")
    speed = number(record.summary, "images_per_second")
    if seconds is not None:
        found.append(("training time", words.duration(seconds)))
    if (memory := number(record.summary, "peak_memory_mib")) is not None:
        found.append(("most memory", f"{memory:,.0f} MiB"))
    if speed is not None:
        found.append(("training images a second", f"{speed:,.0f}"))
    counts = _counts(record)
    labels = {"student": "student's parameters", "teacher": "teacher's parameters", "terms": "parameters of the terms"}
    found += [(label, f"{n:,.0f}") for key, label in labels.items() if (n := number(counts, key)) is not None]
    data = mapping(record.summary, "data")
    if data:
        train, val = number(data, "train"), number(data, "val")
        found.append(
            ("data", f"{data.get('name')}: {_cell(train, _WHOLE)} training, {_cell(val, _WHOLE)} validation images")
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


_WHOLE = words.Format(digits=0)


def _commands(record: RunRecord, run: Path) -> list[tuple[str, str]]:
    if not record.recipe:
        return []
    command = "limbeck train" if record.recipe.get("method") == "alone" else "limbeck distill"
    place = shown_path(run)
    again = f"{command} --recipe {shlex.quote(place + '/recipe.yaml')} --out NEW_FOLDER"
    if record.finished:
        return [("The same run again", again)]
    return [("Go on with it", f"{command} --resume {shlex.quote(place)}"), ("Start it anew", again)]


def shown_path(path: Path) -> str:
    """A folder as it is called from here; its bare name where it lies elsewhere, since a page may be handed on."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.resolve().name


def _finding_rank(finding: Record) -> int:
    level = finding.get("level")
    return FINDING_ORDER.index(level) if level in FINDING_ORDER else len(FINDING_ORDER)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
