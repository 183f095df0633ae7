"""The record of a run: JSON lines always, a table and a bar on a terminal, other loggers behind one small interface."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from limbeck.distributed import collectives
from limbeck.errors import Stopped, UserError, reason_of, shown
from limbeck.logs.live import LatestFigures, Screen, duration, short
from limbeck.logs.records import number
from limbeck.logs.sinks import PASSED_ON, Sink, pass_on
from limbeck.storage.files import save_text
from limbeck.storage.untrusted import records_of

OF_STEPS = (*PASSED_ON, "bad")
"""The kinds of records that belong to a step."""


BETWEEN_LINES = 30.0  # seconds between two lines of an epoch where nobody sees a bar


class RunLog:
    """Writes ``log.jsonl``, shows progress, and passes numbers on.

    Every record is one JSON object with a ``"kind"``: ``"start"``, ``"note"``, ``"step"``, ``"epoch"``, ``"probe"``,
    ``"bad"`` for a step that was left out, ``"end"``, or ``"stop"`` where an error or Ctrl-C ended the run. A run that
    goes on after a kill drops the records behind its checkpoint first, so that no step is in the log twice. Of many
    processes that train together the first one writes and speaks. A sink that fails
    gets no more records; a note says so.

    Args:
        folder: The run folder; None to keep nothing on disk.
        sinks: Further receivers of the numbers of steps, epochs and probes.
        progress: Show table and bar; by default when stderr is a terminal. Notes are printed in either case.
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
        self._has_begun = False
        self._sinks = list(sinks)
        self._failed: list[Sink] = []
        self._warned: set[str] = set()
        self._console = Console(stderr=True)
        self._shows = (sys.stderr is not None and sys.stderr.isatty()) if progress is None else progress
        self._latest = LatestFigures()
        self._screen = Screen(self._console)
        self._said = said
        self._images = 0
        self._started = 0.0
        self._spoke = time.perf_counter()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self.path is not None and self.path.is_file():  # where there is none, nothing began
            reason = str(error).partition("\n")[0] or repr(error)
            if isinstance(error, KeyboardInterrupt):
                reason = error.reason if isinstance(error, Stopped) and error.signum != signal.SIGINT else "Ctrl-C"
            with contextlib.suppress(UserError):  # of a full disk, of which the error may well tell already
                self.write("stop", reason=reason)
        self.close()

    def attach(self, sink: Sink) -> None:
        """Pass the numbers of the records to come on to one more receiver, which is closed with the log."""
        self._sinks.append(sink)

    def write(self, kind: str, **values: Any) -> None:
        """Append one record; the numbers of steps, epochs and probes also go to the sinks and to the terminal.

        Raises:
            UserError: If it cannot be written, or if the file was removed since the last one was.
        """
        if collectives.rank() > 0:
            return
        record: dict[str, Any] = {"kind": kind, **values}
        if self.path is not None:
            with _one_line(self.path):
                self._begin()
                # Not made anew: in a folder that was removed it would be a run without a beginning.
                with open(self.path, "a", encoding="utf-8", opener=_open_existing) as file:
                    file.write(json.dumps(record, allow_nan=True) + "\n")
        if self._shows and kind in PASSED_ON:
            self._latest.take(record)
            self._screen.show(self._latest)
        for sink in self._sinks:
            if sink not in self._failed:
                self._try(sink, lambda sink=sink: pass_on(record, sink))

    def note(self, text: str) -> None:
        """Say one line to the user and keep it in the log."""
        if collectives.rank() > 0:
            return
        text = shown(text)
        self.write("note", text=text)
        if self._said is not None:
            if text in self._said:
                return
            self._said.add(text)
        self._say(text)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a stderr that is full or closed; the log has it all
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def guarded(self, what: str, then: str = "the run continues") -> Generator[None, None, None]:
        """Turns an exception into a note, for everything that only looks at a run.

        Args:
            what: What may fail, for instance "the probe".
            then: What happens after a failure.

        Example:
            >>> with RunLog(progress=False) as log, log.guarded("the picture"):
            ...     raise KeyError("no such color")
        """
        try:
            yield
        except Exception as error:  # of any kind: no picture is worth a training
            text = f"warning: {what} failed, {then} ({reason_of(error)})"
            if text not in self._warned:  # not at each of a thousand steps
                self._warned.add(text)
                self.note(text)

    def rewind(self, step: int) -> None:
        """Drop the records of steps behind ``step``, and of an end; from step 0 on the probe that precedes it, too.

        Raises:
            UserError: If the file cannot be read or written.
        """
        if self.path is None or not self.path.is_file() or collectives.rank() > 0:
            return
        with _one_line(self.path):
            self._begin()
            text = self.path.read_text(encoding="utf-8", errors="replace")
        kept: list[str] = []
        for line, record in records_of(text):
            kind = record.get("kind")
            if kind in OF_STEPS and number(record, "step") is None:
                continue  # damaged, like a line that cannot be read
            # Not at step 0, where a probe looks at what training begins with: it will do so again.
            is_later = kind in OF_STEPS and (record["step"] > step or step == 0)
            if kind not in ("end", "stop") and not is_later:
                kept.append(line)
                self._latest.take(record)
        save_text("".join(kept), self.path)  # a kill right here must not cost the log

    def _begin(self) -> None:
        """Once: make the file, or cut off the half line that a kill may have left at the end of it."""
        if self._has_begun or self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        written = self.path.read_bytes()
        if written and not written.endswith(b"\n"):
            with self.path.open("rb+") as file:
                file.truncate(written.rfind(b"\n") + 1)
        self._has_begun = True

    def epoch_begins(self, epoch: int, epochs: int, steps: int) -> None:
        """Show the bar of one epoch."""
        self._images = 0
        self._started = time.perf_counter()
        if self._shows and collectives.rank() == 0:
            self._screen.begin(f"epoch {epoch}/{epochs}", steps)

    def advance(self, images: int, loss: float | None) -> None:
        """One batch is done; ``loss`` where it is known without waiting for the device."""
        self._images += images
        self._screen.advance(self._images / max(time.perf_counter() - self._started, 1e-9), loss)

    def epoch_ends(self, epoch: int, epochs: int, values: Mapping[str, Any]) -> None:
        """Write the epoch's record and say one line; without a terminal at most one in half a minute."""
        self.write("epoch", epoch=epoch, **values)
        now = time.perf_counter()
        if collectives.rank() == 0 and (self._shows or now - self._spoke >= BETWEEN_LINES):
            self._spoke = now
            words = [f"epoch {epoch}/{epochs}", f"loss {values['train']['loss']:.4g}"]
            figures = dict(values.get("val") or {})
            words += [f"{'val' if name == 'loss' else name} {short(name, figures[name])}" for name in figures]
            if epoch < epochs:
                words.append(f"{duration((time.perf_counter() - self._started) * (epochs - epoch))} left")
            self._say("  ".join(words))

    def pause(self) -> None:
        """Take table and bar off the screen."""
        self._screen.stop()

    def close(self) -> None:
        """Take table and bar off the screen and finish the sinks; called by who made the log."""
        self.pause()
        for sink in self._sinks:
            self._try(sink, sink.close)

    def _try(self, sink: Sink, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a network, a disk, a service
            is_first = sink not in self._failed
            self._failed.append(sink)  # before the note, which is offered to the sinks as well
            if is_first:
                name = getattr(sink, "name", type(sink).__name__)
                self.note(f"warning: {name} failed, and gets no more records ({reason_of(error)})")


@contextlib.contextmanager
def _one_line(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is gone: the folder was removed or moved under the run that writes it") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _open_existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)
