"""The recipe: everything that defines a run, in one flat, checked, frozen record.

Its fields (`limbeck.recipes.fields`) are the command line's flags (``batch_size`` is ``--batch-size``), the lines of a
run's ``recipe.yaml``, and the arguments from which `limbeck.assembly.build` makes models, data, terms and optimiser.
Words choose code here and nowhere below. Nothing in this file imports torch.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

import yaml
from pydantic import ValidationError, model_validator

from limbeck.errors import UserError
from limbeck.recipes.fields import Settings
from limbeck.recipes.parsing import explain, explain_value, load_mapping, read_text, read_value
from limbeck.recipes.roles import (
    COMPARED,
    Kind,
    Read,
    Reads,
    Role,
    Whose,
    unread,
)
from limbeck.recipes.situations import CHOSEN, chosen
from limbeck.recipes.validation import plain, problem_of


class Recipe(Settings):
    """One run: which models, which images, what is minimised, and how. Checked when it is made, then frozen.

    Methods: ``alone`` minimises the task loss; ``kd`` adds the logit loss; ``projector`` adds the feature loss between
    the projected student feature and the teacher's; ``stages`` has such a loss also between the ends of the models'
    stages; those with ``+kd`` add both; the others add the loss of a published rival (`limbeck.assembly.rivals`),
    ``projector+dkd`` to the feature loss. Without labels the task loss is absent.

    Raises:
        UserError: A setting is unknown, has a value it cannot have, or contradicts another one (one line).

    Example:
        >>> recipe = Recipe(data="digits", student="small/cnn-2", teacher="small/cnn-32", epochs=30)
        >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
        True
        >>> recipe.difference(recipe.changed({"epochs": 40}))
        ['epochs: 30 -> 40']
    """

    if not TYPE_CHECKING:  # a type checker keeps the signature with the fields, which this line would hide

        def __init__(self, /, **values: object) -> None:
            self._fill(values)
            without_unread(self.model_dump(), given=values)

    def _fill(self, values: Mapping[str, Any]) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(explain(error, type(self).model_fields)) from None
        self.model_fields_set.difference_update(name for name in CHOSEN if values.get(name) is None)

    @classmethod
    def shared(cls, values: Mapping[str, object]) -> "Recipe":
        """A recipe from which those of several methods are made, so that it may have what its own does not read.

        Raises:
            UserError: As for any other recipe, but for settings that nothing reads.
        """
        recipe = cls.__new__(cls)
        recipe._fill(values)
        return recipe

    @model_validator(mode="before")
    @classmethod
    def _choose(cls, values: Any) -> Any:
        return {**values, **chosen(values)} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _agree(self) -> "Recipe":
        if (problem := _problem_of(self) or problem_of(self)) is not None:
            raise ValueError(problem)
        return self

    def changed(self, changes: Mapping[str, object]) -> "Recipe":
        """A checked copy with some settings changed; pydantic's own ``model_copy`` does not check.

        What the copy does not read any more, as a projector's settings under another method, is at its default there.

        Raises:
            UserError: A change is unknown, is read by nothing, or contradicts the rest.
        """
        return Recipe(**without_unread({**self.model_dump(), **changes}, given=changes))

    def difference(self, other: "Recipe", *, but: Collection[str] = ()) -> list[str]:
        """What is not the same in another recipe, as lines ``field: this -> other``; empty when they are equal.

        Args:
            other: The other recipe.
            but: Settings that may differ.
        """
        mine, theirs = self.model_dump(), other.model_dump()
        changed = [name for name in mine if mine[name] != theirs[name] and name not in but]
        return [f"{name}: {plain(mine[name])} -> {plain(theirs[name])}" for name in changed]

    def to_yaml(self) -> str:
        """Every setting, grouped, as YAML from which `from_yaml` makes an equal recipe again.

        What only other methods read, in a recipe for several, is a comment.
        """
        values = self.model_dump(mode="json")
        own = without_unread(self.model_dump(), given=())

        def line(name: str) -> str:
            text = yaml.safe_dump({name: values[name]}, allow_unicode=True, width=10_000)
            return text if own[name] == getattr(self, name) else f"# {text}"

        return "\n".join(f"# {group}\n" + "".join(map(line, names)) for group, names in GROUPS.items())

    @classmethod
    def from_yaml(cls, source: str | Path, *, called: str = "recipe", shared: bool = False) -> "Recipe":
        """Read a recipe by the safe loader; settings that are not in it have their defaults.

        Args:
            source: A ``Path`` is a file to read, a ``str`` is the YAML itself.
            called: What a text is called in an error's line; a file is called by its name.
            shared: Whether the recipes of several methods are made from it, see :meth:`shared`.

        Raises:
            UserError: The file cannot be read, or is not the YAML of a recipe.
        """
        text = source
        if isinstance(source, Path):
            text, called = read_text(source), str(source)
        values = load_mapping(str(text), called)
        try:
            return Recipe.shared(values) if shared else Recipe(**values)
        except UserError as error:
            raise UserError(f"{called}: {error}") from None


def _problem_of(recipe: Recipe) -> str | None:
    """What is wrong with the settings of the teacher's training; None where nothing is."""
    for word in recipe.teacher_settings or ():
        name, _, text = word.removeprefix(OF_STUDENT).partition("=")
        if name not in ONES_OWN:
            return f"teacher_settings: expected SETTING=VALUE of {', '.join(ONES_OWN)}, got {word!r}"
        try:
            read_value(text, Recipe.model_fields[name])
        except ValidationError:
            return f"teacher_settings: {name}: {explain_value(text, Recipe.model_fields[name])}"
    return None


def _groups() -> dict[str, tuple[str, ...]]:
    first = {"name": "models", "data": "data", "method": "method", "epochs": "optimization"}
    first |= {"cache_views": "cache", "probe": "diagnostics", "seed": "machine"}
    groups: dict[str, tuple[str, ...]] = {}
    group = ""
    for name in Recipe.model_fields:
        group = first.get(name, group)
        groups[group] = (*groups.get(group, ()), name)
    return groups


GROUPS = _groups()
"""Group -> its settings, in the order of the fields above; the YAML and the help show them so."""

ROLES: Mapping[str, Role] = {
    name: next(item for item in field.metadata if isinstance(item, Role)) for name, field in Recipe.model_fields.items()
}
"""Setting -> its role."""


def fields_of(*kinds: Kind, of: tuple[Whose, ...] = ("student", "teacher", "both")) -> tuple[str, ...]:
    """The settings of some kinds, in the order of the recipe.

    Args:
        kinds: What they decide.
        of: Whose training reads them.

    Example:
        >>> fields_of("arithmetic")
        ('precision', 'memory_format', 'compile')
    """
    return tuple(name for name, role in ROLES.items() if role.kind in kinds and role.of in of)


READS: Reads = {
    name: reads
    for name, field in Recipe.model_fields.items()
    if (reads := tuple(item for item in field.metadata if isinstance(item, Read)))
}
"""Setting -> when it is read."""


DEFAULTS: Mapping[str, object] = {
    name: None if field.is_required() else field.default for name, field in Recipe.model_fields.items()
}
"""Setting -> its default; None for the images, which have none."""


def without_unread(
    values: Mapping[str, object], *, given: Collection[str], variants: Iterable[Mapping[str, object]] = ({},)
) -> dict[str, Any]:
    """The values of a recipe, those that nothing reads at their defaults.

    Args:
        values: Every setting.
        given: Settings that were asked for: an error, if nothing reads them and they are not at their defaults.
        variants: The changes of each recipe that will be made; a setting is read if one of them reads it.

    Raises:
        UserError: Nothing reads a setting that was asked for; names it, and what would read it.

    Example:
        >>> kd = {**Recipe(data="digits", student="a", teacher="b", method="kd").model_dump(), "alpha": 2.0}
        >>> without_unread(kd, given=())["alpha"]
        4.0
    """
    result = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    changed = [{**result, **variant} for variant in variants]
    recipes = [{**recipe, **chosen(recipe)} for recipe in changed]
    for name in READS:
        default = DEFAULTS[name]
        if all(recipe[name] == default for recipe in recipes):
            continue
        found = [unread(name, recipe, READS) for recipe in recipes]
        if not all(found):
            continue
        if name in given:
            reasons = [reason for each in found for reason in each]
            has = dict.fromkeys(f"{other} {plain(value)}" for other, value, _ in reasons)
            needs = dict.fromkeys(f"{other} {', '.join(map(plain, wanted))}" for other, _, wanted in reasons)
            got = dict.fromkeys(plain(recipe[name]) for recipe in recipes)
            raise UserError(
                f"{name}: nothing reads it with {' and '.join(has)}, got {', '.join(got)}; leave it out, or choose "
                f"{' or '.join(needs)}"
            )
        result[name] = default
    return result


NOT_COMPARED = frozenset(ROLES) - frozenset(fields_of(*COMPARED))
"""Settings in which the runs of one row of a table may differ."""

ONES_OWN = tuple(
    name for name in fields_of("science", of=("both",)) if get_origin(Recipe.model_fields[name].annotation) is not tuple
)
"""Settings of a training that the teacher's may have another value of than the student's."""


OF_STUDENT = "student."
"""Before a word of ``teacher_settings``: the student's value for what the teacher takes from the student."""


def keeping_teacher(recipe: Recipe, changes: Mapping[str, object]) -> dict[str, object]:
    """What else changes with settings of a student's training, so that its teacher stays that of ``recipe``.

    Raises:
        UserError: The teacher's input would follow the student's, and nothing says how large that is.

    Example:
        >>> recipe = Recipe(data="digits", student="small/cnn-2", teacher="small/cnn-32", lr=0.05)
        >>> keeping_teacher(recipe, {"lr": 0.1, "alpha": 2.0})
        {'teacher_settings': ('student.lr=0.05',)}
        >>> keeping_teacher(recipe, {"lr": 0.05})
        {}
    """
    kept = [name for name in ONES_OWN if name in changes and changes[name] != getattr(recipe, name)]
    if not kept or recipe.teacher is None:
        return {}
    found: dict[str, object] = {}
    if recipe.teacher_weights is None and changes.get("milestones", recipe.milestones) != recipe.milestones:
        raise UserError("milestones: the teacher's would follow them; sweep the schedule with --teacher-weights")
    if "size" in kept and not unread("teacher_size", recipe.model_dump(), READS):
        kept.remove("size")
        if recipe.teacher_size is None:
            if recipe.size is None:
                raise UserError("size: the teacher's input would follow it; give --teacher-size")
            found["teacher_size"] = recipe.size
    given = recipe.teacher_settings or ()
    there = {word.partition("=")[0] for word in given}
    kept = [name for name in kept if name not in there and f"{OF_STUDENT}{name}" not in there]
    words = (*given, *(f"{OF_STUDENT}{name}={getattr(recipe, name)}" for name in kept))
    return found | ({"teacher_settings": words} if words else {})
