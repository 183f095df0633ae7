"""A sweep as JSON and as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.logs.records import figure, is_share, number
from limbeck.recipes.parsing import read_summary
from limbeck.report.intervals import summarize
from limbeck.report.words import grid
from limbeck.storage.untrusted import records_of
from limbeck.studies.compare import conclusions
from limbeck.studies.search_space import described
from limbeck.studies.trials import FAILED, Plan, Trials, importance

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

AS_GIVEN = "as given"
RESULT_FILE, BEST_FILE = "sweep.json", "best.yaml"
STATES = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "begun"}
HEAD = ("trial", "settings", "last", "epochs", "s")
CONFIRMED = ("row", "last epoch", "95%", "best", "minus as given", "95%", "s")

Confirmed = dict[str, dict[int, dict[str, Any]]]
"""Row to seed to the summary of the run."""


def save_record(plan: Plan, folder: Path, trials: Trials, confirmed: Confirmed, *, command: str) -> dict[str, Any]:
    """Write what is known so far, so that a stopped sweep can be read; the recipe of the best settings, too."""
    from limbeck.storage.files import save_json, save_text

    record = sweep_record(plan, folder, trials, confirmed, command=command)
    save_json(record, folder / RESULT_FILE)
    save_text(markdown(record), folder / "sweep.md")
    if record["best"] is not None:
        is_given = record["best"]["row"] == AS_GIVEN
        best = plan.recipe if is_given else trials.recipe(record["best"]["settings"])
        save_text(best.to_yaml(), folder / BEST_FILE)
    return record


def sweep_record(plan: Plan, folder: Path, trials: Trials, confirmed: Confirmed, *, command: str) -> dict[str, Any]:
    """Everything, as JSON; metrics as they are logged, shares from 0 to 1."""
    from limbeck.runs.comparable import check  # imports torch

    summaries = [summary for runs in confirmed.values() for summary in runs.values()]
    summaries += [found for trial in trials.all() if (found := read_summary(trials.place(trial.number))) is not None]
    metric = str(summaries[0]["metric"]) if summaries else "top1"
    best = [row_name(trial.number) for trial in chosen(plan, trials)]
    choice = summarize(_of_seeds(confirmed, plan.choosing), metric, AS_GIVEN)
    confirming = _of_seeds(confirmed, plan.confirming)
    rows = summarize(confirming, metric, AS_GIVEN) if confirming else choice
    found = [_trial(trial, trials, plan) for trial in trials.all()]
    return {
        "command": command,
        **plan.record(),
        "trials wanted": plan.trials,
        "seed that chooses": plan.recipe.seed,
        "metric": metric,
        "as given": {axis.name: getattr(plan.recipe, axis.name) for axis in plan.space},
        "trials": found,
        "importance": importance(trials.study, plan.space, plan.recipe.seed) if len(found) >= plan.trials else {},
        "choice": choice if confirming else [],
        "rows": rows,
        "by seed": {
            row: {str(seed): run["last"][metric] for seed, run in runs.items()} for row, runs in confirmed.items()
        },
        "best": _best(found, rows, choice if confirming else [], winner_of(confirmed, plan, best)),
        "teacher": next((run["teacher"] for run in summaries if run.get("teacher")), None),
        "in common": check(
            folder,
            [
                *(trials.place(trial.number) for trial in trials.all()),
                *(folder / summary["run"] for runs in confirmed.values() for summary in runs.values()),
            ],
        ),
        "commit": summaries[0].get("commit") if summaries else None,
        "device": summaries[0].get("device") if summaries else None,
    }


def _trial(trial: "FrozenTrial", trials: Trials, plan: Plan) -> dict[str, Any]:
    settings = trials.settings(trial)
    curve = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    return {
        "trial": trial.number,
        "run": trials.place(trial.number).name,
        "settings": settings,
        "state": STATES[trial.state.name],
        "last": trial.value if trial.state.name == "COMPLETE" else None,
        "curve": curve,
        "epochs": max(trial.intermediate_values, default=0),
        "of": settings.get("epochs", plan.recipe.epochs),
        "seconds": round(seconds_of(trials.place(trial.number)), 1),
        "failed": trial.user_attrs.get(FAILED, ""),
    }


def _of_seeds(confirmed: Confirmed, seeds: range) -> Confirmed:
    """The runs of some seeds; rows without any are missing."""
    found = {row: {seed: run for seed, run in runs.items() if seed in seeds} for row, runs in confirmed.items()}
    return {row: runs for row, runs in found.items() if runs}


def winner_of(confirmed: Confirmed, plan: Plan, candidates: Sequence[str]) -> str | None:
    """The row with the highest mean over the seeds that choose, the recipe as given among them; None without any.

    Before these are trained it is the first of the candidates, which the seed of the trials chose.
    """
    found = _of_seeds(confirmed, plan.choosing)
    metric = next((str(run["metric"]) for runs in found.values() for run in runs.values()), "top1")
    means = {row["method"]: row["mean"] for row in summarize(found, metric, AS_GIVEN)}
    means = {name: means[name] for name in (AS_GIVEN, *candidates) if name in means}
    return max(means, key=lambda each: means[each]) if means and candidates else next(iter(candidates), None)


def _best(
    found: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    choice: Sequence[Mapping[str, Any]],
    name: str | None,
) -> dict[str, Any] | None:
    """The winner: its settings, and its means on its trial's seed, on seeds that chose it, on others."""
    means, chose = ({row["method"]: row["mean"] for row in table} for table in (rows, choice))
    if name == AS_GIVEN:
        return {"row": AS_GIVEN, "settings": {}, "chosen with": None, "chose": None, "mean": means[AS_GIVEN]}
    for trial in found:
        if row_name(trial["trial"]) == name:
            own = {"settings": trial["settings"], "chosen with": trial["last"]}
            return {"row": name, **own, "chose": chose.get(name), "mean": means.get(name)}
    return None


def row_name(trial: int) -> str:
    """What a trial is called in the table of the confirmed ones."""
    return f"trial {trial}"


def chosen(plan: Plan, trials: Trials) -> "list[FrozenTrial]":
    """The best finished trials on the seed that chooses, the first one first; not one that is the recipe as given."""
    done = [trial for trial in trials.all() if trial.state.name == "COMPLETE"]
    others = [trial for trial in done if trials.recipe(trials.settings(trial)) != plan.recipe]
    return sorted(others, key=lambda trial: (-(trial.value or 0.0), trial.number))[: plan.confirm]


def seconds_of(place: Path) -> float:
    """How long a run trained, also of one that was stopped: as of its last epoch."""
    log = place / "log.jsonl"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    found = [number(record, "seconds") for _, record in records_of(text) if record.get("kind") == "epoch"]
    return next((value for value in reversed(found) if value is not None), 0.0)


def ranked(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials: finished ones from the best on, then stopped ones by how far they came, then the others."""

    def key(trial: Mapping[str, Any]) -> tuple[float, ...]:
        last = trial["last"] if trial["last"] is not None else -1.0
        return (-last, -trial["epochs"], -max(trial["curve"], default=0.0), trial["trial"])

    return sorted(record["trials"], key=key)


def cells_of(trial: Mapping[str, Any], metric: str) -> list[str]:
    """A trial in words: number, settings, last epoch's metric, epochs, seconds."""
    last = "" if trial["last"] is None else percent(metric, trial["last"])
    if trial["state"] in ("failed", "begun"):
        last = trial["state"]
    epochs = f"{trial['epochs']}/{trial['of']}"
    return [str(trial["trial"]), described(trial["settings"]), last, epochs, f"{trial['seconds']:.0f}"]


def percent(metric: str, value: float, sign: str = "") -> str:
    """A metric in a table: shares in percent, without the sign."""
    return f"{100 * value:{sign}.2f}" if is_share(metric) else f"{value:{sign}.4f}"


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What explains the differences, what the seeds that chose nothing say, and how far to trust it."""
    lines: list[str] = []
    done = sum(trial["state"] == "finished" for trial in record["trials"])
    if record["importance"]:
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in record["importance"].items())
        lines.append(f"importance among the {done} finished trials (fANOVA): {shares}")
    if record["rows"] and "as given" in record:  # records of before do not have it
        lines.append(f"as given: {described(record['as given'])}.")
    lines += conclusions(record["rows"], record["metric"])
    best, metric = record["best"], record["metric"]
    if best is None:
        lines.append("no trial with settings other than the recipe's came to its end, so there is nothing to choose.")
    elif best["row"] == AS_GIVEN:
        lines.append(
            f"best: the recipe as given ({described(record['as given'])}), {figure(metric, best['mean'])}: no setting "
            "that was tried on other seeds is better."
        )
    elif best["mean"] is None:
        lines.append(f"best: {best['row']} ({described(best['settings'])}); not confirmed on other seeds.")
    else:
        mean = figure(metric, best["mean"])
        others = f"{mean} on other seeds"
        if "choice" not in record:  # of before
            others += ", which chose it among those in the table"
        elif record["choice"]:
            others = f"{figure(metric, best['chose'])} on the seeds that chose it, {mean} on seeds that chose nothing"
        trial = f"{figure(metric, best['chosen with'])} on the seed of its trial"
        lines.append(f"best: {best['row']} ({described(best['settings'])}): {trial}, {others}.")
    if record.get("in common"):
        lines.append(f"all runs: {record['in common']}.")
    if done:
        lines.append(f"The validation images chose among {len(record['trials'])} settings; on others expect less.")
    return lines


def markdown(record: Mapping[str, Any]) -> str:
    """The trials, the confirmed settings, what can be said, and the command that makes it again."""
    metric = record["metric"]
    unit = " in percent" if is_share(metric) else ""
    lines = [
        f"`{record['command']}`: {metric}{unit} on the validation images; {record['sampler']}, stopped early by "
        f"{record['pruner']} after at least {record['min_epochs']} epochs; settings chosen on seed "
        f"{record['seed that chooses']}.",
        "",
        grid(HEAD, (cells_of(trial, metric) for trial in ranked(record))),
        "",
    ]
    choice = record.get("choice")  # records of before do not have it
    tables = {"The seeds that chose:": choice, "Seeds that chose nothing:": record["rows"]}
    for title, rows in tables.items() if choice else {"": record["rows"]}.items():
        if rows:
            lines += [*([title, ""] if title else []), grid(CONFIRMED, (_confirmed(row, record) for row in rows)), ""]
    return "\n".join([*lines, *(f"- {line}" for line in sentences(record))]) + "\n"


def _confirmed(row: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    pair, metric = row["paired"], record["metric"]
    given = record.get("as given") if row["method"] == AS_GIVEN else None
    spread = "" if row["sd"] is None else f" ± {percent(metric, row['sd'])}"
    return [
        row["method"] + (f" ({described(given)})" if given else ""),
        percent(metric, row["mean"]) + spread,
        _ends(row, metric, ""),
        percent(metric, row["best_mean"]),
        "" if pair is None else percent(metric, pair["mean"], "+"),
        "" if pair is None else _ends(pair, metric, "+"),
        f"{row['seconds']:.0f}",
    ]


def _ends(row: Mapping[str, Any], metric: str, sign: str) -> str:
    return "" if row["low"] is None else f"{percent(metric, row['low'], sign)} to {percent(metric, row['high'], sign)}"
