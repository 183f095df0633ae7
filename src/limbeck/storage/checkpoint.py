"""Write and read training state: atomically, and never as code."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.distributed import collectives, sharding
from limbeck.errors import UserError
from limbeck.storage import manifest
from limbeck.storage.files import load_weights, write_state, write_tensors
from limbeck.storage.random_state import random_state, set_random_state, state_of_this, states_of_all
from limbeck.storage.untrusted import check_torch_file

KEPT = 2
LAYOUT = 2  # of a state's folder: 1 has no manifest
_COUNTERS = "counters.json"
_STATE = "trainer.pt"


@dataclass
class Counters:
    """Where a run stands, and what it has seen so far.

    Attributes:
        epoch: Epochs done.
        step: Steps done, with those that were left out.
        best: Best validation value so far and the epoch in which it was reached, empty before the first.
        seconds: Training time so far, validation included.
        images: Images that the student has trained on so far.
        batches: Batches of the next epoch that are done, on each process.
        skipped: Steps that were left out because their numbers were not finite.
    """

    epoch: int = 0
    step: int = 0
    best: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0
    images: int = 0
    batches: int = 0
    skipped: int = 0


class Checkpoints:
    """The last two training states of a run, each a folder that is either complete or not there.

    A state is student, average of the student (where there is one), every term that has parameters, optimizer, scaler,
    random number generators and counters. It is written to a temporary folder which is renamed when everything in it
    has reached the disk. Tensors are in safetensors files; the optimizer's state is read with ``weights_only=True``.
    A manifest has the checksum of every file, by which a state that was damaged later is known, and passed over.

    Args:
        folder: Where the states are kept; made when the first one is written.
        every: Steps after which :func:`limbeck.fit` writes one within an epoch; 0: only at its end. Several processes
            do so behind the step that the log records next.

    Attributes:
        skipped: Of the last :meth:`load`: states that are newer than the loaded one, and what is wrong with each.
    """

    def __init__(self, folder: Path, *, every: int = 0) -> None:
        self.folder = folder
        self.skipped: list[str] = []
        self._every = every
        self._newest_step = 0
        self._has_begun = False

    def is_due(self, step: int) -> bool:
        """Whether a state is to be written behind this step, though the epoch goes on."""
        return self._every > 0 and step - self._newest_step >= self._every

    def save(
        self, modules: Mapping[str, nn.Module], trainer: Mapping[str, Any], counters: Counters, device: torch.device
    ) -> Path:
        """Write one state and remove all but the last two, and states of later steps, which can only be damaged ones.

        Every process calls it, and the first one writes: the random numbers of all of them belong to the state. What is
        sharded is put together for it, so that a state looks alike however it was trained.

        Args:
            modules: Name to module; each becomes one safetensors file.
            trainer: State dicts of optimizer, scaler and the like.
            counters: Where the run stands.
            device: Whose random number generators are kept beside the CPU's, and that processes can talk through.

        Raises:
            UserError: If it cannot be written; states written before stay as they are.
        """
        target = self.folder / f"step-{counters.step:09d}"
        random = states_of_all(random_state(device), device)
        weights = {name: sharding.gathered(module.state_dict()) for name, module in modules.items()}
        state = sharding.gathered(dict(trainer))
        self._newest_step = counters.step
        if collectives.rank() > 0:
            return target
        try:
            # A folder above that was removed since is not made anew: it would hold a state of a run that is not there.
            self.folder.mkdir(parents=not self._has_begun, exist_ok=True)
            self._has_begun = True
            self._clear()
            temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
            try:
                for name in modules:
                    write_tensors(weights[name], temporary / f"{name}.safetensors")
                write_state({**state, "random": random}, temporary / _STATE)
                text = json.dumps({**asdict(counters), "layout": LAYOUT})
                (temporary / _COUNTERS).write_text(text, encoding="utf-8")
                manifest.seal(temporary)
                self._remove(target)
                temporary.rename(target)
                manifest.flush(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise UserError(f"cannot write checkpoint {target}: {error.strerror or error}") from error
        states = self._folders()
        done = states.index(target) + 1
        for old in [*states[: max(0, done - KEPT)], *states[done:]]:
            self._remove(old)
        return target

    def _folders(self) -> list[Path]:
        """All states, oldest first, whether they are whole or not."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _clear(self) -> None:
        """Remove what a killed process left of a state that it was writing or removing."""
        for stale in (*self.folder.glob(".writing-*"), *self.folder.glob(".removing-*")):
            shutil.rmtree(stale, ignore_errors=True)

    def _remove(self, state: Path) -> None:
        """Remove a state, so that it is never half there under its name."""
        doomed = state.with_name(f".removing-{state.name}")
        with suppress(OSError):
            state.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def states(self) -> list[Path]:
        """The complete states, oldest first, without those that the manifest shows to be damaged."""
        complete = [path for path in self._folders() if (path / _COUNTERS).is_file()]
        return [path for path in complete if not (path / manifest.NAME).exists() or manifest.flaw(path) is None]

    def load(self, modules: Mapping[str, nn.Module], device: torch.device) -> tuple[dict[str, Any], Counters] | None:
        """Load the newest good state into the modules and the random number generators; None where there is none.

        Of several processes the first one chooses the state.

        Returns:
            The trainer's state dicts as they were given to :meth:`save`, and the counters.

        Raises:
            UserError: If the state does not fit the modules, or if there are states, and all of them are damaged or
                hold anything but tensors and numbers.
        """
        found = self._newest() if collectives.rank() == 0 else None
        chosen = found[0].name if found else ""
        # Every process learns why there is none, and stops.
        sent = json.loads(collectives.from_first(json.dumps([chosen, self.skipped]), device))
        chosen, self.skipped = str(sent[0]), [str(line) for line in sent[1]]
        if not chosen:
            if self.skipped:
                reasons = "; ".join(self.skipped)
                raise UserError(
                    f"no checkpoint in {self.folder} can be read: {reasons}; remove that folder to begin again"
                )
            return None
        state = self.folder / chosen
        try:
            weights, trainer, counters = found[1] if found else _read(state)
        except _DamagedError as error:  # by now, or for this process alone
            raise UserError(f"checkpoint {state} cannot be read: {error}") from error
        for name, module in modules.items():
            if name not in weights:
                raise UserError(f"checkpoint {state} does not fit this run: it has no {name}")
            try:
                sharding.load(module, weights.pop(name))
            except RuntimeError as error:
                first = str(error).splitlines()[0]
                raise UserError(f"checkpoint {state} does not fit this run's {name}: {first}") from error
        try:
            random = trainer.pop("random")  # once it was that of the first process alone
            states: list[Any] = random if isinstance(random, list) else [random]  # pyright: ignore[reportUnknownVariableType]
            set_random_state(state_of_this(states, device), device)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"checkpoint {state} has no random states that can be used: {error}") from error
        self._newest_step = counters.step
        return trainer, counters

    def _newest(self) -> "tuple[Path, _State] | None":
        """The newest state that is as it was written."""
        self.skipped = []
        self._clear()  # behind the last epoch nothing is saved any more
        for state in reversed(self._folders()):
            try:
                return state, _read(state)
            except _NewerError as error:  # whole, and more than what lies before it: not to be passed over
                self.skipped.append(f"{state.name}: {error}")
                return None
            except _DamagedError as error:
                self.skipped.append(f"{state.name}: {error}")
        return None


class _DamagedError(Exception):
    """A state that is not what was written."""


class _NewerError(_DamagedError):
    """A state of a layout that is not known yet."""


_State = tuple[dict[str, dict[str, Tensor]], dict[str, Any], Counters]


def _read(folder: Path) -> _State:
    """Weights, trainer and counters of a state.

    States of the first layout have no manifest; of those only what cannot be read is known to be damaged.

    Raises:
        _DamagedError: Says what is wrong.
    """
    try:
        is_sealed = (folder / manifest.NAME).exists()
        if is_sealed and (reason := manifest.flaw(folder)) is not None:
            raise _DamagedError(reason)
        numbers: dict[str, Any] = json.loads((folder / _COUNTERS).read_text(encoding="utf-8"))
        layout = int(numbers.pop("layout", 1))
        if layout > 1 and not is_sealed:
            raise _DamagedError(f"{manifest.NAME} is missing")
        if layout > LAYOUT:
            raise _NewerError(f"it is of layout {layout}, which a newer version of Limbeck reads")
        weights = {path.stem: load_weights(path) for path in sorted(folder.glob("*.safetensors"))}
        check_torch_file(folder / _STATE)
        trainer: dict[str, Any] = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        return weights, dict(trainer), Counters(**numbers)
    except _DamagedError:
        raise
    except FileNotFoundError as error:
        raise _DamagedError(f"{Path(str(error.filename)).name} is missing") from error
    except Exception as error:  # unpickling alone knows a dozen types of error
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _DamagedError(f"it cannot be read: {first}") from error
