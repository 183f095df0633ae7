"""When it is time to look, by steps or by what looking may cost."""

import time
from typing import final

from limbeck.errors import UserError


@final
class Schedule:
    """Says when a look is due.

    With ``every`` at each step that it divides. Without: when the looks behind the first one, and one more as long as
    the last, take no more than ``budget`` of the time since the first. The first one is not counted, being there
    whatever it costs, and the longest: much is done for the first time.

    Args:
        every: Steps between two looks; None: as the budget allows.
        budget: Share of the time that looks may take.

    Raises:
        UserError: If ``every`` is below 1 or the budget out of its range.

    Example:
        >>> schedule = Schedule(every=3, budget=0.01)
        >>> [step for step in range(8) if schedule.is_due(step)]
        [0, 3, 6]
    """

    def __init__(self, *, every: int | None, budget: float) -> None:
        if every is not None and every < 1:
            raise UserError(f"Probe: every is {every}; expected at least 1")
        if not 0 < budget <= 1:
            raise UserError(f"Probe: budget is {budget}; expected a number above 0, at most 1")
        self._every = every
        self._budget = budget
        self._since: float | None = None  # when the first look was over,
        self._later = 0.0  # what those behind it took,
        self._latest = 0.0  # and the last one

    def is_due(self, step: int) -> bool:
        """Whether to look after so many steps."""
        if self._every is not None:
            return step % self._every == 0
        if self._since is None:
            return True
        return self._later + self._latest <= self._budget * (time.perf_counter() - self._since)

    def took(self, seconds: float) -> None:
        """A look is over, and took so long."""
        self._latest = seconds
        if self._since is None:
            self._since = time.perf_counter()
        else:
            self._later += seconds
