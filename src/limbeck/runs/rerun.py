"""Make a finished run again from what it recorded, and say what came out the same."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.assembly.build import build_data, is_run
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.logs.records import Record, mapping, number
from limbeck.recipes.recipe import Recipe
from limbeck.runs.images import Row, changes_of, compare_images, record_of, row_of
from limbeck.runs.run import run
from limbeck.storage.files import save_json
from limbeck.storage.untrusted import read_object

RUN, RESULT = "run", "rerun.json"
STUDENTS = ("student.safetensors", "student_best.safetensors")


@dataclass(frozen=True)
class Outcome:
    """What a second run came to.

    Attributes:
        rows: What was compared: images, versions, machine, weights at the start, student, figures.
        to_the_byte: Whether the student's files are the same.
        verdict: All of it in a sentence.
    """

    rows: list[Row]
    to_the_byte: bool
    verdict: str


def rerun(first: Path, place: Path, *, anyway: bool = False, say: Callable[[str], None]) -> Outcome:
    """Make a run again, in ``run/`` of a folder of its own, and compare.

    The recipe is the recorded one, with its settled precision, layout and compilation. A teacher that was trained for
    the run is trained again, and outputs of a teacher are computed again: what lies beside the first run is not used.
    Loggers are told nothing. What was begun is gone on with, and what is finished is only compared.

    Args:
        first: The folder of a finished run.
        place: Where the second run goes, with what is trained and computed for it, and ``rerun.json``.
        anyway: Train also where the images have changed.
        say: Tells the user one line.

    Raises:
        UserError: If there is no finished run, or the images are not those that it was trained on.
    """
    if not is_run(first):
        going = (first / "recipe.yaml").is_file()
        hint = f"; continue it: limbeck distill --resume {first}" if going else ""
        raise UserError(f"{first} holds no finished run, so there is nothing to compare with{hint}")
    if place.resolve() == first.resolve():
        raise UserError(f"--out {place} is the run itself; choose another folder")
    recipe = Recipe.from_yaml(first / "recipe.yaml").changed({"loggers": [], "cache_folder": None})
    then = read_object(first / "summary.json", "metric", "last")
    if told := changes_of(mapping(then, "data"), record_of(build_data(recipe))):
        if not anyway:
            raise UserError(
                f"the images of {first} have changed since: {told}; bring them back, or train on them as they are "
                "with --anyway"
            )
        say(f"the images have changed since: {told}")
    folder = place / RUN
    say(f"run folder: {folder}")
    run(recipe, folder, if_begun=True)
    outcome = compare_runs(first, folder)
    if collectives.rank() == 0:
        save_json({"first": str(first), "second": str(folder), **asdict(outcome)}, place / RESULT)
    return outcome


def compare_runs(first: Path, second: Path) -> Outcome:
    """What of two finished runs of one recipe is the same.

    Raises:
        UserError: If a summary cannot be read.
    """
    then, now = (read_object(folder / "summary.json", "metric", "last") for folder in (first, second))
    rows = [
        *compare_images(mapping(then, "data"), mapping(now, "data")),
        *_each("version of ", mapping(then, "versions"), mapping(now, "versions")),
        row_of("commit of limbeck", then.get("commit"), now.get("commit")),
        row_of("device", then.get("device"), now.get("device")),
        *_each("", mapping(then, "machine"), mapping(now, "machine")),
        row_of("seed", then.get("seed"), now.get("seed")),
    ]
    for side in ("teacher", "student"):
        if mapping(now, "origins", side) or mapping(then, "origins", side):
            rows.append(row_of(f"{side}'s weights at the start", *_both(then, now, "origins", side, "digest")))
    students = [row_of(name, _digest(first / name), _digest(second / name)) for name in STUDENTS]
    figures = _figures(then, now)
    same = all(row.same is not False for row in students) and students[0].same is True
    return Outcome([*rows, *students, *figures], same, _verdict(rows, figures, same))


def _verdict(rows: list[Row], figures: list[Row], to_the_byte: bool) -> str:
    if to_the_byte:
        return "bit-identical"
    differs = [row.what for row in rows if row.same is False]
    given = f"but not the same {', '.join(differs)}" if differs else "the same images, versions and machine"
    apart = [f"{row.what} {row.then} -> {row.now}" for row in figures if row.same is False]
    came = f"figures differ: {', '.join(apart)}" if apart else "the figures are the same, the bytes are not"
    return f"the same recipe, {given}: {came}"


def _figures(then: Record, now: Record) -> list[Row]:
    """Validation figures of the last epoch, and of the best one."""
    rows: list[Row] = []
    for part in ("last", "best", "teacher"):
        before, after = mapping(then, part), mapping(now, part)
        for name in dict.fromkeys([*before, *after]):
            a, b = number(before, name), number(after, name)
            rows.append(row_of(f"{part} {name}", None if a is None else f"{a:.6g}", None if b is None else f"{b:.6g}"))
            if a is not None and b is not None and a != b and rows[-1].same:  # equal in six digits
                rows[-1] = Row(rows[-1].what, f"{a!r}", f"{b!r}", False)
    return rows


def _each(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Row]:
    return [row_of(f"{what}{name}", then.get(name), now.get(name)) for name in dict.fromkeys([*then, *now])]


def _both(then: Record, now: Record, *path: str) -> tuple[object, object]:
    return mapping(then, *path[:-1]).get(path[-1]), mapping(now, *path[:-1]).get(path[-1])


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
