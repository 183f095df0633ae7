"""The command line. A command's module is imported when the command is called, so that help does not wait for torch."""

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from limbeck.errors import LostProcessError, UserError, did_you_mean, path_problem, shown

COMMANDS = {
    "distill": "train a student with a teacher, into a run folder",
    "train": "train a model alone: a teacher, or a baseline",
    "compare": "methods x seeds on one recipe: a table with intervals",
    "sweep": "search for good settings, with early stopping, and confirm the best",
    "cache": "compute a teacher's outputs once, for runs to come",
    "rerun": "make a finished run again, and say what came out the same",
    "report": "make a run's page again, or compare runs on one page",
    "watch": "show the progress of a run",
    "evaluate": "score a run's student",
    "export": "write a run's student as safetensors, ONNX or torch-export",
    "benchmark": "time a training step against its floor and against peers",
    "doctor": "check models, data and losses before training",
    "reproduce": "make a table of the paper again, with seeds and intervals",
    "recipes": "list the named recipes, or print one",
}
"""Command -> what it does; the modules of this package have the same names."""

TRY_AGAIN = 75
"""Exit code where another process of a run was lost; EX_TEMPFAIL of sysexits.h."""

HELP = """usage: limbeck COMMAND [flags]

Distil a large vision model into a small one through a learned projector.

commands:
{commands}

`limbeck COMMAND --help` lists a command's flags.

  limbeck compare --recipe digits
  limbeck distill --teacher timm/resnet34 --student timm/resnet18 --data FOLDER
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is success, 1 an error that ``doctor`` found or a ``rerun`` that is not the same to the byte, 2 a fault in the
    input (one line on stderr), 75 the loss of another process of the same run, 130 a stop by Ctrl-C, 143 one by SIGTERM
    behind a checkpoint. Every other exception is a bug of ours and leaves with its traceback.

    Args:
        argv: The words behind ``limbeck``; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        return _dispatch(words)
    except UserError as error:
        return _fail(*error.args, table=error.table)
    except LostProcessError as error:
        return _fail(str(error), TRY_AGAIN)
    except KeyboardInterrupt as stop:
        hint = f"; continue with: {shown(str(stop))}" if str(stop) else ""
        print(f"\nlimbeck: stopped{hint}", file=sys.stderr)
        return _stopped_by(stop)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" at {error.filename}" if error.filename else ""
            return _fail(f"no space left on the disk{where}; free some, then continue with --resume")
        if error.filename is not None:
            return _fail(path_problem(error))
        raise
    except RuntimeError as error:  # by name: torch is not imported here
        if type(error).__name__ == "OutOfMemoryError":
            said = str(error).partition(". Including")[0].splitlines()[0]
            return _fail(f"out of memory outside of a training step; use a smaller --batch-size ({said})")
        raise


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items())), end="")
        return 0
    if words[0] == "--version":
        import limbeck

        print(f"limbeck {limbeck.__version__}")
        return 0
    if words[0] not in COMMANDS:
        kind = "flag" if words[0].startswith("-") else "command"
        hint = did_you_mean(words[0], COMMANDS) or "; expected one of " + ", ".join(COMMANDS)
        raise UserError(f'unknown {kind} "{words[0]}"{hint}')
    try:
        return int(importlib.import_module(f"limbeck.cli.{words[0]}").main(words[1:]))
    except SystemExit as stop:  # how tyro ends after it has printed a command's help
        return int(stop.code or 0)


def _stopped_by(stop: KeyboardInterrupt) -> int:
    from limbeck.errors import Stopped  # after a training, which has loaded all that it needs

    return 128 + (stop.signum if isinstance(stop, Stopped) else signal.SIGINT)


def _fail(message: str, code: int = 2, *, table: Sequence[str] = ()) -> int:
    print(f"limbeck: error: {shown(message.strip())}", *map(shown, table), sep="\n", file=sys.stderr)
    return code


class _Lenient(io.FileIO):
    """A stream that drops what cannot be written: a full or closed stderr ends no training, whose log has it all."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _open_streams() -> None:
    """See to it that no message fails: letters that the encoding lacks are spelled out, and stderr may be missing."""
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        with contextlib.suppress(OSError):
            os.fstat(2)  # in use by now: it is not ours
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
        if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # else the next file would get the number, and the messages
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    elif sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stderr.encoding
        binary = io.BufferedWriter(_Lenient(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(binary, encoding=encoding, errors="backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
