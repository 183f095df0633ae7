"""The words of a command line: which flags are in them, and why a parser refused them, in one line."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import tyro
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from limbeck.errors import UserError, did_you_mean
from limbeck.recipes.parsing import expected, explain_value, read_value

NO_REMOTE_CODE = (
    "--trust-remote-code: there is no such flag, since code of a repository is never run; to use a model that needs "
    "its own, load it in a function of yours and name that as module:function"
)


LEFT_OPEN = ("flip", "frozen_norms")
"""Switches that are neither on nor off where they are not given; tyro wants a value of them."""

_SWITCH = ("true", "false", "yes", "no", "on", "off", "1", "0")


def given_flags(words: Sequence[str]) -> dict[str, list[str]]:
    """Flag -> the words behind it, up to the next flag; underscores and hyphens are the same."""
    given: dict[str, list[str]] = {}
    current: list[str] = given.setdefault("", [])
    for word in words:
        if is_flag(word):
            name, equals, value = word.lstrip("-").partition("=")
            current = given[name.replace("-", "_")] = [value] if equals else []
        else:
            current.append(word)
    return given


def is_flag(word: str) -> bool:
    """Whether a word is a flag, and no value: negative numbers are values."""
    return bool(re.match(r"^--?[A-Za-z]", word))


def as_flags(words: Sequence[str]) -> list[str]:
    """The words as tyro reads them.

    ``--resume`` without a run means the one in --out: an empty value, since tyro wants one. ``--labels FILE`` is
    ``--label-file FILE``, since tyro gives switches no value. ``--flip`` and ``--no-flip`` are ``--flip True`` and
    ``--flip False``.
    """
    result: list[str] = []
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = value if equals else words[index + 1] if index + 1 < len(words) else "-"
        if name == "--labels" and not following.startswith("-") and following.lower() not in _SWITCH:
            word = f"--label-file{equals}{value}"  # noqa: PLW2901
        off, switch = word.startswith("--no-"), word.removeprefix("--").removeprefix("no-").replace("-", "_")
        if switch in LEFT_OPEN and (off or following == "-" or is_flag(following)):
            result += [f"--{switch}", str(not off)]
            continue
        result.append(word)
        if word == "--resume" and (index + 1 == len(words) or is_flag(words[index + 1])):
            result.append("")
    return result


def _known(kind: type[Any]) -> dict[str, FieldInfo]:
    """Every flag of a dataclass of flags and of its parts, with its type."""
    known: dict[str, FieldInfo] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            known |= _known(cast(type[Any], hint))
            continue
        known[name] = FieldInfo.from_annotation(hint)
    return known


RENAMED: Mapping[str, Mapping[str, str]] = {"train": {"student": "model", "student_weights": "weights"}}
"""Command -> settings of a recipe that it calls by another name."""


def _default(text: str) -> str:
    return "" if text in ("", "None") else f"(default: {text})"


arg = functools.partial(tyro.conf.arg, help_behavior_hint=_default)
"""A flag's help and metavar; the help itself says what happens if a flag without a value is not given."""


def check_number(flag: str, value: int, *, least: int = 1, most: int = 10_000) -> None:
    """Refuse a whole number that no command can carry out.

    Raises:
        UserError: It is not within the bounds.
    """
    if not least <= value <= most:
        raise UserError(f"--{flag}: expected a whole number from {least} to {most:,}, got {value}")


def diagnose(kind: type[Any], words: Sequence[str], command: str) -> str | None:
    """Say in one line why tyro refused a command line."""
    known = _known(kind)
    positional = [name for name, hint in get_type_hints(kind, include_extras=True).items() if _is_positional(hint)]
    flags = {name: info for name, info in known.items() if name not in positional}
    spellings = [*flags, *(f"no_{name}" for name, info in flags.items() if info.annotation is bool)]
    given = given_flags(words)
    for word in (word for word in words if is_flag(word)):
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        if name == "trust_remote_code":
            return NO_REMOTE_CODE
        if name not in spellings:
            if (other := RENAMED.get(command, {}).get(name)) is not None:
                return f'unknown flag "{word.partition("=")[0]}" (did you mean "--{other}"?)'
            near = did_you_mean(f"--{name}".replace("_", "-"), [f"--{each}".replace("_", "-") for each in spellings])
            return f'unknown flag "{word.partition("=")[0]}"{near or f"; `limbeck {command} --help` lists the flags"}'
    loose = list(given.pop(""))
    for name, values in given.items():
        taken = _taken(name, flags)
        if (problem := _diagnose_flag(name, values[:taken], flags)) is not None:
            return problem
        loose += values[taken:]
    if len(loose) > len(positional):
        return f'unexpected "{loose[len(positional)]}"; a flag begins with --, and takes one value'
    missing = positional[len(loose) :]
    return f"{missing[0].upper()}: missing; `limbeck {command} --help` says what it is" if missing else None


def _taken(name: str, flags: Mapping[str, FieldInfo]) -> int:
    """How many of the words behind a flag are its values."""
    field = flags.get(name)
    if field is None or field.annotation is bool:
        return 0
    return 1_000_000 if get_origin(field.annotation) is tuple else 1


def _diagnose_flag(name: str, values: Sequence[str], flags: Mapping[str, FieldInfo]) -> str | None:
    field = flags.get(name)
    if field is None or field.annotation is bool:
        return None
    shown = "--" + name.replace("_", "-")
    many = get_origin(field.annotation) is tuple
    if not values and not many and name != "resume":
        return f"{shown}: its value is missing; expected {expected(field)}"
    one = FieldInfo(annotation=get_args(field.annotation)[0]) if many else field
    for value in values:
        try:
            read_value(value, one)
        except ValidationError:
            return f"{shown}: {explain_value(value, one)}"
    return None


def _is_positional(hint: Any) -> bool:
    return get_origin(hint) is Annotated and any(part is tyro.conf.Positional for part in get_args(hint)[1:])


def flattened(box: str) -> str:
    """The text of one of tyro's boxes as one line, for what the diagnosis does not know."""
    return " ".join(re.sub(r"[\u2500-\u257f]+", " ", box).split())
