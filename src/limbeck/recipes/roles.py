"""What each setting of a recipe is for, whose training reads it, and when. Lists of settings are computed from this.

A field of the recipe has its role where it is declared: ``lr: Annotated[Positive, SHARED]``. Which settings tell two
runs apart, may change when a run is resumed, or decide the teacher then follows (`limbeck.recipes.recipe.fields_of`).
A setting that not every recipe reads has one or more `Read` beside its role: ``Read(projector=("mlp",))``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["science", "data", "seed", "arithmetic", "machine", "faults", "bookkeeping"]
"""What a setting decides.

science: the student. data: the images that runs are compared on. seed: chance. arithmetic: the last digits and the
speed; one for all runs that are compared. machine: where and how quickly. faults: what happens at bad input or bad
numbers, and nothing else. bookkeeping: names, and what is measured or written.
"""

Whose = Literal["student", "teacher", "both"]


@dataclass(frozen=True)
class Role:
    """The role of one setting.

    Attributes:
        kind: What it decides.
        of: Whose training reads it; ``teacher``: what decides the teacher alone, its weights included.
    """

    kind: Kind
    of: Whose


NUMBER = "a number"
"""Of `Read`: any number."""


class Read:
    """When a setting is read: if each of these other settings has one of the values, and is read itself.

    Several of them at one setting are alternatives.

    Example:
        >>> dict(Read(optimizer=("sgd",)).of)
        {'optimizer': ('sgd',)}
    """

    def __init__(self, **of: tuple[object, ...]) -> None:
        self.of: Mapping[str, tuple[object, ...]] = of


STUDENT = Role("science", "student")
TEACHER = Role("science", "teacher")
SHARED = Role("science", "both")
DATA = Role("data", "both")
SEED = Role("seed", "student")
ARITHMETIC = Role("arithmetic", "both")
MACHINE = Role("machine", "both")
FAULTS = Role("faults", "both")
BOOKKEEPING = Role("bookkeeping", "both")

RESUMABLE: tuple[Kind, ...] = ("machine", "faults", "bookkeeping")
"""What may change when a run is resumed: none of it decides a student whose numbers are sound."""

COMPARED: tuple[Kind, ...] = ("science", "data", "arithmetic", "faults")
"""What two runs of one table have in common, but for what the table compares."""

Reads = Mapping[str, tuple[Read, ...]]
"""Setting -> when it is read; a setting that is not in it always is."""


def unread(name: str, values: Mapping[str, object], reads: Reads) -> list[tuple[str, object, tuple[object, ...]]]:
    """Why nothing reads a setting: other settings, the values that they have, those that they would need; or nothing.

    Args:
        name: The setting.
        values: All settings.
        reads: When each is read.
    """
    reasons: list[tuple[str, object, tuple[object, ...]]] = []
    for read in reads.get(name, ()):
        missing: list[tuple[str, object, tuple[object, ...]]] = []
        for other, wanted in read.of.items():
            value = values[other]
            fits = value in wanted or (NUMBER in wanted and isinstance(value, int | float))
            missing = unread(other, values, reads) or ([] if fits else [(other, value, wanted)])
            if missing:
                break
        if not missing:
            return []
        reasons += missing
    return reasons
