"""``limbeck evaluate``: score a run's student."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say
from limbeck.logs.records import figure

DESCRIPTION = """Score a run's student on its validation images, or on others of its classes."""


@dataclass(frozen=True)
class Flags:
    """The run, and the images."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Run folder.")]
    data: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="SOURCE",
            help="Images to score on, all of them or their validation part. Default: the run's own validation images.",
        ),
    ] = None
    label_file: Annotated[
        str | None,
        tyro.conf.arg(metavar="FILE.csv", help="Their classes, a row FILE,CLASS for each image. Also --labels FILE."),
    ] = None


def main(words: Sequence[str]) -> int:
    """Print how many images are scored, and each figure on a line of its own."""
    flags = parse(Flags, words, command="evaluate", description=DESCRIPTION)
    from limbeck.runs.inspection import evaluate

    for name, value in evaluate(Path(flags.run), data=flags.data, label_file=flags.label_file, say=say).items():
        say(f"{name}: {figure(name, value)}")
    return 0
