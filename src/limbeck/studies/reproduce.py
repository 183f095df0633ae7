"""Make a table or figure of the paper again: all rows, pairs and seeds, beside what was printed, and each claim's fate.

Equal effort: the weight of each row's distillation loss is chosen among the same number of factors, on one seed of its
own (`TUNING_SEED`), before the seeds that count. Rows are compared in pairs, seed by seed. Tables share their runs: the
student alone, or BatchNorm of table 1, is trained once.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from limbeck.errors import UserError, did_you_mean
from limbeck.recipes.parsing import read_summary
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.validation import in_words
from limbeck.studies.pool import Say, place_of, run_all
from limbeck.studies.probed import at_the_end, points_of, probes_of
from limbeck.studies.tables import Changes, Scale, table
from limbeck.studies.verdicts import Cell

TUNING_SEED = 100
PLAN_FILE, RESULT_FILE = "plan.json", "table.json"
RUNS = "runs"
SAME = ("table", "scale", "changes")
WEIGHTS = ("teachers", "students")
"""What a folder's table keeps, and, of models that are there both times, their weights; pairs, rows, seeds and factors
may be others when it is made again."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        table: Name of the table.
        scale: Which models and data.
        changes: What the user set, for every run.
        pairs: Names of the pairs.
        rows: Names of the rows.
        seeds: Those that count.
        factors: On the weight of a row's distillation loss, tried on `TUNING_SEED`; a single one is taken as it is.
        teachers: Name of a teacher to its weights; one that is not named is trained first, as its pair's recipe says.
        students: Name of a student to the weights that it starts from.
    """

    table: str
    scale: Scale
    changes: Changes
    pairs: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    factors: tuple[float, ...]
    teachers: Mapping[str, str] = field(default_factory=dict[str, str])
    students: Mapping[str, str] = field(default_factory=dict[str, str])

    def recipe(self, pair: str, row: str, *, seed: int, factor: float) -> Recipe:
        """The recipe of one run."""
        recipe = table(self.table).recipe(self.scale, pair, row, self.changes)
        changes = {**weighted(recipe, factor), "seed": seed}
        if recipe.teacher is not None and recipe.teacher in self.teachers:
            changes["teacher_weights"] = self.teachers[recipe.teacher]
        if recipe.student is not None and recipe.student in self.students:
            changes["student_weights"] = self.students[recipe.student]
        return recipe.changed(changes)

    def is_tuned(self, pair: str, row: str) -> bool:
        """Whether a row has a weight, and there is more than one to choose from."""
        return len(self.factors) > 1 and bool(weighted(self.recipe(pair, row, seed=TUNING_SEED, factor=1.0), 1.0))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        mappings = {name: dict(getattr(self, name)) for name in WEIGHTS}
        mappings["changes"] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.changes.items()
        }
        lists = {name: list(getattr(self, name)) for name in ("pairs", "rows", "seeds", "factors")}
        return {"table": self.table, "scale": self.scale, **mappings, **lists}


def make_plan(
    name: str,
    scale: Scale,
    changes: Changes,
    *,
    pairs: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: Sequence[int],
    factors: Sequence[float] | None = None,
    teacher_weights: Sequence[str] = (),
    student_weights: Sequence[str] = (),
) -> Plan:
    """A plan whose every recipe has been checked.

    Args:
        name: Of the table.
        scale: Which models and data.
        changes: Settings for every run.
        pairs: Some of the scale's pairs; by default all.
        rows: Some of the table's rows; by default all.
        seeds: Those that count.
        factors: On the weights, see :class:`Plan`; by default the table's.
        teacher_weights: ``MODEL=WEIGHTS`` each, or just the weights where all pairs have one teacher.
        student_weights: The same of the students, which start from them.

    Raises:
        UserError: If a name is unknown, a list is empty, or a recipe contradicts itself.
    """
    chosen = table(name)
    known = chosen.pairs.get(scale, {})
    if not known:
        raise UserError(f"table {name} has no pairs at scale {scale}; it has {', '.join(chosen.pairs)}")
    _check_names("pairs", pairs, known)
    _check_names("rows", rows, chosen.rows)
    if not seeds or TUNING_SEED in seeds:
        raise UserError(f"--seeds: expected 1 to {TUNING_SEED}, seed {TUNING_SEED} is the one that chooses weights")
    factors = chosen.factors if factors is None else factors
    if not factors or min(factors) <= 0 or not math.isfinite(max(factors)):
        raise UserError("--factors: expected one or more numbers above 0")
    plan = Plan(
        name,
        scale,
        changes,
        tuple(dict.fromkeys(pairs)) or tuple(known),
        tuple(dict.fromkeys(rows)) or tuple(chosen.rows),
        tuple(seeds),
        tuple(sorted(set(factors))),
    )
    recipes = [plan.recipe(pair, row, seed=plan.seeds[0], factor=1.0) for pair in plan.pairs for row in plan.rows]
    models = {side: [name for recipe in recipes if (name := getattr(recipe, side))] for side in ("teacher", "student")}
    return replace(
        plan,
        teachers=dict(_weights_of(word, "teacher", models["teacher"]) for word in teacher_weights),
        students=dict(_weights_of(word, "student", models["student"]) for word in student_weights),
    )


def _weights_of(word: str, side: str, found: Sequence[str]) -> tuple[str, str]:
    """A model and its weights."""
    models = tuple(dict.fromkeys(found))
    model, equals, weights = word.partition("=")
    if not equals and len(models) == 1:
        return models[0], word
    if not equals or not weights:
        raise UserError(f"--{side}-weights: of which {side}? give {models[0]}=FILE, one each of {', '.join(models)}")
    _check_names(f"{side}-weights", [model], models)
    return model, weights


def _check_names(kind: str, given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"--{kind}: there is no {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")


def weighted(recipe: Recipe, factor: float) -> dict[str, object]:
    """The change that multiplies the weights of a recipe's distillation losses; none where there are none."""
    changes: dict[str, object] = {}
    if recipe.uses_features:
        changes["feature_weight"] = recipe.full_feature_weight * factor
    if recipe.has_logit_term:
        changes["logit_weight"] = recipe.full_logit_weight * factor
    if recipe.rival is not None:
        from limbeck.assembly.tasks import kind_of

        changes["rival_weight"] = kind_of(recipe.task).rival_weight(recipe) * factor
    return changes


def reproduce(plan: Plan, folder: Path, *, say: Say = print, on_run: Callable[[list[Cell]], object]) -> list[Cell]:
    """Run what is not there yet.

    Several processes may work on one folder, also from several machines that share it: each takes what no other one
    has begun. A run that fails (a loss that is not finite) is reported in its cell; the others go on.

    Args:
        plan: What to run.
        folder: The runs of this and of other tables go to ``runs/`` in it, as :func:`~limbeck.studies.pool.place_of`
            names them, teachers to ``runs/teachers/``; this table has :func:`table_folder`.
        say: Told one line before each run.
        on_run: Told the cells after each run that counts.

    Raises:
        UserError: If the folder holds something else.
    """
    _claim(plan, folder)
    runs = folder / RUNS
    cells = [(pair, row) for pair in plan.pairs for row in plan.rows]
    tuned = [cell for cell in cells if plan.is_tuned(*cell)]
    tried = [plan.recipe(*cell, seed=TUNING_SEED, factor=factor) for cell in tuned for factor in plan.factors]
    run_all(runs, tried, say=say, what="choosing weights")
    factors = {cell: _best_factor(plan, runs, cell) for cell in tuned}
    if len(plan.factors) == 1:
        factors = {cell: plan.factors[0] for cell in cells if weighted(plan.recipe(*cell, seed=0, factor=1.0), 1.0)}

    def gathered(failed: Mapping[Path, str]) -> list[Cell]:
        return [_cell(plan, runs, cell, factors.get(cell), failed) for cell in cells]

    # Seed by seed, so that a stopped table still has pairs to compare.
    counted = [plan.recipe(*cell, seed=seed, factor=factors.get(cell, 1.0)) for seed in plan.seeds for cell in cells]
    what = "the seeds that count"
    return gathered(run_all(runs, counted, say=say, what=what, on_run=lambda failed: on_run(gathered(failed))))


def table_folder(plan: Plan, folder: Path) -> Path:
    """Where a table's plan and figures lie, beside the runs."""
    return folder / f"{plan.table}-{plan.scale}"


def _claim(plan: Plan, folder: Path) -> None:
    """Make sure that the folder is free or holds tables, and this one, if at all, of the same settings."""
    from limbeck.storage.files import save_json
    from limbeck.storage.shared import check_free, first_card

    own = table_folder(plan, folder)
    path = own / PLAN_FILE
    mine = plan.record()
    check_free(folder, f"*/{PLAN_FILE}", kind="table")
    kept = first_card(mine, path)
    found = {name: (kept[name], mine[name]) for name in SAME}
    for side in WEIGHTS:
        theirs = kept.get(side)
        for model, weights in mine[side].items():
            if isinstance(theirs, dict) and model in theirs:
                found[f"{side[:-1]} {model}"] = (theirs[model], weights)
    for name, (theirs, ours) in found.items():
        if theirs != ours:
            raise UserError(f"{own} is a table with {name} {theirs}, not {ours}; choose another --out")
    if kept != mine:
        save_json(mine, path)


def _best_factor(plan: Plan, runs: Path, cell: tuple[str, str]) -> float:
    """The factor whose last epoch was the best, of equal ones the nearest to 1; the middle one where all failed."""
    found: dict[float, float] = {}
    for factor in plan.factors:
        summary = read_summary(place_of(runs, plan.recipe(*cell, seed=TUNING_SEED, factor=factor)))
        if summary is not None:
            value = float(summary["last"][summary["metric"]])
            found[factor] = -value if summary["metric"] == "loss" else value
    if not found:
        return plan.factors[len(plan.factors) // 2]
    return max(found, key=lambda factor: (found[factor], -abs(math.log(factor))))


def _cell(plan: Plan, runs: Path, cell: tuple[str, str], factor: float | None, failed: Mapping[Path, str]) -> Cell:
    places = {seed: place_of(runs, plan.recipe(*cell, seed=seed, factor=factor or 1.0)) for seed in plan.seeds}
    found = {seed: summary for seed, place in places.items() if (summary := read_summary(place)) is not None}
    chosen = table(plan.table)
    probes = {seed: probes_of(places[seed]) for seed in found} if chosen.probe else {}

    def figure(epoch: str, seed: int) -> float | None:
        if chosen.probe:
            return at_the_end(probes[seed], chosen.probe) if epoch == "last" else None
        return float(found[seed][epoch][found[seed]["metric"]])

    measures = {
        name: {seed: value for seed in probes if (value := at_the_end(probes[seed], path)) is not None}
        for name, path in chosen.measures.items()
    }
    if chosen.probe:
        measures["top-1 in percent"] = {
            seed: 100 * float(run["last"]["top1"]) for seed, run in found.items() if "top1" in run["last"]
        }

    return Cell(
        *cell,
        factor=factor,
        is_edge=len(plan.factors) > 1 and factor in (plan.factors[0], plan.factors[-1]),
        last={seed: value for seed in found if (value := figure("last", seed)) is not None},
        best={seed: value for seed in found if (value := figure("best", seed)) is not None},
        seconds=sum(float(run["seconds"]) for run in found.values()) / max(len(found), 1),
        runs={seed: places[seed].name for seed in found},
        measures=measures,
        curves={curve.title: points_of(probes, curve) for curve in chosen.curves},
        device="; ".join(dict.fromkeys(str(run["device"]) for run in found.values() if "device" in run)),
        arithmetic="; ".join(
            dict.fromkeys(in_words(run["arithmetic"]) for run in found.values() if "arithmetic" in run)
        ),
        failed="; ".join(dict.fromkeys(failed[place] for place in places.values() if place in failed)),
    )
