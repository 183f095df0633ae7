"""Figures 2 and 3 of the paper again: what norms leave of a projector's spectrum, and what wider ones decorrelate.

    python benchmarks/projector_figures.py base.yaml --seeds 0 1 2 --out FOLDER

``base.yaml`` is a recipe (data, teacher, student, epochs). Each variant changes only the norms (none, L2, batch norm on
both sides of a linear projector) or the projector (an MLP of hidden width 64, 512, 2048; batch norm), with elementwise
LogSum in all of them, whose gradient ignores the scale that a norm leaves. Runs of a seed start from the same
student and the same W. Each is an ordinary run with a probe at fixed steps; those in the folder that have ended are
not made again. Writes ``figures.json`` and, as a page with plots and tables, ``figures.html``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.checkpoint import save_json
from limbeck.intervals import Interval, interval, paired
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.run import run
from limbeck.records import Record, mapping, number, numbers
from limbeck.report.chart import Chart, Line
from limbeck.report.draw import line_chart
from limbeck.report.page import write_page
from limbeck.report.words import Format

SHARED = {"method": "projector", "feature_loss": "log_sum"}
NORMS = {
    "none": {"student_norm": "none", "teacher_norm": "none"},
    "l2": {"student_norm": "l2", "teacher_norm": "l2"},
    "batch": {},
}
PROJECTORS = {f"mlp{width}": {"projector": "mlp", "projector_hidden": width} for width in (64, 512, 2048)}
STYLES = {"none": "alone", "l2": "kd", "batch": "projector", "mlp64": "kd", "mlp512": "alone", "mlp2048": "teacher"}

MEASURES = {
    "below initial": ("below_initial", 1.0),
    "below a tenth": ("below_tenth", 1.0),
    "stable rank": ("stable_rank", 1.0),
    "effective rank": ("effective_rank", 1.0),
    "participation": ("participation_ratio", 1.0),
    "condition": ("condition", 1.0),
    "norm": ("norm", 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    base = Recipe.from_yaml(args.base)
    found: dict[str, dict[int, list[Record]]] = {}
    top1: dict[str, dict[int, float]] = {}
    for seed in args.seeds:
        for name, changes in {**NORMS, **PROJECTORS}.items():
            folder = args.out / f"{name}-s{seed}"
            if not (folder / "summary.json").is_file():
                run(base.changed({**SHARED, **changes, "seed": seed}), folder)
            lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
            found.setdefault(name, {})[seed] = [line for line in lines if line["kind"] == "probe"]
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            top1.setdefault(name, {})[seed] = 100 * summary["last"]["top1"]
    tables = [
        spectrum_table(found, which, caption)
        for which, caption in (("spectrum", "W as it is"), ("spectrum_normalized", "columns of W at unit norm"))
    ]
    tables.append(decorrelation_table(found, top1))
    result = {
        "base": base.model_dump(
            mode="json", exclude_defaults=True, exclude={"data", "teacher_weights", "cache_folder"}
        ),
        "seeds": args.seeds,
        "tables": [dict(zip(("heads", "rows", "caption"), table, strict=True)) for table in tables],
    }
    save_json(result, args.out / "figures.json")
    view = {
        "kind": "benchmark",
        "layout": "two",
        "notes": [],
        "command": "",
        "title": "Figures 2 and 3 of the paper",
        "headline": f"{base.teacher} to {base.student}, {base.epochs} epochs, seeds {args.seeds}; mean over the seeds.",
        "charts": [chart for chart in charts(found) if chart is not None],
        "tables": tables,
    }
    write_page("charts.html.j2", args.out / "figures.html", view)
    for heads, rows, caption in tables:
        print(f"\n{caption}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def term_of(probe: Record) -> Record:
    return mapping(probe, "terms", "feature")


def written(found: Interval, digits: int) -> str:
    sd = "" if found.sd is None else f" ± {found.sd:.{digits}f}"
    return f"{found.mean:.{digits}f}{sd}"


def difference(values: Mapping[int, float], against: Mapping[int, float], digits: int) -> str:
    found = paired(values, against)
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.mean:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def measured(runs: Mapping[int, Sequence[Record]], at: int, *keys: str) -> dict[int, float]:
    values = {seed: number(term_of(probes[at]), *keys) for seed, probes in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def spectrum_table(
    found: Mapping[str, Mapping[int, Sequence[Record]]], which: str, caption: str
) -> tuple[list[str], list[list[str]], str]:
    """Every measure of a spectrum at the end, by norm, and in pairs against batch norm."""
    rows: list[list[str]] = []
    for title, (key, scale) in MEASURES.items():
        ends = {name: measured(found[name], -1, which, key) for name in NORMS}
        first = measured(found["batch"], 0, which, key)
        size = max(abs(value) for values in ends.values() for value in values.values())
        digits = 2 if size * scale < 10 else 1
        row = [title, written(interval(list(first.values())), digits)]
        row += [written(interval(list(ends[name].values())), digits) for name in NORMS]
        row += [difference(ends["batch"], ends[name], digits) for name in ("none", "l2")]
        rows.append(row)
    heads = ["at the end", "init", *NORMS, "batch - none, paired (95%)", "batch - l2"]
    return heads, rows, f"Figure 2: {caption}"


def decorrelation_table(
    found: Mapping[str, Mapping[int, Sequence[Record]]], top1: Mapping[str, Mapping[int, float]]
) -> tuple[list[str], list[list[str]], str]:
    """Input-output correlation and redundancy at the end, by projector, in pairs against the linear one."""
    rows: list[list[str]] = []
    linear = measured(found["batch"], -1, "decorrelation", "input_output")
    for name in ("batch", *PROJECTORS):
        values = measured(found[name], -1, "decorrelation", "input_output")
        rows.append(
            [
                "linear" if name == "batch" else name,
                written(interval(list(values.values())), 3),
                "" if name == "batch" else difference(values, linear, 3),
                *(
                    written(interval(list(measured(found[name], -1, *keys).values())), 3)
                    for keys in (("decorrelation", "student"), ("decorrelation", "projected"), ("fit", "cka_before"))
                ),
                written(interval(list(top1[name].values())), 2),
                "" if name == "batch" else difference(top1[name], top1["batch"], 2),
            ]
        )
    heads = ["projector", "input-output", "minus linear (95%)", "student's channels", "projected", "CKA", "top-1, %"]
    return [*heads, "minus linear (95%)"], rows, "Figure 3: mean absolute correlation of input and output, at the end"


def charts(found: Mapping[str, Mapping[int, Sequence[Record]]]) -> list[Chart | None]:
    """The two figures: spectra at the end, and correlation over the steps."""
    spectra: list[Chart | None] = []
    for which, title in (("spectrum", "W as it is"), ("spectrum_normalized", "columns at unit norm")):
        lines = [Line(name, STYLES[name], curve(found[name], which, -1)) for name in NORMS]
        lines.append(Line("init", "teacher", curve(found["batch"], which, 0), dashed=True))
        spectra.append(
            line_chart(
                f"Figure 2, {title}", lines, x_title="index of the singular value", fmt=Format(digits=2), log=True,
                note="Singular values at the end of training, log scale, mean over the seeds.",
            )
        )  # fmt: skip
    names = ("batch", *PROJECTORS)
    lines = [Line("linear" if n == "batch" else n, STYLES[n], over_steps(found[n])) for n in names]
    third = line_chart(
        "Figure 3", lines, x_title="step", fmt=Format(digits=2),
        note="Mean absolute correlation of the projector's input with its output, mean over the seeds.",
    )  # fmt: skip
    return [*spectra, third]


def curve(runs: Mapping[int, Sequence[Record]], which: str, at: int) -> list[tuple[float, float]]:
    columns = [numbers(term_of(probes[at]), which, "values") for probes in runs.values()]
    places = numbers(term_of(next(iter(runs.values()))[at]), which, "index")
    means = [sum(values) / len(values) for values in zip(*columns, strict=True)]
    return list(zip(places, means, strict=True))


def over_steps(runs: Mapping[int, Sequence[Record]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for looks in zip(*runs.values(), strict=True):
        values: list[Any] = [number(term_of(probe), "decorrelation", "input_output") for probe in looks]
        if None not in values:
            found.append((float(looks[0]["step"]), sum(values) / len(values)))
    return found


if __name__ == "__main__":
    main()
