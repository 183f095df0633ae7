"""Verdicts on a run: what its records show, what that usually means, and what to try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """What a rule makes of a run.

    Attributes:
        name: The rule.
        title: The fault in a few words.
        seen: What the records show.
        means: What that usually means.
        try_: What to try.
        figure: Name of the figure of the report that shows it.
    """

    name: str
    title: str
    seen: str
    means: str
    try_: str
    figure: str


def verdicts(records: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Judge a run by the records of its log.

    Args:
        records: The parsed lines of ``log.jsonl``.

    Returns:
        The faults that were found, the gravest first; empty for a healthy run.
    """
    return []
