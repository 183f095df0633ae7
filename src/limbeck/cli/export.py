"""``limbeck export``: write a run's student for use without Limbeck."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say
from limbeck.cli.words import arg

DESCRIPTION = """Write a run's student to one file.

Says how far its outputs are from the PyTorch student's."""


@dataclass(frozen=True)
class Flags:
    """The run, and the file."""

    run: Annotated[str, tyro.conf.Positional, arg(metavar="RUN", help="Run folder.")]
    format: Annotated[
        Literal["safetensors", "onnx", "torch-export"],
        arg(metavar="FORMAT", help="safetensors, onnx or torch-export."),
    ] = "safetensors"
    out: Annotated[str | None, arg(metavar="FILE", help="Default: beside the run's student.")] = None
    backbone: Annotated[
        bool,
        arg(help="Cut the classifier off; the output is the penultimate feature."),
        tyro.conf.FlagCreatePairsOff,
    ] = False


def main(words: Sequence[str]) -> int:
    """Print the file, its parity and what its users have to know."""
    flags = parse(Flags, words, command="export", description=DESCRIPTION)
    from limbeck.runs.export import export

    out = None if flags.out is None else Path(flags.out)
    written = export(Path(flags.run), format=flags.format, out=out, backbone=flags.backbone)
    say(f"{flags.format}: {written.path}")
    say(f"largest difference to the PyTorch student's outputs: {written.parity:.3g}")
    if written.note:
        say(written.note)
    return 0
