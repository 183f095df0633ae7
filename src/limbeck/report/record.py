"""What a run or comparison folder holds, read so that a stopped or damaged one still gives a page."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from limbeck.errors import UserError, paths_explained
from limbeck.logs.records import Record, mapping, number, records
from limbeck.storage.untrusted import parse_json, records_of, text_of

RUN_FILES = ("log.jsonl", "recipe.yaml", "summary.json")


@dataclass(frozen=True)
class RunRecord:
    """A run folder as far as it can be read; what is missing is empty.

    Attributes:
        name: The folder's name.
        recipe: The recipe's fields.
        recipe_text: The recipe file as it stands.
        start: The record of the start.
        steps: Records of steps, oldest first.
        epochs: Records of epochs, oldest first.
        probes: Records of the probe, one a step, by step.
        inputs: What the checks of the images found: records of the kinds "data" and "inputs".
        samples: Images on which student and teacher disagree, with the names of the classes.
        log: All records of the log, in order.
        folder: Where it lies.
        findings: What the preflight found.
        notes: Lines that the run said.
        summary: The final figures; empty while a run goes on or when it was killed.
        files: Name and bytes of the files in the folder.
    """

    name: str
    recipe: Record
    recipe_text: str
    start: Record
    steps: tuple[Record, ...]
    epochs: tuple[Record, ...]
    findings: tuple[Record, ...]
    notes: tuple[str, ...]
    summary: Record
    files: Mapping[str, int] = field(default_factory=dict)
    probes: tuple[Record, ...] = ()
    inputs: tuple[Record, ...] = ()
    samples: Record = field(default_factory=dict)
    log: tuple[Record, ...] = ()
    folder: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.summary)


@paths_explained()
def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Args:
        folder: The folder of a run, finished or not.

    Returns:
        What could be read; a line of the log that a kill cut off is passed over.

    Raises:
        UserError: If the folder is missing, holds no run, or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    if not any((folder / name).is_file() for name in RUN_FILES):
        raise UserError(f"{folder} holds no run: expected at least one of {', '.join(RUN_FILES)}")
    records = _log(folder / "log.jsonl")
    by_kind = {kind: tuple(r for r in records if r.get("kind") == kind) for kind in _KINDS}
    text = _text(folder / "recipe.yaml")
    end = mapping(by_kind["end"][-1], "summary") if by_kind["end"] else {}
    return RunRecord(
        name=folder.resolve().name,
        recipe=_yaml(text),
        recipe_text=text,
        start=by_kind["start"][-1] if by_kind["start"] else {},
        steps=by_kind["step"],
        epochs=by_kind["epoch"],
        findings=_findings(by_kind["preflight"]),
        notes=tuple(str(r["text"]) for r in by_kind["note"] if "text" in r),
        summary=read_json(folder / "summary.json") or end,
        files=_sizes(folder),
        probes=_by_step(by_kind["probe"]),
        inputs=by_kind["data"] + by_kind["inputs"],
        samples=read_json(folder / "samples.json"),
        log=tuple(records),
        folder=folder,
    )


def read_json(path: Path) -> Record:
    """The object in a JSON file; empty where the file is missing, cut off, or holds something else."""
    try:
        value: object = parse_json(_text(path) or "{}")
    except ValueError:
        return {}
    return cast(Record, value) if isinstance(value, dict) else {}


_MOST_RECIPE = 1_000_000  # characters
_DEEPEST = 4  # a recipe is a mapping with lists in it
_KINDS = ("start", "preflight", "note", "step", "epoch", "probe", "data", "inputs", "end")


def _by_step(probes: tuple[Record, ...]) -> tuple[Record, ...]:
    """One probe a step: of a run that went on after a kill the later one counts."""
    found = {step: probe for probe in probes if (step := number(probe, "step")) is not None}
    return tuple(found[step] for step in sorted(found))


def _findings(preflights: tuple[Record, ...]) -> tuple[Record, ...]:
    return records(preflights[-1], "findings") if preflights else ()


def _log(path: Path) -> list[Record]:
    return [record for _, record in records_of(_text(path))]


def _text(path: Path) -> str:
    return text_of(path) or ""


def _sizes(folder: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # a run that is at work renames and removes files
            if path.is_file():
                sizes[path.name] = path.stat().st_size
    return sizes


def _is_flat(text: str) -> bool:
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
            return False
    return True


def _yaml(text: str) -> Record:
    try:
        if len(text) > _MOST_RECIPE or not _is_flat(text):
            return {}  # of somebody else: aliases expand to gigabytes on a page, deep nesting takes minutes to parse
        value: object = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return cast(Record, value) if isinstance(value, dict) else {}
