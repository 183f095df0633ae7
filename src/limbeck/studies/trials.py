"""The trials of a sweep, kept by optuna in one file: who draws settings, who has begun what, who is stopped early."""

import contextlib
import importlib.util
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from filelock import FileLock

from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.studies.search_space import Axis, Choices, Settings, Value, changed, combinations

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "halving", "none"]

STUDY_FILE = "study.jsonl"
PASSED_OVER = "passed over"  # attribute of a trial that was not trained: it contradicts itself, or was drawn before
FAILED = "failed"  # attribute of a trial whose run ended with an error, which it holds
DRAWS = 200  # settings that may be passed over before a new one is found
FIRST = 10  # trials of tpe that are drawn by chance, as in optuna
COMPLETE = 5  # finished trials before median stops one, as in optuna
REDUCTION = 3  # halving lets a third go on at each rung


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        recipe: What all runs share; its seed is the one on which settings are chosen.
        space: What differs.
        sampler: Who draws the settings: tpe goes where it was good, random does not, grid takes all combinations.
        pruner: Who stops trials early: median below the median of the others at the same epoch, halving unless among
            the best third at an epoch, none never.
        min_epochs: Epochs that every trial gets.
        trials: How many settings are tried.
        confirm: How many of the best are trained again with other seeds.
        seeds: How many other seeds; if several settings are trained with them, the best gets as many further ones.
    """

    recipe: Recipe
    space: tuple[Axis, ...]
    sampler: Sampler
    pruner: Pruner
    min_epochs: int
    trials: int
    confirm: int
    seeds: int

    @property
    def choosing(self) -> range:
        """Seeds on which the best settings are compared with the recipe as it was given."""
        return range(self.recipe.seed + 1, self.recipe.seed + 1 + self.seeds)

    @property
    def confirming(self) -> range:
        """Seeds for the best of several alone; of one there is nothing to choose, and those above confirm it."""
        return range(self.choosing.stop, self.choosing.stop + (self.seeds if self.confirm > 1 else 0))

    def record(self) -> dict[str, Any]:
        """What decides the trials, as JSON."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "space": [str(axis) for axis in self.space],
            "sampler": self.sampler,
            "pruner": self.pruner,
            "min_epochs": self.min_epochs,
        }


def require_optuna() -> None:
    """Stop before anything is done where optuna is missing.

    Raises:
        UserError: It is; the message has the command that installs it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError('a sweep needs optuna, which is not installed; pip install "limbeck[sweep]"')


def trial_name(number: int, seed: int) -> str:
    """The run folder of a trial, or of the same settings with another seed."""
    return f"trial-{number:03d}-seed{seed}"


@final
class Trials:
    """The trials of a sweep folder, which several processes may work at.

    Args:
        plan: The sweep.
        folder: Its folder, which is there.

    Raises:
        UserError: If the file of the study is damaged.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        with self._alone():
            self.study = _open(folder / STUDY_FILE, plan)
            if plan.sampler == "grid":
                self._enqueue()

    def all(self) -> "list[FrozenTrial]":
        """Those that are or were trained, in the order in which they were drawn."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if _counts(trial)]

    def settings(self, trial: "FrozenTrial") -> dict[str, Value]:
        """What a trial changes in the recipe."""
        return {
            axis.name: trial.params[axis.name] if isinstance(axis, Choices) else axis.rounded(trial.params[axis.name])
            for axis in self._plan.space
            if axis.name in trial.params
        }

    def recipe(self, settings: Settings) -> Recipe:
        """The recipe of a trial."""
        return changed(self._plan.recipe, self._plan.space, settings)

    def place(self, number: int) -> Path:
        """The run folder of a trial."""
        return self._folder / trial_name(number, self._plan.recipe.seed)

    def take(self) -> "tuple[Trial, dict[str, Value]] | None":
        """A trial that was begun and that nobody works at, else a new one; None where there is none left."""
        import optuna

        from limbeck.runs.lock import is_held  # imports torch

        with self._alone():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == optuna.trial.TrialState.RUNNING and not is_held(self.place(trial.number)):
                    begun = optuna.trial.Trial(self.study, trial._trial_id)
                    if (settings := self._accepted(begun)) is not None:
                        return begun, settings
            for number in itertools.count(len(trials)):
                if number == len(trials) + DRAWS or len(self.all()) >= self._plan.trials or self._is_through():
                    return None
                self.study.sampler = _sampler(self._plan, number)
                new = self.study.ask()
                if (settings := self._accepted(new)) is not None:
                    return new, settings
        return None

    def is_running(self) -> bool:
        """Whether somebody works at a trial, or has left one."""
        return any(trial.state.name == "RUNNING" for trial in self.study.get_trials(deepcopy=False))

    def report(self, trial: "Trial", epoch: int, value: float) -> bool:
        """Tell the metric of an epoch; whether the trial is to be stopped."""
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if epoch not in known:  # an epoch that is made again after a kill
            trial.report(value, epoch)
        return bool(trial.should_prune())

    def _accepted(self, trial: "Trial") -> dict[str, Value] | None:
        """The settings of a trial, drawn where they were not; None where it is passed over, which is written down."""
        from optuna.trial import TrialState

        settings = self._draw(trial)
        if not (reason := self._objection(trial.number, settings)):
            return settings
        trial.set_user_attr(PASSED_OVER, reason)
        self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _draw(self, trial: "Trial") -> dict[str, Value]:
        drawn: dict[str, Value] = {}
        for axis in self._plan.space:
            if isinstance(axis, Choices):
                drawn[axis.name] = trial.suggest_categorical(axis.name, axis.values)
            elif axis.whole:
                drawn[axis.name] = trial.suggest_int(axis.name, int(axis.low), int(axis.high), log=axis.log)
            else:
                drawn[axis.name] = axis.rounded(trial.suggest_float(axis.name, axis.low, axis.high, log=axis.log))
        return drawn

    def _objection(self, number: int, settings: Settings) -> str:
        """Why a trial is not trained, or nothing."""
        try:
            recipe = self.recipe(settings)
        except UserError as error:
            return str(error)
        # Not the settings: a recipe that does not read one of them is the same with any value of it.
        same = any(self.recipe(self.settings(other)) == recipe for other in self.all() if other.number != number)
        return "drawn before" if same else ""

    def _is_through(self) -> bool:
        """Whether a grid has no combination left."""
        waiting = any(trial.state.name == "WAITING" for trial in self.study.get_trials(deepcopy=False))
        return self._plan.sampler == "grid" and not waiting

    def _enqueue(self) -> None:
        """Set all combinations up as trials, once; a start that was killed meanwhile left some."""
        every = list(combinations(self._plan.space))
        if len(self.study.get_trials(deepcopy=False)) < len(every):
            for settings in every:
                self.study.enqueue_trial(settings, skip_if_exists=True)

    @contextlib.contextmanager
    def _alone(self) -> Generator[None, None, None]:
        """Keep other processes from drawing meanwhile; the lock ends with the process, however that ends."""
        with FileLock(self._folder / ".draw.lock"):
            yield


def _counts(trial: "FrozenTrial") -> bool:
    return trial.state.name != "WAITING" and PASSED_OVER not in trial.user_attrs


def _open(path: Path, plan: Plan) -> "Study":
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = JournalFileOpenLock(str(path))  # the kind that holds on a shared disk, too
    _cut_half_line(path, lock)
    try:
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path), lock_obj=lock)),
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
            sampler=_sampler(plan, 0),
            pruner=_pruner(plan),
        )
    except (ValueError, KeyError) as error:  # what a line that is not optuna's gives
        raise UserError(f"{path} is damaged ({error}); choose another --out") from None


def _cut_half_line(path: Path, lock: Any) -> None:
    """Take off the half line that a process left which was killed while it wrote; nothing can be read behind it."""
    if not path.is_file():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _sampler(plan: Plan, number: int) -> "BaseSampler":
    """A sampler for the trial of a number: it draws the same, whoever draws it and however often work was stopped."""
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    seed = int(np.random.SeedSequence([plan.recipe.seed, number]).generate_state(1)[0])
    if plan.sampler == "tpe":
        return TPESampler(seed=seed, n_startup_trials=FIRST)
    return RandomSampler(seed=seed)


def _pruner(plan: Plan) -> "BasePruner":
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    match plan.pruner:
        case "median":
            return MedianPruner(n_startup_trials=COMPLETE, n_warmup_steps=plan.min_epochs)
        case "halving":
            return SuccessiveHalvingPruner(min_resource=plan.min_epochs, reduction_factor=REDUCTION)
        case "none":
            return NopPruner()


def importance(study: "Study", space: Sequence[Axis], seed: int) -> dict[str, float]:
    """The share of the variation between the finished trials that each setting explains (fANOVA), largest first.

    Empty where there are fewer finished trials than a regression needs, or where all came to the same.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(done) < 2 * COMPLETE or len({trial.value for trial in done}) < 2 or len(space) < 2:
        return {}
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed)))
