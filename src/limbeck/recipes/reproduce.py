"""Make a table of the paper again: every row, pair and seed, beside what was printed, and what becomes of each claim.

Equal effort: the weight of each row's distillation loss is chosen among the same number of factors, on one seed of its
own (`TUNING_SEED`), before the seeds that count. Rows are compared in pairs, seed by seed.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import UserError, did_you_mean
from limbeck.intervals import Interval, paired
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.tables import Changes, Scale, table
from limbeck.untrusted import read_object

TUNING_SEED = 100
FACTORS = (0.25, 1.0, 4.0)
PLAN_FILE, RESULT_FILE = "plan.json", "table.json"
FEWEST = 3  # seeds: two that happen to differ by the same have an interval of no width
WAIT = 5.0  # seconds between two looks whether another worker is done

Say = Callable[[str], None]
"""Receives one line about what happens next."""


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
    """

    table: str
    scale: Scale
    changes: Changes
    pairs: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    factors: tuple[float, ...]

    def recipe(self, pair: str, row: str, *, seed: int, factor: float) -> Recipe:
        """The recipe of one run."""
        recipe = table(self.table).recipe(self.scale, pair, row, self.changes)
        return recipe.changed({**weighted(recipe, factor), "seed": seed})

    def is_tuned(self, pair: str, row: str) -> bool:
        """Whether a row has a weight, and there is more than one to choose from."""
        return len(self.factors) > 1 and bool(weighted(self.recipe(pair, row, seed=TUNING_SEED, factor=1.0), 1.0))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        lists = {name: list(getattr(self, name)) for name in ("pairs", "rows", "seeds", "factors")}
        return {"table": self.table, "scale": self.scale, "changes": dict(self.changes), **lists}


@dataclass(frozen=True)
class Cell:
    """One row of one pair: the runs that were made, and what they came to.

    Attributes:
        pair: The pair.
        row: The row.
        factor: The chosen one; None where there is no weight to choose.
        is_edge: Whether it is the smallest or largest that was tried, so that a better one may lie beyond.
        last: Seed to the metric of the last epoch.
        best: Seed to the metric of the best epoch.
        seconds: Of a run, on average.
        failed: Why runs are missing.
    """

    pair: str
    row: str
    factor: float | None
    is_edge: bool
    last: Mapping[int, float]
    best: Mapping[int, float]
    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the seeds say of a claim.

    Attributes:
        pair: The pair of models.
        better: The row that is claimed to be above.
        worse: The other one.
        words: The claim.
        difference: Of the last epochs, seed by seed, in points; None where no seed has both.
        verdict: "holds", "does not hold" or "not decided": by whether the interval leaves out zero, and on which side.
            Of fewer than three seeds nothing is concluded.
    """

    pair: str
    better: str
    worse: str
    words: str
    difference: Interval | None
    verdict: str


def make_plan(
    name: str,
    scale: Scale,
    changes: Changes,
    *,
    pairs: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: Sequence[int],
    factors: Sequence[float] = FACTORS,
) -> Plan:
    """A plan whose every recipe has been checked.

    Args:
        name: Of the table.
        scale: Which models and data.
        changes: Settings for every run.
        pairs: Some of the scale's pairs; by default all.
        rows: Some of the table's rows; by default all.
        seeds: Those that count.
        factors: On the weights, see :class:`Plan`.

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
    for pair in plan.pairs:
        for row in plan.rows:
            plan.recipe(pair, row, seed=plan.seeds[0], factor=1.0)
    return plan


def _check_names(kind: str, given: Sequence[str], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"--{kind}: there is no {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")


def weighted(recipe: Recipe, factor: float) -> dict[str, object]:
    """The change that multiplies the weights of a recipe's distillation losses; none where there are none."""
    changes: dict[str, object] = {}
    if recipe.uses_features:
        changes["feature_weight"] = recipe.feature_weight * factor
    if recipe.has_logit_term:
        changes["logit_weight"] = recipe.logit_weight * factor
    if recipe.rival is not None:
        from limbeck.recipes.rivals import full_weight

        changes["rival_weight"] = full_weight(recipe) * factor
    return changes


def reproduce(plan: Plan, folder: Path, *, say: Say = print, on_run: Callable[[list[Cell]], object]) -> list[Cell]:
    """Run what is not there yet.

    Several processes may work on one folder, also from several machines that share it: each takes what no other one
    has begun. A run that fails (a loss that is not finite) is reported in its cell; the others go on.

    Args:
        plan: What to run.
        folder: Where the runs go: ``PAIR--ROW-seedN``, those that choose a weight with ``-xFACTOR`` in front of the
            seed, and ``teachers/``.
        say: Told one line before each run.
        on_run: Told the cells after each run that counts.

    Raises:
        UserError: If the folder holds something else.
    """
    _claim(plan, folder)
    cells = [(pair, row) for pair in plan.pairs for row in plan.rows]
    tuned = [cell for cell in cells if plan.is_tuned(*cell)]
    tried = {
        _place(folder, *cell, TUNING_SEED, factor): plan.recipe(*cell, seed=TUNING_SEED, factor=factor)
        for cell in tuned
        for factor in plan.factors
    }
    _run_all(tried, say, "choosing weights", lambda failed: None)
    factors = {cell: _best_factor(plan, folder, cell) for cell in tuned}
    if len(plan.factors) == 1:
        factors = {cell: plan.factors[0] for cell in cells if weighted(plan.recipe(*cell, seed=0, factor=1.0), 1.0)}

    def gathered(failed: Mapping[Path, str]) -> list[Cell]:
        return [_cell(plan, folder, cell, factors.get(cell), failed) for cell in cells]

    counted = {
        _place(folder, *cell, seed, None): plan.recipe(*cell, seed=seed, factor=factors.get(cell, 1.0))
        for seed in plan.seeds  # seed by seed, so that a stopped table still has pairs to compare
        for cell in cells
    }
    return gathered(_run_all(counted, say, "the seeds that count", lambda failed: on_run(gathered(failed))))


def _claim(plan: Plan, folder: Path) -> None:
    """Make sure that the folder is free, or holds this very table; seeds, pairs and rows may be added."""
    from limbeck.checkpoint import save_json

    path = folder / PLAN_FILE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty and holds no table; choose another --out")
        save_json(plan.record(), path)
        return
    mine, kept = plan.record(), read_object(path, "table", "scale", "changes", "factors")
    for name in ("table", "scale", "changes", "factors"):
        if mine[name] != kept[name]:
            raise UserError(f"{folder} holds a table with {name} {kept[name]}, not {mine[name]}; choose another --out")


def _place(folder: Path, pair: str, row: str, seed: int, factor: float | None) -> Path:
    tried = "" if factor is None else f"-x{factor:g}"
    return folder / f"{_slug(pair)}--{_slug(row)}{tried}-seed{seed}"


def _slug(text: str) -> str:
    """A name that a folder may have."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text.replace("+", "and")).strip("-")


def _run_all(
    runs: Mapping[Path, Recipe], say: Say, what: str, on_run: Callable[[Mapping[Path, str]], object]
) -> dict[Path, str]:
    """Make every run that is not there; what another process has begun is waited for. Why each failed, if it did."""
    from limbeck.recipes.build import is_run
    from limbeck.recipes.lock import HeldError, is_held
    from limbeck.recipes.run import run

    failed: dict[Path, str] = {}
    said: set[str] = set()
    pending = list(enumerate(runs.items(), start=1))
    while pending:
        of_others: list[tuple[int, tuple[Path, Recipe]]] = []
        for number, (place, recipe) in pending:
            if is_run(place):
                continue
            if is_held(place):
                of_others.append((number, (place, recipe)))
                continue
            begun = (place / "recipe.yaml").is_file()
            say(f"[{number}/{len(runs)}, {what}] {place.name}{': going on' if begun else ''}")
            try:
                run(recipe, place, resume=begun, said=said)
            except HeldError:  # another process was quicker
                of_others.append((number, (place, recipe)))
                continue
            except UserError as error:
                failed[place] = str(error)
                say(f"failed: {place.name}: {error}")
            on_run(failed)
        if of_others and len(of_others) == len(pending):
            time.sleep(WAIT)
        pending = of_others
    return failed


def _best_factor(plan: Plan, folder: Path, cell: tuple[str, str]) -> float:
    """The factor whose last epoch was the best, of equal ones the nearest to 1; the middle one where all failed."""
    found: dict[float, float] = {}
    for factor in plan.factors:
        summary = _summary(_place(folder, *cell, TUNING_SEED, factor))
        if summary is not None:
            value = float(summary["last"][summary["metric"]])
            found[factor] = -value if summary["metric"] == "loss" else value
    if not found:
        return plan.factors[len(plan.factors) // 2]
    return max(found, key=lambda factor: (found[factor], -abs(math.log(factor))))


def _summary(place: Path) -> dict[str, Any] | None:
    path = place / "summary.json"
    return read_object(path, "metric", "last", "best", "seconds") if path.is_file() else None


def _cell(plan: Plan, folder: Path, cell: tuple[str, str], factor: float | None, failed: Mapping[Path, str]) -> Cell:
    places = {seed: _place(folder, *cell, seed, None) for seed in plan.seeds}
    found = {seed: summary for seed, place in places.items() if (summary := _summary(place)) is not None}
    return Cell(
        *cell,
        factor=factor,
        is_edge=len(plan.factors) > 1 and factor in (plan.factors[0], plan.factors[-1]),
        last={seed: float(run["last"][run["metric"]]) for seed, run in found.items()},
        best={seed: float(run["best"][run["metric"]]) for seed, run in found.items()},
        seconds=sum(float(run["seconds"]) for run in found.values()) / max(len(found), 1),
        failed="; ".join(dict.fromkeys(failed[place] for place in places.values() if place in failed)),
    )


def judge(plan: Plan, cells: Sequence[Cell]) -> list[Verdict]:
    """What becomes of each claim of the table, for each pair."""
    found = {(cell.pair, cell.row): _points(cell) for cell in cells}
    verdicts: list[Verdict] = []
    for claim in table(plan.table).claims:
        for pair in plan.pairs:
            if (pair, claim.better) not in found or (pair, claim.worse) not in found:
                continue
            difference = paired(found[pair, claim.better], found[pair, claim.worse])
            verdict = "not decided"
            if difference is not None and difference.n >= FEWEST and difference.excludes_zero:
                verdict = "holds" if difference.mean > 0 else "does not hold"
            verdicts.append(Verdict(pair, **asdict(claim), difference=difference, verdict=verdict))
    return verdicts


def _points(cell: Cell) -> dict[int, float]:
    return {seed: 100 * value for seed, value in cell.last.items()}
