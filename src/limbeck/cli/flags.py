"""Typed flags from the recipe's fields: tyro reads them and prints their help; what is wrong becomes one line.

A flag is a field of the recipe (``batch_size`` is ``--batch-size``) with the field's type, default and description.
``--recipe`` and ``--resume`` are looked at first, because they decide the defaults under the other flags.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from limbeck.errors import UserError, did_you_mean
from limbeck.recipes.compare import RESULT_FILE, recorded_recipe
from limbeck.recipes.published import NAMED, NO_FOLDER, named
from limbeck.recipes.reading import expected, explain_value
from limbeck.recipes.recipe import GROUPS, Recipe

Parsed = TypeVar("Parsed")

METAVARS = {
    "name": "NAME",
    "teacher": "MODEL",
    "teacher_weights": "FILE|RUN",
    "teacher_epochs": "INT",
    "teacher_size": "INT",
    "teacher_tap": "MODULE",
    "student": "MODEL",
    "student_weights": "FILE|RUN",
    "student_tap": "MODULE",
    "data": "SOURCE",
    "val": "SOURCE",
    "size": "INT",
    "train_limit": "INT",
    "workers": "INT",
    "clip": "FLOAT",
    "ema": "FLOAT",
    "bad_number_limit": "INT",
    "milestones": "EPOCH ...",
    "cache_views": "INT",
    "cache_seed": "INT",
    "cache_top_k": "INT",
    "cache_folder": "FOLDER",
    "loggers": "NAME ...",
}
"""What stands for a value in the help, where tyro's own word would say less."""


@dataclass(frozen=True)
class RunFlags:
    """What the run starts from, and where it goes."""

    recipe: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME|FILE.yaml", help="Recipe to start from; the other flags go on top of it."),
    ] = None
    out: Annotated[
        str | None,
        tyro.conf.arg(metavar="FOLDER", help="Where the run goes; None: runs/NAME-STUDENT-METHOD-seedN."),
    ] = None
    resume: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="[RUN]",
            help="Go on with the run in RUN (or in --out); its recipe must be the same, or is taken from it.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        tyro.conf.arg(help="Print the recipe, shapes, parameter counts and FLOPs; train nothing."),
        tyro.conf.FlagCreatePairsOff,
    ] = False


@dataclass(frozen=True)
class RecipeFlag:
    """What the check starts from."""

    recipe: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME|FILE.yaml", help="Recipe to start from; the other flags go on top of it."),
    ] = None


def parse(kind: type[Parsed], words: Sequence[str], *, command: str, description: str) -> Parsed:
    """Read a command's flags into an object of ``kind``, a dataclass whose fields are the flags.

    Raises:
        UserError: A flag is unknown (the nearest is named), lacks its value, or has one of another type.
        SystemExit: Help was asked for, and has been printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=f"limbeck {command}",
                description=description,
                args=_with_bare_resume(words),
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_diagnose(kind, words, command) or _flattened(said.getvalue())) from None


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
    base = _base(words)
    defaults = base.model_dump() if base is not None else {**_defaults(), **fallback}
    kind = _flags_type(command, options, fields, defaults)
    parsed: Any = parse(kind, words, command=command, description=description)
    values = dict(defaults)
    for group in GROUPS:
        if (part := getattr(parsed, group, None)) is not None:
            values |= {field: getattr(part, flag) for field, flag in fields.items() if hasattr(part, flag)}
    return values, parsed.run


def make_recipe(values: Mapping[str, object], flags: Mapping[str, str]) -> Recipe:
    """The recipe of a command line.

    Args:
        values: Every setting.
        flags: Setting -> name of its flag; errors name the flag.

    Raises:
        UserError: Settings contradict each other, or the images are not named.
    """
    data = values.get("data")
    if data is None or str(data).split(":")[-1] == NO_FOLDER:
        form = "FOLDER" if data is None else str(data)
        raise UserError(f"--data: missing; name the images, for example --data {form}")
    try:
        return Recipe(**cast(dict[str, Any], dict(values)))
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
    if options.resume and options.out is not None and Path(options.resume) != Path(options.out):
        raise UserError(f"--resume {options.resume} and --out {options.out}: give one, a run goes on where it is")
    return Path(options.resume or options.out or default)


def _base(words: Sequence[str]) -> Recipe | None:
    """The recipe that the flags go on top of: that of --recipe, else that of the run to resume."""
    given = _given(words)
    if chosen := given.get("recipe"):
        file = Path(chosen[0])
        is_name = chosen[0] in NAMED or (file.suffix not in (".yaml", ".yml") and file.name == chosen[0])
        return named(chosen[0]) if is_name else Recipe.from_yaml(file)
    if (place := resumed_folder(words)) is None:
        return None
    if (place / RESULT_FILE).is_file():
        return recorded_recipe(place)
    if not (place / "recipe.yaml").is_file():
        raise UserError(f"--resume: no run in {place} (no recipe.yaml there)")
    return Recipe.from_yaml(place / "recipe.yaml")


def resumed_folder(words: Sequence[str]) -> Path | None:
    """The folder that a command line names to go on with, before it is parsed; None where it names none."""
    given = _given(words)
    if "resume" not in given:
        return None
    place = (given["resume"] or given.get("out") or [""])[0]
    return Path(place) if place else None


def _defaults() -> dict[str, object]:
    return {name: None if field.is_required() else field.default for name, field in Recipe.model_fields.items()}


def _flags_type(command: str, options: Any, fields: Mapping[str, str], defaults: Mapping[str, object]) -> type[Any]:
    parts: list[tuple[str, Any, Any]] = [("run", type(options), dataclasses.field(default=options))]
    for group, names in GROUPS.items():
        members = [
            (fields[name], _annotation(name), dataclasses.field(default=cast(Any, defaults[name])))
            for name in names
            if name in fields
        ]
        if members:
            kind = dataclasses.make_dataclass(group, members, frozen=True)
            parts.append((group, kind, dataclasses.field(default=kind())))
    return dataclasses.make_dataclass(command, parts, frozen=True)


def _annotation(name: str) -> Any:
    field = Recipe.model_fields[name]
    kind = field.annotation if not field.is_required() else cast(Any, field.annotation) | None
    return Annotated[cast(Any, kind), field, tyro.conf.arg(help=field.description, metavar=METAVARS.get(name))]


def _given(words: Sequence[str]) -> dict[str, list[str]]:
    """Flag -> the words behind it, up to the next flag; underscores and hyphens are the same."""
    given: dict[str, list[str]] = {}
    current: list[str] = given.setdefault("", [])
    for word in words:
        if _is_flag(word):
            name, equals, value = word.lstrip("-").partition("=")
            current = given[name.replace("-", "_")] = [value] if equals else []
        else:
            current.append(word)
    return given


def _is_flag(word: str) -> bool:
    return bool(re.match(r"^--?[A-Za-z]", word))


def _with_bare_resume(words: Sequence[str]) -> list[str]:
    """``--resume`` without a run means the one in --out: an empty value, since tyro wants one."""
    result: list[str] = []
    for index, word in enumerate(words):
        result.append(word)
        if word == "--resume" and (index + 1 == len(words) or _is_flag(words[index + 1])):
            result.append("")
    return result


def _known(kind: type[Any]) -> dict[str, FieldInfo]:
    """Every flag of a dataclass of flags and of its parts, with its type."""
    known: dict[str, FieldInfo] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            known |= _known(cast(type[Any], hint))
            continue
        known[name] = FieldInfo.from_annotation(hint)
    return known


def _diagnose(kind: type[Any], words: Sequence[str], command: str) -> str | None:
    """Say in one line why tyro refused a command line."""
    known = _known(kind)
    positional = [name for name, hint in get_type_hints(kind, include_extras=True).items() if _is_positional(hint)]
    flags = {name: info for name, info in known.items() if name not in positional}
    spellings = [*flags, *(f"no_{name}" for name, info in flags.items() if info.annotation is bool)]
    given = _given(words)
    for word in (word for word in words if _is_flag(word)):
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        if name not in spellings:
            near = did_you_mean(f"--{name}".replace("_", "-"), [f"--{each}".replace("_", "-") for each in spellings])
            return f'unknown flag "{word.partition("=")[0]}"{near or f"; `limbeck {command} --help` lists the flags"}'
    loose = list(given.pop(""))
    for name, values in given.items():
        taken = _taken(name, flags)
        if (problem := _diagnose_flag(name, values[:taken], flags)) is not None:
            return problem
        loose += values[taken:]
    if len(loose) > len(positional):
        return f'unexpected "{loose[len(positional)]}"; a flag begins with --, and takes one value'
    missing = positional[len(loose) :]
    return f"{missing[0].upper()}: missing; `limbeck {command} --help` says what it is" if missing else None


def _taken(name: str, flags: Mapping[str, FieldInfo]) -> int:
    """How many of the words behind a flag are its values."""
    field = flags.get(name)
    if field is None or field.annotation is bool:
        return 0
    return 1_000_000 if get_origin(field.annotation) is tuple else 1


def _diagnose_flag(name: str, values: Sequence[str], flags: Mapping[str, FieldInfo]) -> str | None:
    field = flags.get(name)
    if field is None or field.annotation is bool:
        return None
    shown = "--" + name.replace("_", "-")
    many = get_origin(field.annotation) is tuple
    if not values and not many and name != "resume":
        return f"{shown}: its value is missing; expected {expected(field)}"
    one = FieldInfo(annotation=get_args(field.annotation)[0]) if many else field
    for value in values:
        if value == "None" and type(None) in get_args(one.annotation):
            continue
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(_annotated(one))
            adapter.validate_python(value)
        except ValidationError:
            return f"{shown}: {explain_value(value, one)}"
    return None


def _annotated(field: FieldInfo) -> Any:
    return Annotated[cast(Any, field.annotation), Field(), *field.metadata]  # pyright: ignore[reportInvalidTypeForm]


def _is_positional(hint: Any) -> bool:
    return get_origin(hint) is Annotated and any(part is tyro.conf.Positional for part in get_args(hint)[1:])


def _flattened(box: str) -> str:
    """The text of one of tyro's boxes as one line, for what the diagnosis does not know."""
    return " ".join(re.sub(r"[\u2500-\u257f]+", " ", box).split())
