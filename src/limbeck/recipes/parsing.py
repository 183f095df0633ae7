"""From text to checked values: YAML by the safe loader, and one clear line for whatever is wrong with it.

A recipe is a flat mapping of names to plain values, so everything else that YAML can say is refused before any value is
built: tags (which could name code), anchors and aliases (which can expand to gigabytes), nested mappings, a name that
comes twice (YAML itself keeps the last one in silence), more than one document, more than a megabyte.
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from limbeck.errors import UserError, did_you_mean
from limbeck.storage.untrusted import find_object

MAX_BYTES = 1_000_000
"""A recipe has about fifty short lines; a file larger than this is some other file."""

_MOST_BITS = 128  # more than any number that a setting may be

PATTERNS = {
    r"^[^\p{Cc}]+$": "of one line",
    r"^[\w.]+:\w+$": "of the form MODULE:FUNCTION",
    r"^[A-Za-z0-9][A-Za-z0-9._+-]*$": "of letters, digits and . _ + -",
}
"""The patterns that the recipe's texts are checked against, each in the words of an error's line."""


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        UserError: There is no such file, it is not UTF-8 text, or it is larger than a recipe can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        # Too large comes first: a cut in the middle of a letter is no fault of the text.
        problem = "larger than a recipe can be (1 MB)" if len(content) > MAX_BYTES else "not a text file (UTF-8)"
        raise UserError(f"{path}: {problem}") from None


def load_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping that a recipe's YAML holds, built by the safe loader.

    Args:
        text: The YAML.
        source: What the text is called in an error's line, for example the file's name.

    Raises:
        UserError: It is not YAML, or not a flat mapping of names to plain values.
    """
    if len(text.encode("utf-8", errors="replace")) > MAX_BYTES:
        raise UserError(f"{source}: larger than a recipe can be (1 MB)")
    loader = None
    try:
        _refuse_constructs(text, source)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_keys(node, source)
        values: dict[str, Any] = dict(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{_at(source, error.problem_mark)}: not YAML ({error.problem})") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{source}: not YAML (character {error.character!r} at position {error.position})") from None
    except UserError:
        raise
    except ValueError as error:  # a value that looks like a date or a number and is none, such as 2024-99-99
        raise UserError(f"{source}: a value that cannot be read ({error})") from None
    finally:
        if loader is not None:
            loader.dispose()
    for name, value in values.items():
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise UserError(f"{source}: {name}: expected a number, got one of {value.bit_length()} binary digits")
    return values


def _at(source: str, mark: yaml.Mark | None) -> str:
    return source if mark is None else f"{source}, line {mark.line + 1}"


def _refuse_constructs(text: str, source: str) -> None:
    """Walk over the events, which builds nothing, and refuse what no recipe needs."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = _at(source, event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise UserError(f"{where}: anchors and aliases (& and *) are not used in a recipe; write the value out")
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{where}: tags such as {str(event.tag)[:40]!r} are not used in a recipe; a plain value is")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            if depth == 0 and isinstance(event, yaml.SequenceStartEvent):
                raise UserError(f"{where}: expected lines of the form `name: value`, got a list")
            if depth == 1 and isinstance(event, yaml.MappingStartEvent):
                raise UserError(f"{where}: a recipe is flat, one `name: value` a line; got a mapping as a value")
            if depth > 1:
                raise UserError(f"{where}: a recipe is flat; got a value nested inside of a list")
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1


def _refuse_keys(node: yaml.Node | None, source: str) -> None:
    if node is None:
        raise UserError(f"{source}: is empty; expected lines of the form `name: value`")
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{source}: expected lines of the form `name: value`, got {str(node.value)[:60]!r}")
    first_line: dict[str, int] = {}
    for key, _ in node.value:
        where = _at(source, key.start_mark)
        if key.tag != "tag:yaml.org,2002:str":
            raise UserError(f"{where}: expected the name of a setting, got {str(key.value)[:60]!r}")
        if key.value in first_line:
            raise UserError(f"{where}: {key.value} is given a second time (first in line {first_line[key.value]})")
        first_line[key.value] = key.start_mark.line + 1


def explain(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    """All that a validation found, in one line: field, what is expected, what was given, the nearest right spelling.

    Args:
        error: What pydantic raised.
        fields: The model's fields.
    """
    lines: list[str] = []
    for item in error.errors(include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "value_error" and not name:  # settings that contradict each other; the line names them
            lines.append(item["msg"].removeprefix("Value error, "))
        elif item["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name[:60]!r}{did_you_mean(name, fields)}")
        elif item["type"] == "missing":
            lines.append(f"{name}: missing")
        else:
            lines.append(f"{name}: {explain_value(item['input'], fields[name], item['loc'])}")
    shown = list(dict.fromkeys(lines))
    return "; ".join(shown[:3]) + (f"; and {len(shown) - 3} more" if len(shown) > 3 else "")


def explain_value(value: object, field: FieldInfo, location: Sequence[int | str] = ()) -> str:
    """What was expected of a field, what was given instead, and the choice that is nearest to it."""
    near = did_you_mean(value, choices(field.annotation)) if isinstance(value, str) else ""
    which = f" as value {int(location[1]) + 1}" if len(location) > 1 and isinstance(location[1], int) else ""
    given = repr(value)
    return f"expected {expected(field)}, got {given if len(given) <= 60 else given[:57] + '...'}{which}{near}"


def read_value(value: object, field: FieldInfo) -> Any:
    """A value as a field has it; text, as of a command line, becomes what it says.

    Raises:
        ValidationError: The field cannot have it; see :func:`explain_value`.
    """
    if value == "None" and type(None) in get_args(field.annotation):
        return None
    annotated: Any = Annotated[cast(Any, field.annotation), Field(), *field.metadata]  # pyright: ignore[reportInvalidTypeForm]
    adapter: TypeAdapter[Any] = TypeAdapter(annotated)
    return adapter.validate_python(value)


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that a field may hold, or nothing if it is not a choice of words."""
    if get_origin(annotation) is Literal:
        return tuple(str(word) for word in get_args(annotation))
    return tuple(word for part in get_args(annotation) for word in choices(part))


def expected(field: FieldInfo) -> str:
    """What a field takes, in words: ``a whole number from 1 to 1,000``, ``one of sgd, adamw``."""
    return _expected(field.annotation, field.metadata)


def _expected(annotation: Any, metadata: Iterable[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _expected(arguments[0], [*_flat(arguments[1:]), *metadata])
    if origin in (Union, types.UnionType):
        inner = [part for part in arguments if part is not type(None)]
        return " or ".join([_expected(part, metadata) for part in inner] + ["None"] * (len(inner) < len(arguments)))
    if origin is Literal:
        return "one of " + ", ".join(str(word) for word in arguments)
    if origin is tuple:
        return f"any number of values, each {_expected(arguments[0], metadata)}"
    noun = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[annotation]
    return noun + _bounds(metadata)


def _flat(metadata: Iterable[Any]) -> Iterable[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _bounds(metadata: Iterable[Any]) -> str:
    items = list(metadata)
    kinds = ("gt", "ge", "lt", "le")
    bounds = {kind: _plain(getattr(item, kind)) for item in items for kind in kinds if hasattr(item, kind)}
    words = [f"from {bounds.pop('ge')} to {bounds.pop('le')}"] if {"ge", "le"} <= bounds.keys() else []
    spelt = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    words += [f"{spelt[kind]} {bound}" for kind, bound in bounds.items()]
    words += [PATTERNS[item.pattern] for item in items if getattr(item, "pattern", None)]
    return " " + " and ".join(words) if words else ""


def _plain(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def read_summary(place: Path) -> dict[str, Any] | None:
    """What a run came to; None where it is not finished."""
    return find_object(place / "summary.json", "metric", "last", "best", "seconds")
