"""The loggers of a run: none but those that its recipe names, each as a sink that cannot harm the training."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from limbeck.distributed import collectives
from limbeck.errors import UserError, reason_of
from limbeck.logs.backends import BACKENDS, Backend, Beginning
from limbeck.logs.records import COMPARISON_FILE, number
from limbeck.logs.runlog import RunLog
from limbeck.logs.sinks import PASSED_ON
from limbeck.recipes.recipe import Recipe
from limbeck.storage.checkpoint import Checkpoints
from limbeck.storage.files import save_json
from limbeck.storage.untrusted import records_of

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
"""Logger, which is also the name of its module -> the package that brings it."""

IDENTITIES = "loggers.json"


class Logger:
    """A backend as a sink: a record is sent as a whole, once.

    Args:
        name: Of the logger.
        backend: Where records go.
        sent: Kind of record -> the last step of which the backend has one.
    """

    def __init__(self, name: str, backend: Backend, *, sent: Mapping[str, int] | None = None) -> None:
        self.name = name
        self._backend = backend
        self._sent = dict(sent or {})
        self._step = 0
        self._scalars: dict[str, float] = {}
        self._histograms: dict[str, Tensor] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Keep one number of the record."""
        if self._is_new(tag, global_step):
            self._scalars[tag] = scalar_value

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> None:
        """Keep one distribution of the record."""
        if self._is_new(tag, global_step):
            self._histograms[tag] = values

    def flush(self) -> None:
        """Send the record."""
        scalars, histograms = self._scalars, self._histograms
        self._scalars, self._histograms = {}, {}
        if scalars or histograms:
            self._backend.send(self._step, scalars, histograms)

    def close(self) -> None:
        """End the run there: as failed, where the log is closed by an error or by Ctrl-C."""
        self._backend.finish(sys.exception() is not None)

    def _is_new(self, tag: str, step: int) -> bool:
        self._step = step
        return step > self._sent.get(tag.partition("/")[0], -1)


def require_loggers(names: Sequence[str]) -> None:
    """Stop before anything is trained where a logger's package is missing.

    Raises:
        UserError: It is; the message has the command that installs it.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, which some of them leave, is no package
            raise UserError(f"loggers: {name} is not installed; pip install {PACKAGES[name]}")


def attach_loggers(recipe: Recipe, folder: Path, log: RunLog) -> None:
    """Begin the recipe's loggers, or go on where they were, on the first process only.

    A logger that has seen the run's first part goes on with the same run there, and no point comes twice: TensorBoard
    drops what lies behind the checkpoint, the others are not sent again what they were sent. Each is known by what
    ``loggers.json`` in the run folder says.

    Args:
        recipe: The run's recipe, settled.
        folder: The run folder.
        log: Passes the records on, and closes the loggers.

    Raises:
        UserError: One of them cannot begin. Of a run that is resumed that is a note.
    """
    if collectives.rank() > 0 or not recipe.loggers:
        return
    file = folder / IDENTITIES
    known: dict[str, str] = {}
    with log.guarded(f"reading {IDENTITIES}, so that loggers start a new run"):
        known |= json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    group = folder.resolve().parent if (folder.parent / COMPARISON_FILE).is_file() else None
    states = Checkpoints(folder / "checkpoint").states()
    step = int(states[-1].name.removeprefix("step-")) if states else 0
    for name in recipe.loggers:
        beginning = Beginning(recipe, folder.resolve(), group.name if group else None, known.get(name), step)
        try:
            backend = BACKENDS[name](beginning)
        except Exception as error:  # each has errors of its own, of networks and accounts
            if name in known:  # it worked when the run began, so the service is at fault, not the recipe
                log.note(f"warning: {name} failed, and gets no more records ({reason_of(error)})")
                continue
            raise UserError(f"loggers: {name} cannot begin: {reason_of(error)}") from error
        sent = _sent(folder) if name in known and name != "tensorboard" else {}
        log.attach(Logger(name, backend, sent=sent))
        known[name] = backend.identity
        save_json(known, file)
        log.note(f"{name}: {backend.look}")


def _sent(folder: Path) -> dict[str, int]:
    """Kind of record -> the last step for which the log has one, before it is rewound."""
    last: dict[str, int] = {}
    for _, record in records_of((folder / "log.jsonl").read_text(encoding="utf-8", errors="replace")):
        step = number(record, "step")
        if record.get("kind") in PASSED_ON and step is not None:
            last[record["kind"]] = max(last.get(record["kind"], -1), int(step))
    return last
