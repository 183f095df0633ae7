"""``limbeck benchmark``: what a training step costs here, against its floor and against peers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from limbeck.cli.flags import RecipeFlag, make_recipe, parse_recipe
from limbeck.cli.running import say_lines
from limbeck.cli.words import arg, check_number

DESCRIPTION = """Time a training step: Limbeck's own, the bare networks and optimizer (the floor), peers.

On random images, in turns, as ratios. Needs a machine that does nothing else.

Other packages are timed as their documentation runs them: timm's task for two models of timm,
torchdistill's SRD where torchdistill is installed (pip install "limbeck[bench]")."""

FIELDS = (
    "teacher", "teacher_size", "teacher_tap", "teacher_pool", "student", "student_tap", "student_pool", "size",
    "method", "feature_loss", "alpha", "projector", "projector_hidden", "projector_rank", "inverted", "input_norm",
    "student_norm", "teacher_norm", "logit_loss", "batch_size", "optimizer", "precision", "memory_format", "compile",
    "device",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkFlags(RecipeFlag):
    """How long, against whom, and where the figures go."""

    rounds: Annotated[
        int,
        arg(metavar="INT", help="Rounds that count; each loop's turn is about 1 s."),
    ] = 15
    classes: Annotated[int, arg(metavar="INT", help="Classes of the labels.")] = 100
    peers: Annotated[bool, arg(help="Also time other packages.")] = True
    out: Annotated[str | None, arg(metavar="FILE.json", help="Write the figures there too; must not exist.")] = None


def main(words: Sequence[str]) -> int:
    """Print the table, and write the figures where asked."""
    fields = {name: name for name in FIELDS}
    fallback = {"method": "projector+kd", "data": "random"}
    values, options = parse_recipe(
        words, BenchmarkFlags(), command="benchmark", description=DESCRIPTION, fields=fields, fallback=fallback
    )
    recipe = make_recipe(values, fields, words)
    from rich.console import Console
    from rich.progress import Progress

    from limbeck.benchmark import benchmark
    from limbeck.errors import UserError
    from limbeck.storage.files import save_text

    check_number("rounds", options.rounds)
    check_number("classes", options.classes, least=2, most=1_000_000)
    if options.out is not None and Path(options.out).exists():
        raise UserError(f"--out {options.out}: exists already")
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("rounds", total=None)
        result = benchmark(
            recipe,
            classes=options.classes,
            rounds=options.rounds,
            with_peers=options.peers,
            say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
            on_round=lambda done, of: progress.update(bar, completed=done, total=of),
        )
    say_lines(result.table())
    if options.out is not None:
        save_text(json.dumps(result.record(), indent=1) + "\n", Path(options.out))
    return 0
