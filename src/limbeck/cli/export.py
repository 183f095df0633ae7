"""``limbeck export``: write a run's student for use without Limbeck."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say

DESCRIPTION = """Write a run's student to one file.

Says how far its outputs are from the PyTorch student's."""


@dataclass(frozen=True)
class Flags:
    """The run, and the file."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Run folder.")]
    format: Annotated[
        Literal["safetensors", "onnx", "torch-export"],
        tyro.conf.arg(metavar="FORMAT", help="safetensors, onnx or torch-export."),
    ] = "safetensors"
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE", help="The file; None: beside the run's student.")] = None


def main(words: Sequence[str]) -> int:
    """Print the file, its parity and what its users have to know."""
    flags = parse(Flags, words, command="export", description=DESCRIPTION)
    from limbeck.runs.export import export

    written = export(Path(flags.run), format=flags.format, out=None if flags.out is None else Path(flags.out))
    say(f"{flags.format}: {written.path}")
    say(f"largest difference to the PyTorch student's outputs: {written.parity:.3g}")
    if written.note:
        say(written.note)
    return 0
