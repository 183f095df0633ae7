"""The exceptions that are one line for the user, and the nearest right spelling."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user gave cannot be used.

    The message is one line: it names the thing, says what was expected and, where there is one, the nearest right
    spelling. The command line prints it alone and exits with code 2; every other exception is a bug of ours.
    """


class LostProcessError(RuntimeError):
    """One of several processes is gone or does not answer, so that this one cannot go on: no fault of the input.

    The command line prints its line alone and exits with code 75, which for schedulers means "try again".
    """


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
