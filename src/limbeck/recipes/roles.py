"""What each setting of a recipe is for, and whose training reads it. Every list of settings is computed from this.

A field of the recipe has its role where it is declared: ``lr: Annotated[Positive, SHARED]``. Which settings tell two
runs apart, may change when a run is resumed, or decide the teacher then follows (`limbeck.recipes.recipe.fields_of`).
"""

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
