"""Typed flags from the recipe's fields: tyro reads them and prints their help; what is wrong becomes one line.

A flag is a field of the recipe (``batch_size`` is ``--batch-size``) with the field's type, default and description.
``--recipe`` and ``--resume`` are looked at first, because they decide the defaults under the other flags.
"""

import contextlib
import dataclasses
import functools
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import tyro

from limbeck.cli.words import arg, as_flags, diagnose, flattened, given_flags
from limbeck.errors import UserError
from limbeck.logs.records import COMPARISON_FILE
from limbeck.recipes.published import NAMED, NO_FOLDER, named
from limbeck.recipes.recipe import DEFAULTS, GROUPS, Recipe, without_unread
from limbeck.recipes.situations import CHOSEN
from limbeck.studies.compare import recorded_recipe

Parsed = TypeVar("Parsed")

METAVARS = {
    "name": "NAME",
    "teacher": "MODEL",
    "teacher_weights": "FILE|RUN",
    "teacher_settings": "SETTING=VALUE ...",
    "teacher_tap": "MODULE",
    "student": "MODEL",
    "student_weights": "FILE|RUN",
    "student_tap": "MODULE",
    "student_logit_tap": "MODULE",
    "data": "SOURCE",
    "val": "SOURCE",
    "label_file": "FILE.csv",
    "milestones": "EPOCH ...",
    "cache_folder": "FOLDER",
    "loggers": "NAME ...",
}
"""What stands for a value in the help, where tyro's own word would say less."""

NUMBERS = {bool: "{True,False}", int: "INT", float: "FLOAT"}


@dataclass(frozen=True)
class RunFlags:
    """What the run starts from, and where it goes."""

    recipe: Annotated[
        str | None,
        arg(metavar="NAME|FILE.yaml", help="Recipe to start from; the other flags override it."),
    ] = None
    out: Annotated[
        str | None,
        arg(metavar="FOLDER", help="Folder of the run. Default: runs/NAME-STUDENT-METHOD-seedN."),
    ] = None
    resume: Annotated[
        str | None,
        arg(
            metavar="[RUN]",
            help="Continue the run in RUN (or in --out). Its recipe must be the same; without one, the run's is taken.",
        ),
    ] = None
    resume_if_begun: Annotated[
        bool,
        arg(help="Continue if --out holds this run, else start it (for schedulers that restart commands)."),
        tyro.conf.FlagCreatePairsOff,
    ] = False
    dry_run: Annotated[
        bool,
        arg(help="Print the recipe, shapes, parameter counts and FLOPs; train nothing."),
        tyro.conf.FlagCreatePairsOff,
    ] = False


@dataclass(frozen=True)
class RecipeFlag:
    """What the check starts from."""

    recipe: Annotated[
        str | None,
        arg(metavar="NAME|FILE.yaml", help="Recipe to start from; the other flags override it."),
    ] = None


def parse(
    kind: type[Parsed], words: Sequence[str], *, command: str, description: str, default: Parsed | None = None
) -> Parsed:
    """Read a command's flags into an object of ``kind``, a dataclass whose fields are the flags.

    Args:
        kind: The dataclass.
        words: The command line behind the command.
        command: The command's name.
        description: The first lines of its help.
        default: What the flags are that are not given; None: as ``kind`` says.

    Raises:
        UserError: A flag is unknown (the nearest is named), lacks its value, or has one of another type.
        SystemExit: Help was asked for, and has been printed.
    """
    said, words = io.StringIO(), as_flags(words)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=f"limbeck {command}",
                description=description,
                args=words,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(diagnose(kind, words, command) or flattened(said.getvalue())) from None


def parse_recipe(
    words: Sequence[str],
    options: Any,
    *,
    command: str,
    description: str,
    fields: Mapping[str, str],
    fallback: Mapping[str, object],
) -> tuple[dict[str, object], Any]:
    """Read the flags of a command that takes a recipe: base, then flags on top.

    Args:
        words: The command line behind the command.
        options: The command's other flags, a dataclass object with their defaults.
        command: The command's name.
        description: The first lines of its help.
        fields: Which of the recipe's fields are flags here: field -> name of the flag.
        fallback: Defaults other than the recipe's own, for when there is no ``--recipe``.

    Returns:
        The recipe's values (those of fields that are no flags here come from the base), and the other flags' object.
    """
    defaults = _base(words) or {**DEFAULTS, **fallback}
    kind, groups = _flags_types(command, type(options), tuple(fields.items()))
    default = kind(
        run=options,
        **{
            group: of_group(**{fields[name]: defaults[name] for name in GROUPS[group] if name in fields})
            for group, of_group in groups.items()
        },
    )
    parsed: Any = parse(kind, words, command=command, description=description, default=default)
    values = dict(defaults)
    for group in GROUPS:
        if (part := getattr(parsed, group, None)) is not None:
            values |= {field: getattr(part, flag) for field, flag in fields.items() if hasattr(part, flag)}
    return values, parsed.run


def make_recipe(
    values: Mapping[str, object],
    flags: Mapping[str, str],
    words: Sequence[str],
    *,
    variants: Sequence[Mapping[str, object]] = ({},),
) -> Recipe:
    """The recipe of a command line.

    Args:
        values: Every setting.
        flags: Setting -> name of its flag; errors name the flag.
        words: The command line behind the command. Something has to read what it gives, and what a file of --recipe
            gives; what the flags leave without use is at its default.
        variants: The changes of each recipe that is made of this one; by default there is this one alone.

    Raises:
        UserError: Settings contradict each other, nothing reads one, or the images are not named.
    """
    data = values.get("data")
    if data is None or str(data).split(":")[-1] == NO_FOLDER:
        form = "FOLDER" if data is None else str(data)
        raise UserError(f"--data: missing; name the images, for example --data {form}")
    if (file := _file_of(words)) is not None:
        base = Recipe.from_yaml(file, shared=True)
        try:
            without_unread(base.model_dump(), given=base.model_fields_set, variants=[{}, *variants])
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    given = given_flags(words).keys()
    asked = {name for name, flag in flags.items() if flag in given or f"no_{flag}" in given}
    try:
        return Recipe.shared(without_unread(values, given=asked, variants=variants))
    except UserError as error:
        raise UserError(re.sub(r"(?<![^ ])(\w+)(?=: )", lambda found: _flag(found[1], flags), str(error))) from None


def _flag(name: str, flags: Mapping[str, str]) -> str:
    return "--" + flags[name].replace("_", "-") if name in flags else name


def all_fields() -> dict[str, str]:
    """Every field of the recipe under its own name."""
    return {name: name for names in GROUPS.values() for name in names}


def default_folder(recipe: Recipe, *, last: str | None = None) -> Path:
    """``runs/NAME-STUDENT-METHOD-seedN``, or with ``last`` in the place of method and seed."""
    student = re.sub(r"[^A-Za-z0-9._+-]+", "-", str(recipe.student))
    return Path("runs") / f"{recipe.name}-{student}-{last or f'{recipe.method}-seed{recipe.seed}'}"


def run_folder(options: RunFlags, default: Path) -> Path:
    """The folder that the flags name, or the default one."""
    if options.resume is not None and options.resume_if_begun:
        raise UserError("--resume continues an existing run, --resume-if-begun also starts it: give one of them")
    if options.resume and options.out is not None and Path(options.resume) != Path(options.out):
        raise UserError(f"--resume {options.resume} and --out {options.out}: give one; a run stays in its folder")
    return Path(options.resume or options.out or default)


def _base(words: Sequence[str]) -> dict[str, object] | None:
    """The values that the flags go on top of: those of --recipe, else of the run to resume; None without either."""
    if (file := _file_of(words)) is not None:
        return _open(Recipe.from_yaml(file, shared=True))
    if chosen := given_flags(words).get("recipe"):
        return _open(named(chosen[0]))
    if (place := resumed_folder(words)) is None:
        return None
    if (place / COMPARISON_FILE).is_file():
        return recorded_recipe(place).model_dump()
    if not (place / "recipe.yaml").is_file():
        raise UserError(f"--resume: no run in {place} (no recipe.yaml there)")
    return Recipe.from_yaml(place / "recipe.yaml").model_dump()


def _open(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values; what it left to the rule is left to it again, for other flags may lead that elsewhere."""
    # A learning rate belongs to the optimizer and the weight decay that it was written with.
    ruled = ("method",) if "lr" in recipe.model_fields_set else CHOSEN
    return recipe.model_dump() | {name: None for name in ruled if name not in recipe.model_fields_set}


def _file_of(words: Sequence[str]) -> Path | None:
    """The file that --recipe names; None where it names a recipe of ours, or is not given."""
    chosen = given_flags(words).get("recipe")
    if not chosen:
        return None
    file = Path(chosen[0])
    is_name = chosen[0] in NAMED or (file.suffix not in (".yaml", ".yml") and file.name == chosen[0])
    return None if is_name else file


def resumed_folder(words: Sequence[str]) -> Path | None:
    """The folder that a command line names to go on with, before it is parsed; None where it names none."""
    given = given_flags(words)
    if "resume" not in given:
        return None
    place = (given["resume"] or given.get("out") or [""])[0]
    return Path(place) if place else None


@functools.cache  # tyro keeps every type that it has seen: there is one of each command, whatever its defaults
def _flags_types(
    command: str, options: type[Any], fields: tuple[tuple[str, str], ...]
) -> tuple[type[Any], dict[str, type[Any]]]:
    """The dataclass of a command's flags, and those of its groups; none has defaults."""
    flags = dict(fields)
    groups: dict[str, type[Any]] = {}
    for group, names in GROUPS.items():
        members = [(flags[name], _annotation(name)) for name in names if name in flags]
        if members:
            groups[group] = dataclasses.make_dataclass(group, members, frozen=True)
    return dataclasses.make_dataclass(command, [("run", options), *groups.items()], frozen=True), groups


def _annotation(name: str) -> Any:
    field = Recipe.model_fields[name]
    optional = field.is_required() or field.default is None
    kind = cast(Any, field.annotation) | None if optional else field.annotation
    metavar = METAVARS.get(name) or (_metavar(field.annotation) if optional else None)
    return Annotated[cast(Any, kind), field, arg(help=field.description, metavar=metavar)]


def _metavar(kind: Any) -> str | None:
    """What stands for a value that may be left open: tyro would name None among its values, which nobody types."""
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if kind in NUMBERS:
        return NUMBERS[kind]
    parts = [part for part in get_args(kind)[: 1 if get_origin(kind) is Annotated else None] if part is not NoneType]
    return _metavar(parts[0]) if len(parts) == 1 else None
