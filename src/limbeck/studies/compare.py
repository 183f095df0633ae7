"""Methods against each other: the same recipe, each method with each seed, and what the seeds allow to say.

Every method sees the same seeds, so methods are compared in pairs, seed by seed: what a lucky order of the images gives
to both of them cancels. With few seeds the normal distribution flatters; the intervals are Student's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.logs.records import COMPARISON_FILE, figure, is_share, mapping
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.recipes.roles import RESUMABLE
from limbeck.recipes.values import LOGIT_METHODS, Method
from limbeck.report import intervals
from limbeck.report.intervals import interval_of, summarize
from limbeck.storage.untrusted import read_object

BASELINE = "alone"

Say = Callable[[str], None]
"""Receives one line about what happens next."""


def compare(
    recipe: Recipe,
    folder: Path,
    *,
    methods: Sequence[Method],
    seeds: Sequence[int],
    resume: bool | None = False,
    command: str = "",
    say: Say = print,
) -> dict[str, Any]:
    """Train every method with every seed and write ``comparison.json``.

    A teacher that has to be trained here is trained by the first run that needs it, in ``teachers/``, and found there
    by the others (see `limbeck.assembly.teacher`), so that all of them have the same one.

    Args:
        recipe: What all runs share; its method and seed are replaced.
        folder: Where the comparison goes: one run folder per ``METHOD-seedN``.
        methods: The methods, in the order of the table.
        seeds: The seeds; each method gets every one of them.
        resume: Continue a comparison: finished runs are kept, methods and seeds may be added. None: if one is there.
        command: The command line, for the record.
        say: Told one line before each run.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        UserError: A method does not fit the recipe, or the folder holds something else. Nothing has been trained then.
    """
    from limbeck.runs import comparable as studies  # imports torch
    from limbeck.runs.run import run

    plans = plan(recipe, methods, seeds)
    record: dict[str, Any] = {
        "command": command,
        "recipe": recipe.model_dump(mode="json"),
        "methods": list(methods),
        "seeds": list(seeds),
    }
    _claim(recipe, folder, resume=resume)
    _save(folder, record, {}, None)
    places = {folder / name: planned for name, planned in plans.items()}
    studies.begin(folder, places, say)
    teacher: dict[str, Any] | None = None
    said: set[str] = set()
    done: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in methods}
    for number, (name, planned) in enumerate(plans.items(), start=1):
        place = folder / name
        head = f"[{number}/{len(plans)}] {planned.method}, seed {planned.seed}"
        say(head + (": finished before" if (place / "summary.json").is_file() else ""))
        summary = dict(run(planned, place, if_begun=True, said=said))
        record["in common"] = studies.check(folder, places)
        teacher = teacher or _teacher(folder, summary)
        done[planned.method][planned.seed] = {**summary, "run": name}
        alone = done.get(BASELINE, {}).get(planned.seed) if planned.method != BASELINE else None
        say(f"{head}: {_came_to(summary, alone)}")
        record = _save(folder, record, done, teacher)
    return record


def _came_to(summary: Mapping[str, Any], alone: Mapping[str, Any] | None) -> str:
    """A run's figure, beside that of the student alone with the same seed where it is there, and its seconds."""
    metric = str(summary["metric"])
    text = f"{metric} {figure(metric, summary['last'][metric])}"
    if alone is not None and metric in alone["last"]:
        text += f" (alone {figure(metric, alone['last'][metric])})"
    return f"{text}, {summary['seconds']:.0f} s"


def plan(recipe: Recipe, methods: Sequence[Method], seeds: Sequence[int]) -> dict[str, Recipe]:
    """The runs of a comparison by folder name, seed by seed, so that a stopped one still has pairs to compare.

    Raises:
        UserError: A method does not fit the recipe, or one is given twice.
    """
    for kind, given in (("methods", methods), ("seeds", seeds)):
        if not given or len(set(given)) < len(given):
            raise UserError(f"{kind}: expected at least one, each once, got {' '.join(map(str, given)) or 'none'}")
    # Where one method needs a teacher whose head fits, all get that teacher, not only its hub weights.
    fitted = recipe.fit_teacher or any(method in LOGIT_METHODS for method in methods)
    return {
        f"{method}-seed{seed}": recipe.changed(method_changes(recipe, method, seed, fitted=fitted))
        for seed in seeds
        for method in methods
    }


def method_changes(recipe: Recipe, method: Method, seed: int, *, fitted: bool) -> dict[str, object]:
    """What another method and seed change: ``alone`` has no teacher, the others have one whose head fits, or not."""
    return {"method": method, "seed": seed, "fit_teacher": fitted and recipe.labels and method != BASELINE}


def _claim(recipe: Recipe, folder: Path, *, resume: bool | None) -> None:
    """Make sure that the folder is free, or holds this very comparison and may be resumed."""
    from limbeck.storage.shared import check_free

    check_free(folder, COMPARISON_FILE, kind="comparison")
    if not (folder / COMPARISON_FILE).is_file():
        return
    if resume is False:
        raise UserError(f"{folder} already holds a comparison; continue it with --resume, or choose another with --out")
    # Methods and seeds are not the recipe's here, but what is compared, and may be added.
    free = ("method", "seed", *fields_of(*RESUMABLE))
    changes = recorded_recipe(folder).difference(recipe, but=free)
    if changes:
        raise UserError(f"{folder} holds a comparison with another recipe ({'; '.join(changes)})")


def read_record(folder: Path) -> dict[str, Any]:
    """What ``comparison.json`` holds.

    Raises:
        UserError: The file is damaged.
    """
    return read_object(folder / COMPARISON_FILE)


def recorded_recipe(folder: Path) -> Recipe:
    """The recipe that the runs of a comparison share."""
    return Recipe.shared(mapping(read_record(folder), "recipe"))


def _teacher(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The teacher's figures and, where it was trained for this comparison, its run folder inside of it."""
    if not summary.get("teacher"):
        return None
    name = str(summary.get("teacher_weights") or "").removeprefix("run:")
    trained = bool(name) and (folder / "teachers" / name).is_dir()
    return {**summary["teacher"], "run": f"teachers/{name}" if trained else None}


def _save(
    folder: Path,
    record: Mapping[str, Any],
    done: Mapping[str, Mapping[int, Mapping[str, Any]]],
    teacher: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Write what is known so far, after every run, so that a stopped comparison can be read and resumed."""
    from limbeck.storage.files import save_json

    metrics = {str(summary["metric"]) for runs in done.values() for summary in runs.values()} or {"top1"}
    if len(metrics) > 1:
        raise UserError(f"{folder}: the runs report different metrics ({', '.join(sorted(metrics))})")
    metric = metrics.pop()
    result = {**record, "metric": metric, "rows": summarize(done, metric, BASELINE), "teacher": teacher}
    save_json(result, folder / COMPARISON_FILE)
    return result


def conclusions(rows: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """What the paired differences allow to say, one sentence a method."""
    scale, unit = (100.0, " points") if is_share(metric) else (1.0, "")
    compared = [row for row in rows if row["paired"] is not None]
    lines: list[str] = []
    found = intervals.conclusions([interval_of(row["paired"]) for row in compared])
    for row, said in zip(compared, found, strict=True):
        pair = row["paired"]
        size = f"{row['method']} minus {pair['against']}: {scale * pair['mean']:+.2f}{unit} of {metric}"
        where = ""
        if pair["low"] is not None:
            ends = f"{scale * pair['low']:+.2f} to {scale * pair['high']:+.2f}"
            where = f" (95% interval {ends}, {pair['n']} seeds)"
        lines.append(f"{size}{where}. {said}")
    return lines
