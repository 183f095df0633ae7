"""The runs of a comparison by what they have in common but for the seed: read from its record, or put together here."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from limbeck.errors import UserError
from limbeck.logs.records import COMPARISON_FILE, Record, mapping, number, records
from limbeck.recipes.recipe import NOT_COMPARED
from limbeck.recipes.validation import TEACHER_SETTINGS, in_words
from limbeck.report import words
from limbeck.report.curves import best_epoch, run_metric, teacher_figure
from limbeck.report.intervals import summarize
from limbeck.report.record import RunRecord, read_json, read_run
from limbeck.report.result import last_value, run_seconds

MOST_WORDS = 3  # fields in the name of a group
MOST_NAMES = 3  # runs that a remark names
LONGEST = 60  # letters of a value in a remark

IMAGES = {
    "val": "validation images",
    "classes": "classes",
    "fingerprint": "digest of names, sizes and labels",
    "content": "digest of the bytes",
}
"""What a run records of its images, where another value means other images."""

HARM = {
    **dict.fromkeys(IMAGES.values(), "their figures do not compare as they stand"),
    "data": "their figures do not compare as they stand",
    "device": "their seconds do not compare",
    "arithmetic": "a small difference of their figures may come from it",
}
"""What follows where runs differ in something; what is not listed is of the teacher."""


@dataclass(frozen=True)
class MethodRow:
    """One method of the comparison, with the runs of it that can be read."""

    name: str
    style: str
    row: Record
    runs: Mapping[str, RunRecord]

    @property
    def mean(self) -> float | None:
        """Mean over the seeds at the last epoch."""
        return number(self.row, "mean")

    @property
    def difference(self) -> Record:
        """The paired difference to the baseline; empty for the baseline itself."""
        return mapping(self.row, "paired")

    def values(self, metric: str) -> dict[str, float]:
        """The metric at the last epoch, by seed."""
        found = {seed_of(name, run): last_value(run, metric) for name, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Comparison:
    """What a comparison's page shows.

    Attributes:
        title: Heading of the page.
        metric: The figure that is compared.
        methods: The methods, in their order.
        baseline: Name of the method that the others are compared with.
        teacher: The teacher's figure, where all runs have the same.
        recipe: What all runs share.
        command: How to make it again.
        remarks: What a reader has to know: runs that are left out, images, devices or teachers that differ.
        in_common: Arithmetic and device of all runs, in words; empty where they differ or are not recorded.
    """

    title: str
    metric: str
    methods: Sequence[MethodRow]
    baseline: str
    teacher: float | None
    recipe: Record
    command: str
    remarks: Sequence[str] = ()
    in_common: str = ""


def seed_of(name: str, run: RunRecord) -> str:
    """The seed of a run; of one that does not say, what its folder's name ends in."""
    seed = run.summary.get("seed", run.recipe.get("seed"))
    return str(seed) if seed is not None else name.rpartition("-seed")[2]


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison folder; runs that cannot be read are named, and left out of what needs them.

    Raises:
        UserError: If the folder is missing or holds no comparison.
    """
    if not (folder / COMPARISON_FILE).is_file():
        raise UserError(f"{folder} holds no comparison: expected {COMPARISON_FILE}")
    record = read_json(folder / COMPARISON_FILE)
    metric = str(record.get("metric") or "top1")
    rows = records(record, "rows")
    given = mapping(record, "recipe")  # of which each run replaces method, seed and more
    styles = _styles([str(row.get("method") or "?") for row in rows])
    methods = [_method(folder, row, style) for row, style in zip(rows, styles, strict=True)]
    runs = [(name, run) for method in methods for name, run in method.runs.items()]
    common, remarks = _conditions(runs)
    read = {name for name, _ in runs}
    if lost := [name for row in rows for name in _listed(row) if name not in read]:
        remarks.insert(0, f"{_names(lost)}: cannot be read, so it is missing in the curves and single runs.")
    against = (str(method.difference["against"]) for method in methods if "against" in method.difference)
    return Comparison(
        title=" · ".join(["Comparison", str(given.get("name") or folder.resolve().name)]),
        metric=metric,
        methods=methods,
        baseline=next(against, "alone"),
        teacher=number(record, "teacher", metric),
        recipe=_shared([run for _, run in runs]) or {k: v for k, v in given.items() if k not in ("method", "seed")},
        command=str(record.get("command") or ""),
        remarks=remarks,
        in_common=str(record.get("in common") or common),
    )


def _method(folder: Path, row: Record, style: str) -> MethodRow:
    found: dict[str, RunRecord] = {}
    for run in _listed(row):
        if Path(run).name != run:  # a comparison names its own run folders; a name that leads out is not followed
            continue
        with contextlib.suppress(UserError):
            found[run] = read_run(folder / run)
    return MethodRow(str(row.get("method") or "?"), style, row, found)


def _listed(row: Record) -> list[str]:
    """Names of the runs of a row."""
    listed = row.get("runs")
    return [str(run) for run in cast(list[object], listed)] if isinstance(listed, list) else []


def _styles(names: Sequence[str]) -> list[str]:
    """Colors: those that the known methods always have, else one after the other."""
    spare = (style for _ in range(len(names)) for style in ("c4", "c5", "c3", "c6", "c2", "c1"))
    return [words.STYLES[name] if name in words.STYLES else next(spare) for name in names]


def gather(runs: Sequence[tuple[str, RunRecord]], command: str = "") -> Comparison:
    """Put runs together: those whose recipes differ in nothing but the seed are one method.

    The baseline is the one method "alone" where there is one, else the method of the first run.

    Args:
        runs: Name and record of each run.
        command: The command line, for the page.

    Raises:
        UserError: The runs report different metrics, or none of them has a result.
    """
    remarks = [f"{name} has not finished and is skipped." for name, run in runs if run.recipe and not run.finished]
    ended = [(name, run) for name, run in runs if run.finished or not run.recipe]
    metrics = sorted({run_metric(run) for _, run in ended})
    if len(metrics) != 1:
        raise UserError(
            f"the runs report different metrics ({', '.join(metrics)})" if metrics else "none of these runs has ended"
        )
    metric = metrics[0]
    groups = _groups(ended)
    done: dict[str, dict[int, dict[str, Any]]] = {}
    members: dict[str, dict[str, RunRecord]] = {}
    for label, group in groups.items():
        done[label], members[label] = {}, {}
        for name, run in group:
            if (entry := _entry(name, run, metric)) is None:
                remarks.append(f"{name} has no validated epoch and is skipped.")
                continue
            seed = number(run.summary, "seed") if "seed" in run.summary else number(run.recipe, "seed")
            key = int(seed) if seed is not None else -1 - len(members[label]) - 1000 * len(done)  # pairs with none
            if key in done[label]:
                remarks.append(
                    f"{label}: seed {key} is there twice; {name} counts, {done[label][key]['run']} does not."
                )
                members[label].pop(done[label][key]["run"])
            done[label][key], members[label][name] = entry, run
    common, differences = _conditions(ended)
    remarks += differences
    baseline = _baseline(groups)
    rows = summarize(done, metric, baseline)
    if not rows:
        raise UserError("none of these runs has a validated epoch")
    styles = _styles([str(row["method"]) for row in rows])
    teachers = {figure for _, run in ended if (figure := teacher_figure(run, metric)) is not None}
    return Comparison(
        title=f"Comparison · {len(ended)} runs",
        metric=metric,
        methods=[MethodRow(row["method"], s, row, members[row["method"]]) for row, s in zip(rows, styles, strict=True)],
        baseline=baseline,
        teacher=teachers.pop() if len(teachers) == 1 else None,
        recipe=_shared([run for _, run in ended]),
        command=command,
        remarks=remarks,
        in_common=common,
    )


def _entry(name: str, run: RunRecord, metric: str) -> dict[str, Any] | None:
    """A run as `limbeck.report.intervals.summarize` wants it."""
    last, best, seconds = last_value(run, metric), best_epoch(run, metric), run_seconds(run)
    if last is None:
        return None
    return {
        "last": {metric: last},
        "best": {metric: last if best is None else best[1]},
        "seconds": math.nan if seconds is None else seconds,
        "run": name,
    }


def _groups(runs: Sequence[tuple[str, RunRecord]]) -> dict[str, list[tuple[str, RunRecord]]]:
    """Name of the group -> its runs, in the order in which they were given."""
    by_settings: dict[str, list[tuple[str, RunRecord]]] = {}
    for name, run in runs:
        settings = {key: value for key, value in run.recipe.items() if key not in NOT_COMPARED}
        key = json.dumps(settings, sort_keys=True, default=str) if settings else name
        by_settings.setdefault(key, []).append((name, run))
    recipes = [group[0][1].recipe for group in by_settings.values()]
    methods = [str(recipe.get("method") or "") for recipe in recipes]
    named: dict[str, list[tuple[str, RunRecord]]] = {}
    for (first, run), group in ((group[0], group) for group in by_settings.values()):
        method = str(run.recipe.get("method") or "")
        rivals = [recipe for recipe in recipes if str(recipe.get("method") or "") == method]
        fields = _differing(run.recipe, rivals) if len(rivals) > 1 else []
        shown = [method] if len(set(methods)) > 1 or not fields else []
        label = ", ".join([*shown, *fields]) or first
        named[label if label not in named else f"{label} ({first})"] = group
    return named


def _differing(recipe: Record, rivals: Sequence[Record]) -> list[str]:
    """What tells one recipe from the others of its method."""
    keys = dict.fromkeys(key for rival in rivals for key in rival if key not in NOT_COMPARED)
    differ = [key for key in keys if len({str(rival.get(key)) for rival in rivals}) > 1 and recipe.get(key) is not None]
    return [f"{key} {recipe[key]}" for key in differ[:MOST_WORDS]]


def _baseline(groups: Mapping[str, Sequence[tuple[str, RunRecord]]]) -> str:
    alone = [label for label, group in groups.items() if group[0][1].recipe.get("method") == "alone"]
    return alone[0] if len(alone) == 1 else next(iter(groups))


def _shared(runs: Sequence[RunRecord]) -> Record:
    """The settings that have the same value in all runs; those of the teacher in all runs that have one."""
    recipes = [run.recipe for run in runs if run.recipe]
    taught = [recipe for recipe in recipes if recipe.get("teacher") is not None]
    shared: dict[str, Any] = {}
    for name in dict.fromkeys(name for recipe in recipes for name in recipe):
        of = taught if taught and name in ("fit_teacher", *TEACHER_SETTINGS) else recipes
        if name in of[0] and all(name in recipe and recipe[name] == of[0][name] for recipe in of):
            shared[name] = of[0][name]
    return shared


def _conditions(runs: Sequence[tuple[str, RunRecord]]) -> tuple[str, list[str]]:
    """Arithmetic and device that all runs share, in words, and a remark for each thing in which they differ."""
    seen: dict[str, dict[str, list[str]]] = {}
    for name, run in runs:
        for what, value in _facts(run):
            seen.setdefault(what, {}).setdefault(value, []).append(name)
    shared = [
        value
        for what in ("arithmetic", "device")
        for value, names in seen.get(what, {}).items()
        if len(names) == len(runs)
    ]
    remarks: list[str] = []
    for what, values in seen.items():
        if len(values) > 1:
            told = "; ".join(f"{_cut(value)} in {_names(names)}" for value, names in values.items())
            harm = HARM.get(what, "a difference of their figures may come from the teacher")
            remarks.append(f"The runs differ in {what} ({told}), so {harm}.")
    return "; ".join(shared), remarks


def _facts(run: RunRecord) -> Iterator[tuple[str, str]]:
    """What decides whether a run's figures compare with another's, as far as it is recorded: what it is, its value."""
    data, teacher = mapping(run.summary, "data"), mapping(run.summary, "origins", "teacher")
    if data and not data.get("fingerprint"):
        yield "data", str(data.get("name"))
    yield from ((what, str(data[name])) for name, what in IMAGES.items() if data.get(name) is not None)
    if device := run.summary.get("device"):
        yield "device", str(device).partition(" (")[0]  # without the number of threads
    if arithmetic := mapping(run.summary, "arithmetic"):
        yield "arithmetic", in_words(arithmetic)
    if teacher and (name := run.recipe.get("teacher")) is not None:
        yield f"the weights of {name}", str(teacher.get("weights"))
        if teacher.get("classes") and not teacher.get("new_head"):  # else its head is new, and not read
            yield f"the digest of {name} with {teacher['classes']} classes", str(teacher.get("digest"))


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
