"""What is wrong with annotations, collected and told in one report."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal, final

from limbeck.errors import UserError

OnBad = Literal["refuse", "skip"]

_SHOWN = 3  # examples of a kind
_WIDTH = 100  # of an example


@final
class Problems:
    """Faults in the order in which they were met, by kind.

    Example:
        >>> problems = Problems()
        >>> problems.add("mask without a class", "cat.png: all void")
        >>> list(problems.lines())
        ['mask without a class: 1 (cat.png: all void)']
    """

    def __init__(self) -> None:
        self._faults = _Counted()
        self._remarks = _Counted()

    def __len__(self) -> int:
        """How many faults there are."""
        return self._faults.counts.total()

    def add(self, fault: str, where: str) -> None:
        """Note a fault.

        Args:
            fault: Its kind, as the report says it.
            where: The annotation and the image, and what was found.
        """
        self._faults.add(fault, where)

    def remark(self, remark: str, where: str) -> None:
        """Note what is no fault, but was read in another way than it stands there; arguments as of :meth:`add`."""
        self._remarks.add(remark, where)

    def lines(self) -> Iterator[str]:
        """One line a kind of fault, the most frequent first: how many there are, and the first ones."""
        return self._faults.lines()

    def remarks(self) -> Iterator[str]:
        """One line a kind of remark, as :meth:`lines`."""
        return self._remarks.lines()

    def settle(self, source: str, on_bad: OnBad) -> tuple[str, ...]:
        """Refuse the annotations, or say what was left out of them.

        Args:
            source: How messages call the annotations.
            on_bad: ``refuse`` or ``skip``.

        Returns:
            Notes for the log: the faults, and the remarks.

        Raises:
            UserError: There are faults, and they are to be refused; a line for each kind follows the first one.
        """
        if not len(self):
            return tuple(self.remarks())
        if on_bad == "refuse":
            head = f"{source}: {len(self)} faults in the annotations (--on-bad-annotations skip leaves them out)"
            raise UserError("\n".join([head, *(f"  {line}" for line in self.lines())]))
        return (f"{source}: {len(self)} faults in the annotations, skipped", *self.lines(), *self.remarks())


class _Counted:
    """How often each kind was met, and the first examples of it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _SHOWN:
            line = " ".join(where.split())
            examples.append(line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "...")

    def lines(self) -> Iterator[str]:
        for kind, count in self.counts.most_common():
            examples = self._examples[kind]
            more = "; ..." if count > len(examples) else ""
            yield f"{kind!s}: {count} ({'; '.join(examples)}{more})"
