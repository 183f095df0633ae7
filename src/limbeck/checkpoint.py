"""Write and read weights and training state: atomically, and never as code."""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.untrusted import check_tensor_file, check_torch_file

KEPT = 2
_COUNTERS = "counters.json"
_STATE = "trainer.pt"


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A temporary path beside ``path``; what is written there takes the place of ``path`` at once, or not at all.

    Raises:
        UserError: If the disk is full or the folder cannot be written; the message names the path.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors makes its files readable for their owner only
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict to a safetensors file that loads with ``strict=True``; tied tensors are written twice."""
    with replacing(path) as temporary:
        _save_tensors(state, temporary)


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, path)
    except Exception as error:  # the Rust writer reports a full disk as its own SafetensorError
        raise OSError(None, str(error)) from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: If the file is missing, cut off or no safetensors file.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        check_tensor_file(path)
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for every defect of a file
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error


def save_json(value: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file atomically."""
    save_text(json.dumps(value, indent=2) + "\n", path)


def save_text(text: str, path: Path) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass
class Counters:
    """Where a run stands, and what it has seen so far.

    Attributes:
        epoch: Epochs done.
        step: Optimizer steps done.
        best: Best validation value so far and the epoch in which it was reached, empty before the first.
        seconds: Training time so far, validation included.
        images: Images that the student has trained on so far.
    """

    epoch: int = 0
    step: int = 0
    best: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0
    images: int = 0


class Checkpoints:
    """The last two training states of a run, each a folder that is either complete or not there.

    A state is student, average of the student (where there is one), every term that has parameters, optimizer, scaler,
    random number generators and counters. It is written to a temporary folder which is renamed when everything in it
    has reached the disk. Tensors are in safetensors files; the optimizer's state is read with ``weights_only=True``.

    Args:
        folder: Where the states are kept; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self, modules: Mapping[str, nn.Module], trainer: Mapping[str, Any], counters: Counters, device: torch.device
    ) -> Path:
        """Write one state and remove all but the last two.

        Args:
            modules: Name to module; each becomes one safetensors file.
            trainer: State dicts of optimizer, scaler and the like.
            counters: Where the run stands.
            device: The device whose random number generator is kept beside the CPU's.

        Raises:
            UserError: If it cannot be written; states written before stay as they are.
        """
        target = self.folder / f"step-{counters.step:09d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".writing-*"):  # what a killed process left half written
                shutil.rmtree(stale, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
            try:
                for name, module in modules.items():
                    _save_tensors(module.state_dict(), temporary / f"{name}.safetensors")
                torch.save({**trainer, "random": _random_state(device)}, temporary / _STATE)
                (temporary / _COUNTERS).write_text(json.dumps(asdict(counters)), encoding="utf-8")
                for file in temporary.iterdir():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            raise UserError(f"cannot write checkpoint {target}: {getattr(error, 'strerror', None) or error}") from error
        for old in self.states()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def states(self) -> list[Path]:
        """The complete states, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / _COUNTERS).is_file())

    def load(self, modules: Mapping[str, nn.Module], device: torch.device) -> tuple[dict[str, Any], Counters] | None:
        """Load the newest state into the modules and the random number generators; None where there is none.

        Returns:
            The trainer's state dicts as they were given to :meth:`save`, and the counters.

        Raises:
            UserError: If the state does not fit the modules, is damaged, or holds anything but tensors and numbers.
        """
        states = self.states()
        if not states:
            return None
        newest = states[-1]
        for name, module in modules.items():
            try:
                module.load_state_dict(load_weights(newest / f"{name}.safetensors"), strict=True)
            except RuntimeError as error:
                first = str(error).splitlines()[0]
                raise UserError(f"checkpoint {newest} does not fit this run's {name}: {first}") from error
        try:
            check_torch_file(newest / _STATE)
            trainer: dict[str, Any] = torch.load(newest / _STATE, map_location="cpu", weights_only=True)
            counters = Counters(**json.loads((newest / _COUNTERS).read_text(encoding="utf-8")))
            _set_random_state(trainer.pop("random"), device)
        except Exception as error:  # unpickling alone knows a dozen types of error
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"checkpoint {newest} cannot be read: {first}; remove that folder to go on from the one before"
            ) from error
        return trainer, counters


def _random_state(device: torch.device) -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"], device)
