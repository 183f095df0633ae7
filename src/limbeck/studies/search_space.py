"""What a sweep may change: some settings of a recipe, each with a list of values or a range of numbers.

On a command line an axis is one word: ``alpha=1,2,4``, ``student_norm=batch,layer``, ``feature_weight=0.1..10:log``.
"""

import itertools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from limbeck.errors import UserError, did_you_mean
from limbeck.recipes.parsing import explain_value, read_value
from limbeck.recipes.recipe import ROLES, Recipe, fields_of, keeping_teacher, without_unread
from limbeck.recipes.roles import Kind
from limbeck.recipes.values import LOGIT_METHODS
from limbeck.studies.compare import method_changes

Value = str | float | int | bool | None
Settings = Mapping[str, Value]

_WHY: Mapping[Kind, str] = {
    "data": "runs are compared on the same images and labels",
    "seed": "the best setting would be the luckiest seed; --seeds confirms the best ones on others",
    "arithmetic": "all trials have one arithmetic",
    "machine": "it does not decide the student",
    "faults": "it does not decide a student whose images and numbers are sound",
    "bookkeeping": "it does not decide the student",
}
FIXED = {name: _WHY[role.kind] for name, role in ROLES.items() if role.kind in _WHY} | dict.fromkeys(
    fields_of("science", of=("teacher",)), "all trials have one teacher"
)
"""Settings that cannot be swept, and why."""

EXAMPLE = "for example alpha=1,2,4 or feature_weight=0.1..10:log"
DIGITS = 3  # significant, of a number that is drawn from a range: what is printed is what is trained with
MOST_CHECKED = 1000  # combinations of a space that are looked at before anything is trained


@dataclass(frozen=True)
class Choices:
    """A setting that takes one of some values.

    Attributes:
        name: The setting.
        values: At least two.
    """

    name: str
    values: tuple[Value, ...]

    @property
    def samples(self) -> tuple[Value, ...]:
        """Values to check the recipe with: all of them."""
        return self.values

    def __str__(self) -> str:
        return f"{self.name}={','.join(map(written, self.values))}"


@dataclass(frozen=True)
class Range:
    """A setting that takes any number between two, both included.

    Attributes:
        name: The setting.
        low: The smallest.
        high: The largest.
        log: Whether factors count, not differences.
        whole: Whether only whole numbers are taken.
    """

    name: str
    low: float
    high: float
    log: bool
    whole: bool

    @property
    def samples(self) -> tuple[Value, ...]:
        """Values to check the recipe with: both ends."""
        return (self.low, self.high)

    def rounded(self, drawn: float) -> float:
        """A number that was drawn, to three significant digits.

        Example:
            >>> Range("feature_weight", 0.1, 10.0, log=True, whole=False).rounded(0.53189)
            0.532
        """
        return drawn if self.whole else min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def __str__(self) -> str:
        return f"{self.name}={written(self.low)}..{written(self.high)}{':log' if self.log else ''}"


Axis = Choices | Range


def written(value: Value) -> str:
    """A value as a command line has it.

    Example:
        >>> written(4.0), written(None), written("batch")
        ('4', 'None', 'batch')
    """
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def described(settings: Settings) -> str:
    """Settings in words.

    Example:
        >>> described({"alpha": 2.0, "student_norm": "batch"})
        'alpha 2, student_norm batch'
    """
    return ", ".join(f"{name} {written(value)}" for name, value in settings.items())


def parse_space(words: Sequence[str]) -> tuple[Axis, ...]:
    """The axes that some words name.

    Raises:
        UserError: A word is no axis, names no setting of a recipe, or a value that the setting cannot have.

    Example:
        >>> [str(axis) for axis in parse_space(["alpha=2,4", "feature-weight=0.1..10:log"])]
        ['alpha=2,4', 'feature_weight=0.1..10:log']
    """
    if not words:
        raise UserError(f"--space: missing; name the settings and their values, {EXAMPLE}")
    axes = tuple(_parse(word) for word in words)
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--space: {name} is given twice; give all its values at once")
    return axes


def _parse(word: str) -> Axis:
    name, equals, text = word.partition("=")
    name = name.replace("-", "_")
    if not equals or not name:
        raise UserError(f"--space: expected SETTING=VALUES, got {word!r}; {EXAMPLE}")
    if name not in Recipe.model_fields:
        raise UserError(f"--space: unknown setting {name!r}{did_you_mean(name, Recipe.model_fields)}")
    if name in FIXED:
        raise UserError(f"--space: {name} cannot be swept: {FIXED[name]}")
    field = Recipe.model_fields[name]
    kinds = set(_kinds(field.annotation))
    if tuple in kinds:
        raise UserError(f"--space: {name} takes several values at once, and cannot be swept")
    if ".." in text and kinds & {int, float}:
        return _range(name, text, field, whole=float not in kinds)
    return _choices(name, text, field)


def _kinds(annotation: Any) -> Iterator[type]:
    """The types that a field may hold; a choice of words is str, several values are tuple."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif hasattr(annotation, "__metadata__"):
        yield from _kinds(get_args(annotation)[0])
    elif origin is tuple:
        yield tuple
    else:
        yield annotation if isinstance(annotation, type) else str


def _choices(name: str, text: str, field: FieldInfo) -> Choices:
    values = tuple(_value(name, part.strip(), field) for part in text.split(","))
    if len(set(values)) < len(values):
        raise UserError(f"--space: {name} has a value twice: {text}")
    if len(values) < 2:
        raise UserError(f"--space: {name} has one value, which is no choice; give --{name.replace('_', '-')} {text}")
    return Choices(name, values)


def _range(name: str, text: str, field: FieldInfo, *, whole: bool) -> Range:
    numbers, colon, scale = text.partition(":")
    if colon and scale != "log":
        raise UserError(f"--space: {name}: after a range expected :log or nothing, got {':' + scale!r}")
    low, high = (_value(name, part.strip(), field) for part in numbers.split("..", 1))
    if not _is_finite(low) or not _is_finite(high) or not low < high:
        raise UserError(f"--space: {name}: expected a smaller and a larger number, got {numbers}")
    if scale and low <= 0:
        raise UserError(f"--space: {name}: a range of factors (:log) begins above 0, got {numbers}")
    return Range(name, low, high, log=bool(scale), whole=whole)


def _is_finite(value: Value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _value(name: str, text: str, field: FieldInfo) -> Any:
    if not text:
        raise UserError(f"--space: {name}: a value is missing; {EXAMPLE}")
    try:
        return read_value(text, field)
    except ValidationError:
        raise UserError(f"--space: {name}: {explain_value(text, field)}") from None


def combinations(space: Sequence[Axis]) -> Iterator[dict[str, Value]]:
    """All combinations of the values; of a range its two ends."""
    names = [axis.name for axis in space]
    for values in itertools.product(*(axis.samples for axis in space)):
        yield dict(zip(names, values, strict=True))


def is_grid(space: Sequence[Axis]) -> bool:
    """Whether a space has lists alone, so that there is a last combination."""
    return all(isinstance(axis, Choices) for axis in space)


def changed(recipe: Recipe, space: Sequence[Axis], settings: Settings) -> Recipe:
    """A recipe with the settings of one trial; those that it does not read are at their defaults.

    The teacher stays that of the recipe as it was given. Where the methods of the space differ, its head is fitted for
    all where one of them compares logits, as in `limbeck.studies.compare`.

    Raises:
        UserError: If they contradict each other.
    """
    values = without_unread({**recipe.model_dump(), **_changes(recipe, space, settings)}, given=())
    return Recipe(**without_unread({**values, **keeping_teacher(recipe, values)}, given=()))


def _changes(recipe: Recipe, space: Sequence[Axis], settings: Settings) -> dict[str, object]:
    """What a trial changes, whether or not it reads it."""
    methods = next((axis.samples for axis in space if axis.name == "method"), ())
    if not methods:
        return dict(settings)
    fitted = recipe.fit_teacher or any(method in LOGIT_METHODS for method in methods)
    method: Any = settings["method"]
    return {**settings, **method_changes(recipe, method, recipe.seed, fitted=fitted)}


def check_space(recipe: Recipe, space: Sequence[Axis]) -> int:
    """How many of the first thousand combinations contradict themselves, which a sweep passes over.

    Raises:
        UserError: If all of them do, or if none of them reads what one of the axes changes.
    """
    looked_at = list(itertools.islice(combinations(space), MOST_CHECKED))
    variants = [_changes(recipe, space, settings) for settings in looked_at]
    try:
        without_unread(recipe.model_dump(), given=[axis.name for axis in space], variants=variants)
    except UserError as error:
        raise UserError(f"--space: {error}") from None
    problems: list[str] = []
    for settings in looked_at:
        try:
            changed(recipe, space, settings)
        except UserError as error:
            problems.append(f"{described(settings)}: {error}")
    if len(problems) == len(looked_at):
        raise UserError(f"--space: no combination is a recipe; {problems[0]}")
    return len(problems)
