"""``limbeck recipes``: list the named recipes, or print one."""

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say, say_lines
from limbeck.cli.words import arg
from limbeck.recipes import NAMED, named

DESCRIPTION = """List the recipes that have a name, or print one.

What is printed for a name is its record and a YAML file that --recipe reads."""


@dataclass(frozen=True)
class Flags:
    """Which recipe."""

    name: Annotated[
        str | None, tyro.conf.Positional, arg(metavar="NAME", help="A recipe; without it all are listed.")
    ] = None


def main(words: Sequence[str]) -> int:
    """Print the table of all recipes, or the record and the YAML of one."""
    flags = parse(Flags, words, command="recipes", description=DESCRIPTION)
    if flags.name is None:
        margin = " " * (max(map(len, NAMED)) + 2)
        columns = max(shutil.get_terminal_size().columns, len(margin) + 30)
        for name, function in NAMED.items():
            line = f"{name:<{len(margin)}}{(inspect.getdoc(function) or '').splitlines()[0]}"
            say_lines(textwrap.fill(line, columns, subsequent_indent=margin, break_on_hyphens=False))
        return 0
    recipe = named(flags.name)
    # As comments: what is printed is a file that --recipe reads.
    for line in (inspect.getdoc(NAMED[flags.name]) or "").splitlines():
        say(f"# {line}".rstrip())
    say()
    say_lines(recipe.to_yaml().rstrip())
    return 0
