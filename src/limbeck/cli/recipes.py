"""``limbeck recipes``: list the named recipes, or print one."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say
from limbeck.recipes import NAMED, named

DESCRIPTION = """List the recipes that have a name, or print one.

What is printed for a name is its record and a YAML file that --recipe reads."""


@dataclass(frozen=True)
class Flags:
    """Which recipe."""

    name: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help="A recipe; without it all are listed.")
    ] = None


def main(words: Sequence[str]) -> int:
    """Print the table of all recipes, or the record and the YAML of one."""
    flags = parse(Flags, words, command="recipes", description=DESCRIPTION)
    if flags.name is None:
        width = max(map(len, NAMED))
        for name, function in NAMED.items():
            say(f"{name:<{width}}  {(inspect.getdoc(function) or '').splitlines()[0]}")
        return 0
    recipe = named(flags.name)
    # As comments: what is printed is a file that --recipe reads.
    for line in (inspect.getdoc(NAMED[flags.name]) or "").splitlines():
        say(f"# {line}".rstrip())
    say()
    say(recipe.to_yaml().rstrip())
    return 0
