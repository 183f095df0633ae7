"""Many methods and seeds from one teacher: students trained side by side, the teacher run once a batch for all of them.

``python benchmarks/methods.py PLAN.yaml --seeds 0 1 2 --out results.json``

A plan has two parts: ``base``, the settings that all runs share, and ``runs``, a name and its changes for each:

    base: {data: FOLDER, teacher: cifar/wrn_16_2, teacher_weights: RUN, student: cifar/resnet8, epochs: 10, ...}
    runs:
      alone: {method: alone}
      kd-16: {method: kd, logit_weight: 16}

Settings and their defaults are a recipe's, so whatever method a recipe knows can be in a plan; of a run with method
alone the teacher's settings are dropped. Runs that differ in nothing but the student, what teaches it and how it is
optimised see the same batches in the same order and form a group, which shares the images, their augmentation and the
teacher's pass. All else is each student's own: weights, optimizer, schedule, random numbers. A student is the one that
``limbeck distill`` (``limbeck train`` for alone) gives with the same settings, to the byte in float32 on one thread of
a CPU: so it was for digits (tests/benchmarks/test_methods.py) and, over two epochs of 1,280 images, for both students
of docs/results.md.

Of a run's step the record has its own milliseconds and those of the teacher's pass, which a run alone would have too.

A run is scored after its last epoch and, for its best epoch, after each ``--every``-th before that. The seconds of a
run are its own and its share of what the group does once. Finished groups are written to the file at once and skipped
by the next start; what is unfinished begins again. A student whose loss is not finite leaves the group and is reported
as failed.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import platform
import subprocess
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from limbeck.assembly.build import build_data, build_optimizer, build_parts, build_rate
from limbeck.assembly.teacher import build_teacher
from limbeck.data import Data
from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.features.taps import Captured, Taps
from limbeck.models import InputTransform, Model
from limbeck.recipes.recipe import GROUPS, Recipe
from limbeck.recipes.validation import TEACHER_SETTINGS
from limbeck.report.intervals import Interval, interval, paired
from limbeck.runs.run import device_of, train_teacher
from limbeck.runs.summary import count_parameters
from limbeck.storage.files import save_text, save_weights
from limbeck.tasks import Classification
from limbeck.training.evaluation import evaluate, to_device, validate
from limbeck.training.fit import set_rate
from limbeck.training.optim import check_finite, check_gradients, check_optimizer
from limbeck.training.precision import PRECISIONS, Arithmetic, apply_arithmetic

SHARED = (*GROUPS["data"], "teacher_size", "epochs", "batch_size", "seed", "precision", "memory_format", "device")
"""Settings in which the runs of a group agree."""
ONE_TEACHER = ("teacher", "teacher_weights", "teacher_epochs", "fit_teacher")
"""Settings in which those of them agree that have a teacher."""
PLACES = ("name", "data", "val", "teacher_weights", "student_weights", "workers", "device")
"""Settings that say where things are on one machine, which are not part of a result."""
SAY_EVERY = 60.0  # seconds between two lines of progress

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One student to train: the name of its row, and its recipe."""

    name: str
    recipe: Recipe

    def settings(self) -> dict[str, Any]:
        """What is not at its default, without the places."""
        mine = self.recipe.model_dump(mode="json", exclude_defaults=True)
        return {name: value for name, value in mine.items() if name not in PLACES}


def read_plan(path: Path, *, seeds: Sequence[int], only: Iterable[str] = ()) -> list[Run]:
    """The runs of a plan, seed by seed, so that a stopped comparison still has pairs to compare.

    Raises:
        UserError: It is no plan, or a setting is wrong.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(plan, dict) or set(plan) != {"base", "runs"}:
        raise UserError(f"{path}: expected a mapping with base and runs")
    for name, changes in {"base": plan["base"], **plan["runs"]}.items():
        if not isinstance(changes, dict):
            raise UserError(f"{path}: {name}: expected settings and their values, got {changes!r}")
    chosen = list(only) or list(plan["runs"])
    if missing := [name for name in chosen if name not in plan["runs"]]:
        raise UserError(f"{path}: has no run {', '.join(missing)}; there are {', '.join(plan['runs'])}")
    return [Run(name, _recipe({**plan["base"], **plan["runs"][name], "seed": s})) for s in seeds for name in chosen]


def _recipe(settings: Mapping[str, Any]) -> Recipe:
    dropped = (*TEACHER_SETTINGS, "fit_teacher") if settings.get("method") == "alone" else ()
    recipe = Recipe(**{name: value for name, value in settings.items() if name not in dropped})
    for name in ("precision", "memory_format"):
        if getattr(recipe, name) == "auto":
            raise UserError(f"{name}: students that share a teacher's pass need the same; expected one, got auto")
    if recipe.accumulate > 1 or recipe.ema is not None or recipe.precision == "fp16":
        raise UserError("accumulate, ema and precision fp16 are not known here; use `limbeck distill`")
    return recipe


def groups(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs that can be trained side by side, in the order of their first ones."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps([run.recipe.model_dump(mode="json")[name] for name in SHARED]), []).append(run)
    for group in found.values():
        taught = [run.recipe for run in group if run.recipe.teacher is not None]
        for name in ONE_TEACHER:
            if len({getattr(recipe, name) for recipe in taught}) > 1:
                raise UserError(f"{name}: expected the same for all runs with a teacher")
    return list(found.values())


class Lane:
    """One student on its way: what `limbeck.training.fit.fit` keeps for it, and the state of its own random numbers."""

    def __init__(self, run: Run, data: Data, teacher: Model | None, device: torch.device) -> None:
        recipe = run.recipe
        self.run = run
        self.device = device
        self.parts = build_parts(recipe, data, teacher if recipe.teacher is not None else None)
        self.distiller: Distiller = self.parts.distiller.to(device)
        apply_arithmetic(self.distiller, Arithmetic(recipe.precision, recipe.memory_format, False, ""), device)
        self.optimizer = build_optimizer(recipe, self.distiller)
        check_optimizer(self.distiller, self.optimizer)
        self.rate = build_rate(recipe)
        self.steps = 0
        self.seconds = 0.0
        self.step_seconds = 0.0
        self.last: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.failed: str | None = None
        torch.manual_seed(recipe.seed)
        self._random = _random_state(device)

    @contextlib.contextmanager
    def working(self, shared_seconds: float = 0.0) -> Generator[None, None, None]:
        """Add up the seconds of the lane's work; where it cannot go on, that is noted and the others still do."""
        started = time.perf_counter()
        try:
            yield
        except UserError as error:
            self.failed = str(error)
            say(f"{self.run.name}, seed {self.run.recipe.seed}: failed: {error}")
        self.seconds += shared_seconds + time.perf_counter() - started

    def step(self, batch: Any, teacher: Captured | None, done: float) -> None:
        """One step of the optimizer, as in `limbeck.training.fit.fit`."""
        began = time.perf_counter()
        recipe, distiller = self.run.recipe, self.distiller
        _set_random_state(self._random, self.device)
        distiller.progress = done / recipe.epochs
        set_rate(self.optimizer, self.rate(done))
        with autocast(recipe, self.device):
            student = distiller.capture_student(batch)
            task_loss = distiller.task.loss(student.output, batch)
            result = distiller.compare(student, teacher if distiller.terms else None, task_loss)
        if not math.isfinite(float(result.loss.detach())):
            parts = ", ".join(f"{name} {float(part):g}" for name, part in result.parts.items())
            raise UserError(f"the loss is not finite at step {self.steps + 1} ({parts})")
        result.loss.backward()
        if self.steps == 0:
            check_gradients(distiller)
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(distiller.trainable_parameters().values(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.step_seconds += time.perf_counter() - began
        self._random = _random_state(self.device)

    def end_epoch(self, epoch: int, val_loader: Iterable[Any] | None) -> None:
        """Check the weights and, where a loader is given, score the student; `epoch` counts from 1."""
        check_finite(self.distiller)
        if val_loader is None:
            return
        self.last = validate(self.distiller, self.distiller.student, val_loader, self.device)
        if not self.best or _rank(self.last) > _rank(self.best):
            self.best = {"epoch": epoch, **self.last}

    def record(
        self, data: Data, teacher: Mapping[str, Any] | None, teacher_ms: float, commit: str | None, every: int
    ) -> Record:
        """The run's entry in the results."""
        recipe, distiller = self.run.recipe, self.distiller
        taught = recipe.teacher is not None
        found = {"failed": self.failed} if self.failed else {"last": self.last, "best": self.best}
        return {
            "run": f"{self.run.name}-s{recipe.seed}",
            "student": recipe.student,
            "method": recipe.method,
            "feature_loss": recipe.feature_loss if recipe.uses_features else None,
            "alpha": recipe.alpha if recipe.uses_features else None,
            "weights": distiller.current_weights(),
            "seed": recipe.seed,
            **found,
            "scored_every": every,
            "seconds": round(self.seconds, 1),
            "step_ms": round(1000 * self.step_seconds / max(self.steps, 1), 2),
            "teacher_ms": round(teacher_ms, 2) if taught else 0.0,
            "settings": self.run.settings(),
            "parameters": {
                "student": count_parameters(self.parts.student.module),
                "terms": count_parameters(distiller.term_modules),
            },
            "teacher": dict(teacher) if taught and teacher is not None else None,
            "data": {
                "name": data.name,
                "train": data.train_count,
                "val": data.val_count,
                "fingerprint": data.fingerprint,
            },
            "device": describe(self.device),
            "torch": torch.__version__,
            "commit": commit,
        }


class SharedTeacher:
    """One pass of the teacher a batch, tapped at all that the students' terms read; taps change no number."""

    def __init__(self, teacher: Model, lanes: Sequence[Lane]) -> None:
        taught = [lane for lane in lanes if lane.distiller.terms]
        names = [tap for lane in taught for term in lane.distiller.terms.values() for tap in term.teacher_taps]
        self._taps = Taps(teacher.module, names)
        self._task = taught[0].distiller.task
        self._recipe = taught[0].run.recipe
        self._device = taught[0].device

    def __call__(self, batch: Any) -> Captured:
        """What the teacher computes on a batch, with the batch's labels and numbers."""
        with torch.no_grad(), autocast(self._recipe, self._device):
            captured = self._taps(self._task.teacher_input(batch))
        return captured._replace(target=self._task.target(batch), index=self._task.index(batch))


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The recipe's number format."""
    dtype = PRECISIONS[recipe.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def train(group: Sequence[Run], folder: Path, *, every: int, keep: bool = False) -> list[Record]:
    """Train the runs of a group side by side.

    Args:
        group: Runs that agree in ``SHARED``.
        folder: Where a teacher is trained if none is named, and where weights are kept.
        every: Epochs between two scores; the last one is always scored.
        keep: Keep each student's and its terms' weights there, in ``RUN-sSEED/``.
    """
    first = group[0].recipe
    device, data = device_of(first), build_data(first)
    # One that reads logits speaks for all: its teacher needs a head that fits.
    recipes = sorted((run.recipe for run in group if run.recipe.teacher), key=lambda recipe: not recipe.uses_logits)
    taught = recipes[0] if recipes else None
    teacher = build_teacher(taught, data, folder / "run", train_teacher, say) if taught is not None else None
    lanes = [Lane(run, data, teacher, device) for run in group]
    shared = SharedTeacher(teacher, lanes) if teacher is not None else None
    train_loader = data.train_loader(batch_size=first.batch_size, seed=first.seed)
    val_loader = data.val_loader(batch_size=first.batch_size) if data.val_count else None
    scores: dict[str, Any] | None = None
    if teacher is not None and taught is not None:
        scores = {"model": taught.teacher, **(_teacher_scores(teacher, val_loader, device) if taught.labels else {})}
    commit = _commit()
    teacher_seconds = 0.0
    progress = Progress(len(lanes), first.epochs * len(train_loader), first.batch_size)
    for epoch in range(first.epochs):
        train_loader.set_epoch(epoch)
        for lane in lanes:
            lane.distiller.train()
        began = time.perf_counter()
        for index, batch in enumerate(train_loader):
            running = [lane for lane in lanes if lane.failed is None]
            moved = to_device(batch, device)
            before = time.perf_counter()
            captured = shared(moved) if shared is not None else None
            teacher_seconds += time.perf_counter() - before
            once = (time.perf_counter() - began) / max(len(running), 1)
            for lane in running:
                with lane.working(once):
                    lane.step(moved, captured, epoch + index / len(train_loader))
            progress.step(epoch + 1, first.epochs)
            began = time.perf_counter()
        due = (first.epochs - epoch - 1) % every == 0
        for lane in [lane for lane in lanes if lane.failed is None]:
            with lane.working():
                lane.end_epoch(epoch + 1, val_loader if due else None)
    if keep:
        for lane in lanes:
            place = folder / f"{lane.run.name}-s{lane.run.recipe.seed}"
            save_weights(lane.distiller.student.state_dict(), place / "student.safetensors")
            if len(lane.distiller.term_modules) > 0:
                save_weights(lane.distiller.term_modules.state_dict(), place / "terms.safetensors")
    teacher_ms = 1000 * teacher_seconds / (first.epochs * len(train_loader))
    return [lane.record(data, scores, teacher_ms, commit, every) for lane in lanes]


def _teacher_scores(teacher: Model, loader: Iterable[Any] | None, device: torch.device) -> dict[str, float]:
    """The teacher's own figures; empty without labels."""
    task = Classification(student_input=InputTransform(teacher.input))
    return evaluate(teacher.module, task, loader, device) if loader is not None else {}


class Progress:
    """One line a minute: how fast, and how long still."""

    def __init__(self, students: int, steps: int, batch_size: int) -> None:
        self._students = students
        self._steps = steps
        self._images = batch_size * students
        self._done = 0
        self._started = self._said = time.perf_counter()

    def step(self, epoch: int, epochs: int) -> None:
        """A batch is done by all."""
        self._done += 1
        now = time.perf_counter()
        if now - self._said < SAY_EVERY and self._done < self._steps:
            return
        self._said = now
        speed = self._done / (now - self._started)
        left = (self._steps - self._done) / speed / 60
        say(
            f"epoch {epoch}/{epochs}, {self._students} students: {speed * self._images:.0f} images/s over all, "
            f"{left:.0f} min left of this group"
        )


def run_plan(runs: Sequence[Run], out: Path, *, every: int, keep: bool = False) -> list[Record]:
    """Train what is not in the file yet, and write it after each group.

    Raises:
        UserError: The file holds a run of the same name and seed with other settings.
    """
    records: list[Record] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    known = {record["run"]: record for record in records}
    wanted: list[Run] = []
    for run in runs:
        record = known.get(f"{run.name}-s{run.recipe.seed}")
        if record is None:
            wanted.append(run)
        elif record["settings"] != run.settings():
            raise UserError(f"{out}: holds {record['run']} with other settings; give the run another name")
    planned = groups(wanted)
    for number, group in enumerate(planned, start=1):
        names = ", ".join(f"{run.name}-s{run.recipe.seed}" for run in group)
        say(f"[{number}/{len(planned)}] {names}")
        records += train(group, out.parent, every=every, keep=keep)
        save_text(json.dumps(records, indent=1) + "\n", out)
    return records


def _rank(figures: Mapping[str, float]) -> float:
    return figures["top1"] if "top1" in figures else -figures["loss"]


def table(records: Sequence[Record], against: str) -> str:
    """The runs as a Markdown table: the last epoch's top-1 (or loss) over seeds, and paired differences.

    Args:
        records: The results.
        against: Name of the run that the others are compared with, seed by seed.
    """
    found: dict[str, dict[int, float]] = {}
    scale = 100.0 if all("top1" in record["last"] for record in records if "last" in record) else 1.0
    for record in records:
        if "last" in record:
            value = record["last"]["top1"] if "top1" in record["last"] else record["last"]["loss"]
            found.setdefault(record["run"].rsplit("-s", 1)[0], {})[record["seed"]] = scale * value
    head = ["run", "seeds", "last, mean ± sd", "95% of the mean", f"minus {against}, paired", "95%"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, values in found.items():
        own = interval(list(values.values()))
        pair = paired(values, found[against]) if against in found and name != against else None
        spread = f" ± {own.sd:.2f}" if own.sd is not None else ""
        cells = [name, str(own.n), f"{own.mean:.2f}{spread}", _ends(own, "")]
        cells += [f"{pair.mean:+.2f}", _ends(pair, "+")] if pair is not None else ["", ""]
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


def _ends(of: Interval, sign: str) -> str:
    return f"{of.low:{sign}.1f} to {of.high:{sign}.1f}" if of.low is not None and of.high is not None else ""


def describe(device: torch.device) -> str:
    """The device's name, and of a CPU its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def say(line: str) -> None:
    """One line, at once, also into a file."""
    print(line, flush=True)


def _commit() -> str | None:
    here = Path(__file__).parent
    got = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return got.stdout.strip() or None


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def main() -> None:
    """Read the plan, train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[], help="these runs of the plan")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", default="alone", help="the run that the table compares the others with")
    parser.add_argument("--every", type=int, default=2, help="epochs between two scores")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the weights beside the file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        runs = read_plan(args.plan, seeds=args.seeds, only=args.only)
        records = run_plan(runs, args.out, every=args.every, keep=args.keep)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    names = {f"{run.name}-s{run.recipe.seed}" for run in runs}
    say(table([record for record in records if record["run"] in names], args.against))


if __name__ == "__main__":
    main()
