"""The record of a run: JSON lines always, progress bars on a terminal, other loggers behind one small interface."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from limbeck import collectives

_OF_STEPS = ("step", "probe", "epoch")  # kinds of records that a resumed run writes again


@runtime_checkable
class Sink(Protocol):
    """Where scalars go besides the log file, for instance TensorBoard's ``SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one scalar."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


class RunLog:
    """Writes ``log.jsonl``, shows progress, and passes scalars on.

    Every record is one JSON object with a ``"kind"``: ``"start"``, ``"note"``, ``"step"``, ``"probe"``, ``"epoch"``,
    ``"end"``. A run that goes on after a kill drops the records behind its checkpoint first, so that no step is in the
    log twice. Of many processes that train together the first one writes and speaks.

    Args:
        folder: The run folder; None to keep nothing on disk.
        sinks: Further receivers of scalars.
        progress: Show bars; by default when stderr is a terminal. Notes are printed in either case.
        said: Notes that need not be printed again, shared by the logs of several runs; each new one is added.

    Example:
        >>> with RunLog() as log:
        ...     log.write("note", text="hello")
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        sinks: Sequence[Sink] = (),
        progress: bool | None = None,
        said: set[str] | None = None,
    ) -> None:
        self.path = folder / "log.jsonl" if folder is not None else None
        self._is_mended = False
        self._sinks = tuple(sinks)
        self._console = Console(stderr=True)
        self._shows = sys.stderr.isatty() if progress is None else progress
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said = said
        self._images = 0
        self._started = 0.0

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, kind: str, **values: Any) -> None:
        """Append one record; scalars of steps and epochs also go to the sinks."""
        if collectives.rank() > 0:
            return
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._mend()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, **values}, allow_nan=True) + "\n")
        if kind in ("step", "epoch"):
            step = int(values["step"])
            for tag, value in _scalars(kind, values).items():
                for sink in self._sinks:
                    sink.add_scalar(tag, value, step)

    def note(self, text: str) -> None:
        """Say one line to the user and keep it in the log."""
        if collectives.rank() > 0:
            return
        self.write("note", text=text)
        if self._said is not None:
            if text in self._said:
                return
            self._said.add(text)
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def rewind(self, step: int) -> None:
        """Drop the records of steps behind ``step``, and of an end; from 0 on, where all begins again, also of that."""
        if self.path is None or not self.path.is_file() or collectives.rank() > 0:
            return
        self._mend()
        kept: list[str] = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            record = json.loads(line)
            kind = record.get("kind")
            is_behind = kind in _OF_STEPS and record["step"] > (step or -1)
            if kind != "end" and not is_behind:
                kept.append(line)
        temporary = self.path.with_name(f".{self.path.name}.tmp")  # a kill right here must not cost the log
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.path)

    def _mend(self) -> None:
        """Once: cut off the half line that a kill may have left at the end of the file."""
        if self._is_mended or self.path is None or not self.path.is_file():
            return
        self._is_mended = True
        written = self.path.read_bytes()
        if not written.endswith(b"\n"):
            with self.path.open("rb+") as file:
                file.truncate(written.rfind(b"\n") + 1)

    def epoch_begins(self, epoch: int, epochs: int, steps: int) -> None:
        """Show the bar of one epoch."""
        self._images = 0
        self._started = time.perf_counter()
        if not self._shows or collectives.rank() > 0:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[loss]}"),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=steps, rate="", loss="")
        assert self._task is not None
        self._progress.reset(self._task, total=steps, description=f"epoch {epoch}/{epochs}", rate="", loss="")

    def advance(self, images: int, loss: float | None) -> None:
        """One batch is done; ``loss`` where it is known without waiting for the device."""
        self._images += images
        if self._progress is None or self._task is None:
            return
        rate = self._images / max(time.perf_counter() - self._started, 1e-9)
        fields: dict[str, Any] = {"rate": f"{rate:,.0f} images/s"}
        if loss is not None:
            fields["loss"] = f"loss {loss:.4g}"
        self._progress.update(self._task, advance=1, **fields)

    def epoch_ends(self, epoch: int, epochs: int, values: Mapping[str, Any]) -> None:
        """Write the epoch's record and, on a terminal, one line."""
        self.write("epoch", epoch=epoch, **values)
        if self._shows and collectives.rank() == 0:
            words = [f"epoch {epoch}/{epochs}", f"train loss {values['train']['loss']:.4g}"]
            figures = dict(values.get("val") or {})
            words += [f"{'val loss' if name == 'loss' else name} {_short(name, figures[name])}" for name in figures]
            if epoch < epochs:
                words.append(f"{_duration((time.perf_counter() - self._started) * (epochs - epoch))} left")
            self._console.print("  ".join(words), highlight=False)

    def pause(self) -> None:
        """Take the bar off the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        """Take the bar off the screen and finish the sinks; called by who made the log."""
        self.pause()
        for sink in self._sinks:
            sink.close()


def _duration(seconds: float) -> str:
    """A time to wait, for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(name: str, value: float) -> str:
    return f"{100 * value:.2f}%" if name.startswith("top") else f"{value:.4g}"


def _scalars(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Flatten one record to ``"step/parts/feature"``-like tags, numbers only."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            items: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
            flat |= {f"{kind}/{key}/{name}": float(item) for name, item in items.items()}
        elif isinstance(value, (int, float)) and key != "step":
            flat[f"{kind}/{key}"] = float(value)
    return flat
