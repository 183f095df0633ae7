"""What verdicts are made of: the records of a run, sorted, and what a rule says of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from limbeck.logs.records import Record, mapping


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong with a run.

    Attributes:
        name: Of the rule, for programs, for instance "collapsed-projector".
        title: The fault in a few words.
        seen: What the records show, with figures.
        means: What that usually means.
        remedy: What to try.
        figure: Id of the chart in the report that shows it; empty where a line of figures says it all.
        term: Name of the term that it is about; empty where it is about the whole run.
    """

    name: str
    title: str
    seen: str
    means: str
    remedy: str
    figure: str = ""
    term: str = ""


@dataclass(frozen=True)
class Evidence:
    """The records of a run, sorted by what they are."""

    probes: tuple[Record, ...]
    data: Record
    inputs: Record
    start: Record = field(default_factory=dict[str, Any])

    def feature_terms(self, *, stages: bool = True) -> Iterator[tuple[str, Record, Record]]:
        """Name, first and last record of each term with a projector that was probed at least twice.

        Args:
            stages: Also those of the ends of stages, which have the name of the last layer's and a number.
        """
        names = mapping(self.probes[-1], "terms") if self.probes else {}
        for name in names:
            if not stages and name != (whole := name.rstrip("0123456789")) and whole in names:
                continue
            found = [record for probe in self.probes if (record := mapping(probe, "terms", name))]
            if len(found) > 1 and "widths" in found[-1]:
                yield name, found[0], found[-1]


def percent(share: float) -> str:
    """A share for people, with two digits."""
    if 0 < share < 1e-4:
        return "less than 0.01%"
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"
