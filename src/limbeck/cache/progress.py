"""The progress bar of work on a cache."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from limbeck.distributed import collectives


def bar(shows: bool | None) -> Progress:
    """A bar with a rate and the time left, of the first process; by default only on a terminal.

    Tasks that are added to it need a field `rate`.
    """
    console = Console(stderr=True)
    visible = (console.is_terminal if shows is None else shows) and collectives.rank() == 0
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not visible,
        transient=True,
    )
