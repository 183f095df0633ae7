"""The exceptions that are one line for the user, and the nearest right spelling."""

import difflib
import os
import signal
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import final


class UserError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line: it names the thing, says what was expected and, where there is one, the nearest right
    spelling. The command line prints it alone and exits with code 2; every other exception is a bug of ours.

    Args:
        message: The line.
        table: Lines that follow it, for what one line cannot say.
    """

    def __init__(self, message: str = "", table: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.table = tuple(table)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *self.table])


class LostProcessError(RuntimeError):
    """One of several processes is gone or does not answer, so that this one cannot go on: no fault of the input.

    The command line prints its line alone and exits with code 75, which for schedulers means "try again".
    """


def shown(text: str) -> str:
    r"""Text as one line for a terminal or a table: what moves a cursor, breaks a line or has no letter is spelled out.

    Names of files, classes and layers are somebody else's, and may hold any character.

    Example:
        >>> shown("a\x1b[2Jb\nc")
        'a\\x1b[2Jb\\nc'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason_of(error: Exception) -> str:
    """An exception in one line: its type, unless it is an error of the input, and the first line of its text.

    Example:
        >>> reason_of(KeyError("color")), reason_of(UserError("no such color"))
        ("KeyError: 'color'", 'no such color')
    """
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: `` (did you mean "layer4"?)``, or an empty string when nothing is near.

    Example:
        >>> did_you_mean("layr4", ["layer3", "layer4", "fc"])
        ' (did you mean "layer4"?)'
        >>> did_you_mean("zebra", ["layer3"])
        ''
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' (did you mean "{near[0]}"?)' if near else ""


@contextmanager
def paths_explained() -> Generator[None, None, None]:
    """Reports an error of the system on a path as one line: the path, and what the system says.

    For all that asks about, lists or opens paths of the user; a block under ``with``, or a function as a decorator.
    Even ``Path.is_file`` raises, for example on a path inside a folder without rights or on a name of 300 letters.

    Raises:
        UserError: In place of an ``OSError`` that names a path; every other exception passes.

    Example:
        >>> with paths_explained():
        ...     os.scandir("no/such/folder")
        Traceback (most recent call last):
        limbeck.errors.UserError: "no/such/folder" cannot be used: no such file or directory
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(path_problem(error)) from error


def path_problem(error: OSError) -> str:
    """What is wrong with the path that an ``OSError`` names, in one line."""
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    why = error.strerror or str(error)
    return f'"{path}" cannot be used: {why[:1].lower()}{why[1:]}'


@final
class Stopped(KeyboardInterrupt):
    """A training was stopped by a signal, behind a checkpoint.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum

    @property
    def reason(self) -> str:
        """The signal's name."""
        return signal.Signals(self.signum).name
