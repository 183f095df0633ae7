"""The runs of a comparison, a sweep or a table: one arithmetic, one teacher, the same images, the same device."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from limbeck.assembly.arithmetic import Settled
from limbeck.assembly.build import build_data
from limbeck.distributed import collectives
from limbeck.distributed.processes import meet
from limbeck.errors import UserError
from limbeck.logs.records import mapping
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.recipes.roles import RESUMABLE
from limbeck.recipes.validation import in_words
from limbeck.runs.images import RECORD, changes_of, record_of
from limbeck.runs.summary import commit, device_name, versions
from limbeck.storage.files import save_json
from limbeck.storage.untrusted import find_object, read_object, text_of

FILE = "arithmetic.json"
"""In the folder of a study: the arithmetic that the first of its runs settled, for all of them."""

IMAGES = (*fields_of("data"), "size", "longest", "subset", "train_limit")  # runs that have these have the same images
Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """A run of a study that was started.

    Attributes:
        name: Its folder's.
        recipe: As it was started.
        images: What it recorded of its images; empty where it is of a version that did not.
        summary: What it came to; empty where it is not finished.
    """

    name: str
    recipe: Recipe
    images: Mapping[str, Any]
    summary: Mapping[str, Any]


def begin(folder: Path, places: Mapping[Path, Recipe], say: Say) -> list[Made]:
    """Before the runs of a study: those that are there must belong together, and with what is still to be made.

    Args:
        folder: Where the runs are.
        places: Run folder to recipe.
        say: Told what differs and does no harm, and what is not known.

    Returns:
        The runs that are there.

    Raises:
        UserError: A run is of another recipe, of other images, another device, arithmetic or teacher.
    """
    made = list(read(places))
    recipes = {place.name: recipe for place, recipe in places.items()}
    for run in made:
        planned = recipes[run.name]
        if changes := run.recipe.difference(planned, but=(*fields_of(*RESUMABLE), *_left_open(planned))):
            raise UserError(f"{folder / run.name} holds a run of another recipe: {'; '.join(changes)}")
    agree(folder, made)
    save_json(_arithmetic(made[0].recipe) if made else {}, folder / FILE, only_new=True)
    finished = [run for run in made if run.summary]
    if not finished or len(finished) == len(places):
        return made
    now = _short(_here(next(iter(places.values()))))
    for run in finished:
        if (then := _short(run.summary.get("device"))) and then != now:
            raise UserError(f"{folder / run.name} was made on {then}, the other runs would be on {now}; {_ADVICE}")
    _compare_images(folder, finished)
    _say_what_differs(finished, say)
    return made


_ADVICE = "make all of them in one place, or choose another --out"


def agree(folder: Path, runs: Iterable[Made]) -> None:
    """That runs which were started belong together.

    Raises:
        UserError: Two of them have other images, another device, arithmetic or teacher.
    """
    images: dict[object, Made] = {}
    teachers: dict[object, Made] = {}
    first: dict[str, Made] = {}
    for run in runs:
        seen = images.setdefault(_images_key(run.recipe), run)
        if changed := changes_of(seen.images, run.images):
            raise UserError(f"{folder}: {seen.name} and {run.name} have other images: {changed}; {_ADVICE}")
        if not _left_open(run.recipe):
            _same(folder, first, "arithmetic", run, in_words(_arithmetic(run.recipe)))
        if device := _short(run.summary.get("device")):
            _same(folder, first, "device", run, device)
        teacher = mapping(run.summary, "origins", "teacher")
        if not teacher or run.recipe.teacher is None:
            continue
        weights = teachers.setdefault((run.recipe.teacher, "weights"), run)
        whole = teacher.get("classes") and not teacher.get("new_head")  # a head that is read, so all of it is the same
        digest = teachers.setdefault((run.recipe.teacher, teacher.get("classes")), run) if whole else run
        for other, name in ((weights, "weights"), (digest, "digest")):
            theirs = mapping(other.summary, "origins", "teacher").get(name)
            if theirs != teacher.get(name):
                raise UserError(
                    f"{folder}: {other.name} and {run.name} have two teachers: {run.recipe.teacher} with {name} "
                    f"{theirs} and {teacher.get(name)}; give both the same --teacher-weights, or choose another --out"
                )


def check(folder: Path, places: Iterable[Path]) -> str:
    """That the runs of a study belong together; what all of them have in common, for a line under the table.

    Raises:
        UserError: They do not.
    """
    made = list(read(places))
    agree(folder, made)
    return in_common(made)


def in_common(made: Iterable[Made]) -> str:
    """Arithmetic and device of runs that agree, in words; empty where nothing is known."""
    finished = [run for run in made if run.summary]
    known = next(
        (in_words(_arithmetic(run.recipe)) for run in finished if "auto" not in _arithmetic(run.recipe).values()), ""
    )
    devices = dict.fromkeys(str(run.summary["device"]) for run in finished if run.summary.get("device"))
    return "; ".join(part for part in (known, ", ".join(devices)) if part)


def together(study: Path, recipe: Recipe, device: torch.device, settle: Callable[[Recipe], Settled]) -> Settled:
    """Settle the arithmetic of a run: of a study as its first run did, else by ``settle``.

    One process settles at a time, so that all runs of a study get what the first one got.
    """
    path = study / FILE
    is_first = collectives.rank() == 0
    with contextlib.ExitStack() as held:
        found = ""
        if is_first and path.is_file():
            with contextlib.suppress(OSError):  # a folder that cannot be locked has one process at work, we hope
                held.enter_context(FileLock(study / f".{FILE}.lock"))
            found = json.dumps(read_object(path))
        found = collectives.from_first(found, device)
        if not found:
            return settle(recipe)
        kept = {name: json.loads(found).get(name, "auto") for name in _left_open(recipe)}
        settled = settle(recipe.changed(kept))
        if is_first and "auto" in kept.values():
            chosen = {
                "precision": settled.arithmetic.precision,
                "memory_format": settled.arithmetic.memory_format,
                "compile": "on" if settled.compiles else "off",
            }
            save_json({**json.loads(found), **{name: chosen[name] for name in kept}}, path)
        return settled


def read(places: Iterable[Path]) -> Iterator[Made]:
    """The runs of some places that were started."""
    for place in places:
        if (text := text_of(place / "recipe.yaml")) is None:
            continue
        summary = find_object(place / "summary.json") or {}
        images = find_object(place / RECORD)
        yield Made(place.name, _recipe(text), mapping(summary, "data") if images is None else images, summary)


@functools.lru_cache(maxsize=4096)  # a study is read after each of its runs
def _recipe(text: str) -> Recipe:
    return Recipe.from_yaml(text)


def _same(folder: Path, first: dict[str, Made], what: str, run: Made, value: str) -> None:
    known = first.setdefault(f"{what} {value}", run)
    others = [name for name in first if name.startswith(f"{what} ") and first[name] is not known]
    if others:
        other = others[0]
        raise UserError(
            f"{folder}: {first[other].name} and {run.name} have another {what}: {other.removeprefix(f'{what} ')} and "
            f"{value}; {_ADVICE}"
        )


def _compare_images(folder: Path, finished: Iterable[Made]) -> None:
    """With the images as they are now, for each kind of data once."""
    now: dict[object, dict[str, Any]] = {}
    for run in finished:
        if not run.images:
            continue
        key = _images_key(run.recipe)
        if key not in now:
            now[key] = record_of(build_data(run.recipe))
        if changed := changes_of(run.images, now[key]):
            raise UserError(
                f"the images have changed since {folder / run.name} was made: {changed}; bring them back, or choose "
                "another --out"
            )


def _say_what_differs(finished: Iterable[Made], say: Say) -> None:
    now = {**versions(), "commit of limbeck": commit()}
    told: dict[str, None] = {}
    unknown: dict[str, list[str]] = {}
    for run in finished:
        then = mapping(run.summary, "versions")
        both = {**then, "commit of limbeck": run.summary.get("commit")}
        told |= {
            f"{name} {both[name]} -> {value}": None
            for name, value in now.items()
            if both.get(name) is not None and value is not None and both[name] != value
        }
        recorded = {"images": run.images, "device": run.summary.get("device"), "versions": then}
        if run.recipe.teacher is not None:
            recorded["teacher"] = mapping(run.summary, "origins", "teacher")
        for name, value in recorded.items():
            if not value:
                unknown.setdefault(name, []).append(run.name)
    if told:
        say(f"the runs that are finished are of other versions: {', '.join(told)}")
    if unknown:
        words = [f"{name} ({', '.join(runs[:3])}{', ...' if runs[3:] else ''})" for name, runs in unknown.items()]
        say(f"not recorded, so not compared: {'; '.join(words)}")


def _images_key(recipe: Recipe) -> object:
    sizes = recipe.teacher_size if recipe.method != "alone" else None
    return (*(getattr(recipe, name) for name in IMAGES), sizes)


def _arithmetic(recipe: Recipe) -> dict[str, str]:
    return {name: getattr(recipe, name) for name in fields_of("arithmetic")}


def _left_open(recipe: Recipe) -> tuple[str, ...]:
    return tuple(name for name, value in _arithmetic(recipe).items() if value == "auto")


def _here(recipe: Recipe) -> str:
    """The device on which a recipe would be run."""
    found = meet(on_cpu=recipe.device == "cpu", timeout=recipe.process_timeout)
    return device_name(found if recipe.device == "auto" else torch.device(recipe.device))


def _short(device: object) -> str:
    """A device without the number of its threads."""
    return str(device or "").partition(" (")[0]
