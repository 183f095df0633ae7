"""``limbeck evaluate``: score a run's student."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from limbeck.cli.flags import parse
from limbeck.cli.running import say
from limbeck.cli.words import arg
from limbeck.logs.records import figure

DESCRIPTION = """Score a run's student on its validation images, or on others of its classes.

With --probe, score its features; its classifier and classes do not matter."""


@dataclass(frozen=True)
class Flags:
    """The run, and the images."""

    run: Annotated[str, tyro.conf.Positional, arg(metavar="RUN", help="Run folder.")]
    data: Annotated[
        str | None,
        arg(
            metavar="SOURCE",
            help="Images to score on, all of them or their validation part. Default: the run's own validation images.",
        ),
    ] = None
    label_file: Annotated[
        str | None,
        arg(metavar="FILE.csv", help="Their classes, a row FILE,CLASS for each image. Also --labels FILE."),
    ] = None
    probe: Annotated[
        tuple[Literal["knn", "linear"], ...],
        arg(
            metavar="knn|linear [knn|linear ...]",
            help="knn: 20 nearest neighbours; linear: a linear classifier on frozen features.",
        ),
    ] = ()


def main(words: Sequence[str]) -> int:
    """Print how many images are scored, and each figure on a line of its own."""
    flags = parse(Flags, words, command="evaluate", description=DESCRIPTION)
    from limbeck.runs.inspection import evaluate

    if flags.probe:
        from limbeck.runs.features import judge_features

        found = judge_features(Path(flags.run), flags.probe, data=flags.data, label_file=flags.label_file, say=say)
        for name, share in found.items():
            say(f"{name} top-1: {figure('top1', share)}")
        return 0
    for name, value in evaluate(Path(flags.run), data=flags.data, label_file=flags.label_file, say=say).items():
        say(f"{name}: {figure(name, value)}")
    return 0
