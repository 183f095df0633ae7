"""Write docs/results.md from the records in docs/results/: no table or difference in it is typed by hand.

``python benchmarks/make_results.py`` writes the page, ``--check`` only says whether it is up to date.
``--judge`` first judges the claims of all tables again by today's rule, and says which verdicts change.

The prose is docs/results/template.md, a Jinja template. What stands in double braces in it is one of the functions of
`Page`, each of which reads a record: a JSON file that a benchmark, ``limbeck compare``, ``reproduce`` or ``sweep``
wrote. Figures whose runs are not kept are in docs/results/noted.json, as they were noted then. Tables of ``limbeck
reproduce`` are all those in docs/results/tables/, sweeps those in docs/results/sweeps/.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from limbeck.errors import UserError
from limbeck.report.intervals import Interval, interval, paired
from limbeck.studies import sweep_text, table_text
from limbeck.studies.reproduce import TUNING_SEED
from limbeck.studies.table_text import grid, spread
from limbeck.studies.verdicts import judge_again

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
NOTE = "<!-- Made by benchmarks/make_results.py: change docs/results/template.md or the records, not this page. -->\n\n"

Cells = Sequence[str]


def ends(found: Interval | None, sign: str = "", digits: int = 1) -> str:
    """The ends of an interval."""
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.low:{sign}.{digits}f} to {found.high:{sign}.{digits}f}"


class Page:
    """The functions of the template, each of which makes text from records.

    Args:
        folder: Of the records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Any] = {}

    def record(self, name: str) -> Any:
        """A record as it is."""
        if name not in self._read:
            self._read[name] = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        return self._read[name]

    def values(self, file: str, run: str) -> dict[int, float]:
        """Top-1 in percent of the last epoch, by seed, of the runs ``run-sN`` or of ``run`` alone.

        The seed that chooses weights does not count where there are others.
        """
        found: dict[int, float] = {}
        for record in self.record(file):
            if re.fullmatch(rf"{re.escape(run)}(-s\d+)?", record["run"]) and "last" in record:
                found[int(record["seed"])] = 100 * record["last"]["top1"]
        if not found:
            raise UserError(f"{file}.json has no run {run}")
        return {seed: value for seed, value in found.items() if seed != TUNING_SEED} or found

    def top(self, file: str, run: str) -> str:
        """Top-1 of a run, of several seeds with the standard deviation."""
        return spread(interval(list(self.values(file, run).values())))

    def best(self, file: str, run: str) -> str:
        """Mean of the best epochs."""
        seeds = self.values(file, run)
        named = [record for record in self.record(file) if re.fullmatch(rf"{re.escape(run)}-s\d+", record["run"])]
        return f"{interval([100 * each['best']['top1'] for each in named if each['seed'] in seeds]).mean:.2f}"

    def difference(self, file: str, run: str, against: str) -> Interval:
        """One run minus another, seed by seed."""
        found = paired(self.values(file, run), self.values(file, against))
        if found is None:
            raise UserError(f"{file}.json: {run} and {against} share no seed")
        return found

    def minus(self, file: str, run: str, against: str) -> str:
        """That difference in words."""
        found = self.difference(file, run, against)
        return f"{found.mean:+.2f} (95% {ends(found, '+', 2)}, {found.n} seeds)"

    def plus(self, file: str, run: str, against: str) -> str:
        """That difference, without its interval."""
        return f"{self.difference(file, run, against).mean:+.2f}"

    def methods(
        self, file: str, rows: Sequence[Sequence[str]], against: str, *, weights: bool = True, best: bool = True
    ) -> str:
        """Rows of a label, a weight and the run's name; each minus ``against``."""
        head = ["method", *(["weight"] if weights else []), "last, mean ± sd", "95% of the mean"]
        head += [
            *(["best"] if best else []),
            f"minus {against.rsplit('/', maxsplit=1)[-1].rsplit('-', maxsplit=1)[-1]}, paired",
            "95%",
        ]
        lines: list[Cells] = []
        for label, weight, run in rows:
            values = self.values(file, run)
            if len(values) == 1:
                only = f"{next(iter(values.values())):.2f} (seed {next(iter(values))} only)"
                lines.append([label, *([weight] if weights else []), only, "", *([""] if best else []), "", ""])
                continue
            found = interval(list(values.values()))
            pair = None if run == against else self.difference(file, run, against)
            lines.append(
                [
                    label,
                    *([weight] if weights else []),
                    spread(found),
                    ends(found),
                    *([self.best(file, run)] if best else []),
                    "" if pair is None else f"{pair.mean:+.2f}",
                    ends(pair, "+"),
                ]
            )
        return grid(head, lines)

    def versus(
        self, file: str, rows: Sequence[Sequence[str]], against: Mapping[str, str], costs: Mapping[str, str]
    ) -> str:
        """Rows of label, weight and run, the best first, each minus some others, with what a step of it costs."""
        head = ["method", "weight", "last, mean ± sd", "95% of the mean"]
        head += [*(f"minus {name}, paired (95%)" for name in against), "step / alone"]
        lines: list[tuple[float, Cells]] = []
        for label, weight, run in rows:
            found = interval(list(self.values(file, run).values()))
            pairs = [None if run == each else self.difference(file, run, each) for each in against.values()]
            words = ["" if pair is None else f"{pair.mean:+.2f} ({ends(pair, '+')})" for pair in pairs]
            lines.append((-found.mean, [label, weight, spread(found), ends(found), *words, costs[label]]))
        return grid(head, [cells for _, cells in sorted(lines, key=lambda line: line[0])])

    def weights(self, file: str, columns: Mapping[str, str], weights: Sequence[float]) -> str:
        """Top-1 by weight; columns are names of runs with ``{}`` for the weight. The best of each is bold."""
        values: dict[str, dict[float, float]] = {}
        for label, run in columns.items():
            for weight in weights:
                try:
                    values.setdefault(label, {})[weight] = next(
                        iter(self.values(file, run.format(f"{weight:g}")).values())
                    )
                except UserError:
                    continue
        rows: list[Cells] = []
        for weight in weights:
            cells = [f"{weight:g}"]
            for column in values.values():
                shown = f"{column[weight]:.2f}" if weight in column else "not run"
                cells.append(f"**{shown}**" if weight in column and column[weight] == max(column.values()) else shown)
            rows.append(cells)
        return grid(["weight", *columns], rows)

    def tried(self, file: str, rows: Sequence[Sequence[str]], seed: int) -> str:
        """Rows of a label and the beginning of the names of its runs with a seed, ``BEGINNING-WEIGHT-sSEED``."""
        lines: list[Cells] = []
        for label, beginning in rows:
            found: dict[float, float] = {}
            for record in self.record(file):
                if match := re.fullmatch(rf"{re.escape(beginning)}-([\d.]+)-s{seed}", record["run"]):
                    found[float(match[1])] = 100 * record["last"]["top1"]
            lines.append([label, ", ".join(f"{weight:g}: {found[weight]:.2f}" for weight in sorted(found))])
        return grid(["method", "weight: top-1"], lines)

    def compared(self, file: str) -> str:
        """The rows of ``comparison.json``."""
        lines: list[Cells] = []
        for row in self.record(file)["rows"]:
            found = _scaled(row)
            pair = None if row["paired"] is None else _scaled(row["paired"])
            more = "" if pair is None else f"{pair.mean:+.2f}"
            best = f"{100 * row['best_mean']:.2f}"
            lines.append(
                [row["method"], spread(found), ends(found), best, more, ends(pair, "+"), f"{row['seconds']:.0f}"]
            )
        head = ["method", "last, mean ± sd", "95% of the mean", "best", "minus alone, paired", "95%", "s a run"]
        return grid(head, lines)

    def from_comparison(self, file: str, method: str, key: str = "mean") -> str:
        """A figure of a comparison in percent: ``mean``, or ``paired`` for the difference."""
        row = next(row for row in self.record(file)["rows"] if row["method"] == method)
        return f"{100 * row['paired']['mean']:+.2f}" if key == "paired" else f"{100 * row[key]:.2f}"

    def costs(self, file: str, forms: Sequence[str]) -> str:
        """Milliseconds and MB of each form at each shape."""
        found = self.record(file)["results"]
        shapes = list(dict.fromkeys((each["n"], each["d_s"], each["d_t"]) for each in found))
        at = {(each["form"], (each["n"], each["d_s"], each["d_t"])): each for each in found}
        rows: list[Cells] = []
        for form in forms:
            cells = [at.get((form, shape)) for shape in shapes]
            rows.append([form, *("" if c is None else f"{c['ms']:.4g} ms, {c['mb']:.0f} MB" for c in cells)])
        return grid(["form", *(f"{n:,}, {d_s} to {d_t}" for n, d_s, d_t in shapes)], rows)

    def table(self, file: str, index: int) -> str:
        """A table that a record holds as text."""
        found = self.record(file)["tables"][index]
        return grid(found["heads"], found["rows"])

    def faults(self, file: str) -> str:
        """The runs with a fault, their verdict, and what it saw."""
        found = {name: each for name, each in self.record(file).items() if each["expected"]}
        rows = [[name, ", ".join(each["verdicts"]), " ".join(each["seen"])] for name, each in found.items()]
        return grid(["fault", "verdict", "what it says it saw"], rows)

    def healthy(self, file: str) -> str:
        """The names of the runs without a fault."""
        found = [name for name, each in self.record(file).items() if name.startswith("healthy, ")]
        told = [name for name in found if self.record(file)[name]["verdicts"]]
        if told:
            raise UserError(f"{file}.json: {told[0]} has a verdict")
        return ", ".join(name.removeprefix("healthy, ") for name in found)

    def inputs(self, file: str) -> str:
        """What reaches the first layer of each network, by what was wrong."""
        networks = list(self.record(file).values())
        names = ["WRN", "ResNet8"]
        head = [""]
        for name in names:
            swapped = "shift, red and blue exchanged" if name == names[0] else "exchanged"
            head += [f"{name}: top-1 %", "shift", "scale", swapped, "told"]
        rows: list[Cells] = []
        for kind in networks[0]:
            if "top1" not in networks[0][kind]:  # the range of many draws
                continue
            cells = [kind]
            for found in (network[kind] for network in networks):
                cells += [f"{100 * found['top1']:.0f}", f"{found['shift']:.3g}", f"{found['scale']:.3g}"]
                cells += [f"{found['swapped']:.2g}", "yes" if found["told"] else "no"]
            rows.append(cells)
        return grid(head, rows)

    def reproduced(self, *names: str) -> str:
        """The tables of ``limbeck reproduce`` in ``tables`` with these names; by default all of accuracies."""
        found = {path.stem: _json(path) for path in sorted((self.folder / "tables").glob("*.json"))}
        chosen = names or [name for name, record in found.items() if table_text.unit_of(record) == "top-1 in percent"]
        return "\n".join(table_text.markdown(found[name]) for name in chosen)

    def untitled(self, file: str) -> str:
        """A table of ``limbeck reproduce`` from a file of its own, without its heading."""
        return table_text.markdown(self.record(file)).partition("\n\n")[2]

    def command(self, file: str) -> str:
        """What made a record."""
        return f"`{self.record(file)['command']}`"

    def against(self, file: str, row: str, other: str) -> str:
        """A row of one table of ``limbeck reproduce`` against every row of another one, seed by seed."""

        def seeds(each: Mapping[str, Any]) -> dict[int, float]:
            return {int(seed): value for seed, value in each["by seed"].items()}

        ours = {each["pair"]: seeds(each) for each in self.record(file)["rows"] if each["row"] == row}
        lines: list[Cells] = []
        for each in self.record(other)["rows"]:
            found = paired(ours[each["pair"]], seeds(each))
            if found is None:
                raise UserError(f"{file}.json and {other}.json share no seed of {each['pair']}")
            mean = spread(Interval(**each["last"]))
            lines.append([each["pair"], each["row"], mean, f"{found.mean:+.2f}", ends(found, "+", 2)])
        return grid(["pair", "row", "last, mean ± sd", f"{row} minus it, paired", "95%"], lines)

    def detectors(self, file: str) -> str:
        """The steps of benchmarks/detectors.py: times the student alone with quartiles, and MiB."""
        lines: list[Cells] = []
        for pair, steps in self.record(file)["pairs"].items():
            floor = steps["student alone"]
            line = [pair.removeprefix("coco-fasterrcnn-"), f"{floor['seconds']:.1f} s, {floor['mib']:,} MiB"]
            for name in ("by hand", "Limbeck, direct", "Limbeck, moments"):
                low, middle, high = steps[name]["ratio"]
                line.append(f"{middle:.2f} ({low:.2f} to {high:.2f}), {steps[name]['mib']:,} MiB")
            lines.append(line)
        return grid(["pair", "student alone", "a projector by hand", "Limbeck, direct form", "moments"], lines)

    def of_sweep(self, name: str, *keys: str) -> str:
        """A share that a sweep's record has below some keys, in percent."""
        value: Any = _json(self.folder / "sweeps" / f"{name}.json")
        for key in keys:
            value = value[key]
        return f"{100 * value:.2f}"

    def swept(self, name: str) -> str:
        """A sweep in the folder ``sweeps``."""
        return sweep_text.markdown(_json(self.folder / "sweeps" / f"{name}.json")).rstrip("\n")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _scaled(row: Mapping[str, Any]) -> Interval:
    values = {name: None if row[name] is None else 100 * row[name] for name in ("mean", "sd", "low", "high")}
    return Interval(n=row["n"], **values)


def render(folder: Path = RECORDS) -> str:
    """The page, from the template and the records of a folder."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    page = Page(folder)
    names = [name for name in vars(Page) if not name.startswith("_") and name != "record"]
    text = (folder / "template.md").read_text(encoding="utf-8")
    functions = {name: getattr(page, name) for name in names}
    return NOTE + environment.from_string(text).render(noted=page.record("noted"), **functions)


def judge_tables(folder: Path = RECORDS) -> None:
    """Write the verdicts of today's rule into the records of tables, and say which change."""
    for path in sorted([*(folder / "tables").glob("*.json"), *(folder / "longer").glob("*.json")]):
        before, after = _json(path), judge_again(_json(path))
        for old, new in zip(before["claims"], after["claims"], strict=True):
            if old != new:
                print(f"{path.name}, was {old['verdict']}; {table_text.verdict_line(new)}")
        if before != after:
            path.write_text(json.dumps(after, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the page, or say that it is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page differs")
    parser.add_argument(
        "--judge", action="store_true", help="judge the claims of all tables again, then write the page"
    )
    args = parser.parse_args()
    if args.judge:
        judge_tables()
    text = render()
    if args.check:
        if PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit(
                f"{PAGE.relative_to(ROOT)} is not what its records give: python benchmarks/make_results.py"
            )
        return
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
