"""The probe of a recipe, and what is looked at once, at the start: the images, and how they reach the models."""

import math
import re
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.assembly.tasks import Parts, kind_of
from limbeck.data import Data
from limbeck.data.loader import Batch
from limbeck.diagnostics import Probe, block_equivariance, confidence_under, first_norm_shift
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.logs.records import Record, number
from limbeck.logs.runlog import RunLog
from limbeck.models import InputTransform, Model
from limbeck.models.built import IMAGENET_MEAN, IMAGENET_STD
from limbeck.recipes.recipe import Recipe
from limbeck.storage.untrusted import records_of

SHARE = 0.01  # of the run, for the first and the last look together
LEAST_SECONDS = 2.0  # that they may take in any case
LEAST_POWER = 3  # of two: images that are measured in any case
PASSES = 3  # of a look, besides one for each term: the task's gradient, the scores, the teacher
BLOCKS = 4  # of a vision transformer, at even depths, the last one included

OTHER_STATISTICS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""The usual normalizations, as means and deviations."""


def build_probe(
    recipe: Recipe, parts: Parts, optimizer: Optimizer, log: RunLog, step: float, steps: float
) -> Probe | None:
    """The probe of a run, whose teacher must still be there; None where the recipe wants none.

    It measures on images that are not trained on: a fixed choice of the validation images, or of the training images
    where there are none. On "auto" they are so few that its first and its last look take about a hundredth of the run;
    what comes in between has another one.

    Args:
        recipe: What is trained.
        parts: What the run is made of.
        optimizer: The one that trains.
        log: Gets the records.
        step: Seconds of a forward and a backward pass of one batch.
        steps: Of the run.
    """
    if not recipe.probes:
        return None
    data = plain(parts)
    longest, count = within_budget(recipe, len(parts.distiller.terms), step=step, steps=steps)
    if recipe.probe == "auto" and (before := measured_before(log)) is not None:
        count = before
    if count < recipe.probe_images:
        log.note(
            f"the probe measures {count} images in place of {recipe.probe_images}, to take about 2% of the run; "
            "--probe STEPS measures all of them"
        )
    held_back = held_back_batch(data, count)
    device = next(parts.student.module.parameters()).device
    has_val = recipe.labels and data.val_count > 0
    return Probe(
        parts.distiller,
        held_back,
        every=recipe.probe if isinstance(recipe.probe, int) else None,
        longest=longest,
        log=log,
        optimizer=optimizer,
        train_batch=data.sample("train", count) if has_val else None,
        blocks=vit_blocks(parts.student),
        compare_outputs=parts.teacher is not None and shares_classes(recipe, parts.student, parts.teacher),
        untrained=None if recipe.labels or collectives.rank() > 0 else untrained(recipe, parts.student).to(device),
    )


def untrained(recipe: Recipe, student: Model) -> nn.Module:
    """The student with random weights; the random numbers of the run are left alone."""
    assert recipe.student is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        build = kind_of(recipe.task).build_model
        return build(recipe.student, num_classes=student.num_classes, size=student.input.size).module


def within_budget(recipe: Recipe, terms: int, *, step: float, steps: float) -> tuple[float, int]:
    """Seconds that a look may take, and the images that it measures.

    These are a power of two, so that runs alike measure the same ones, or as many as the recipe says.
    """
    if recipe.probe != "auto":
        return math.inf, recipe.probe_images
    longest = max(LEAST_SECONDS, SHARE * step * steps) / 2
    affordable = longest * recipe.batch_size / max((terms + PASSES) * step, 1e-9)
    few = 2 ** max(LEAST_POWER, math.floor(math.log2(max(affordable, 1.0))))
    return longest, min(recipe.probe_images, few)


def measured_before(log: RunLog) -> int | None:
    """Images that the probe of an earlier start of the run measured: its curves go on with the same ones."""
    looks = [record for record in _records(log) if record.get("kind") == "probe"]
    count = number(looks[0], "images") if looks else None
    return int(count) if count is not None and count >= 2**LEAST_POWER else None


def plain(parts: Parts) -> Data:
    """The images of a run of classification, which alone comes here."""
    assert isinstance(parts.data, Data)
    return parts.data


def held_back_batch(data: Data, count: int) -> Batch:
    """A fixed choice of images that are as little trained on as these data allow."""
    return data.sample("val" if data.val_count else "train", count)


def shares_classes(recipe: Recipe, student: Model, teacher: Model) -> bool:
    """Whether the teacher's outputs are logits of the classes that the student learns."""
    same = teacher.num_classes == student.num_classes > 0
    return same and not teacher.new_head and (recipe.labels or recipe.uses_logits)


def vit_blocks(student: Model) -> tuple[str, ...]:
    """Blocks of a vision transformer whose patches can be shifted; none of other models."""
    names = [name for name, _ in student.module.named_modules() if re.fullmatch(r"blocks\.\d+", name)]
    chosen = tuple(names[len(names) * at // BLOCKS - 1] for at in range(1, BLOCKS + 1)) if len(names) >= BLOCKS else ()
    if not chosen:
        return ()
    device = next(student.module.parameters()).device
    blank = torch.zeros(2, 3, student.input.size, student.input.size, device=device)
    try:
        block_equivariance(student.module, blank, chosen)
    except UserError:  # blocks of another kind: of maps, or of several resolutions
        return ()
    return chosen


def record_checks(recipe: Recipe, parts: Parts, log: RunLog, device: torch.device) -> None:
    """Write what was found of duplicate images and of how images reach the models; only the first process looks.

    A run that goes on has it already, unless it was killed before its start.
    """
    if not recipe.probes or collectives.rank() > 0:
        return
    data = plain(parts)
    there = {str(record.get("kind")) for record in _records(log)}
    if "start" in there or "inputs" in there:
        return
    found = data.duplicates() if "data" not in there else None
    if found is not None:
        log.write("data", **asdict(found))
    images = held_back_batch(data, recipe.probe_images).images.to(device)
    record = {}
    if parts.teacher is not None:
        record["teacher"] = input_record(parts.teacher, images)
    if parts.student.weights != "random":
        record["student"] = input_record(parts.student, images)
    record = {side: values for side, values in record.items() if values}
    if record:
        log.write("inputs", **record)


def _records(log: RunLog) -> list[Record]:
    """What the log has so far."""
    if log.path is None or not log.path.is_file():
        return []
    return [record for _, record in records_of(log.path.read_text(encoding="utf-8", errors="replace"))]


def input_record(model: Model, images: Tensor) -> dict[str, object]:
    """How images reach a model: the shift at its first batch norm, and that with red and blue exchanged.

    Of a model without a batch norm, its confidence under several normalizations.
    """
    shift = first_norm_shift(model.module, _transform(model)(images))
    swapped = first_norm_shift(model.module, _transform(model)(images.flip(1)))
    if shift is not None and swapped is not None:
        numbers = {"shift": shift.shift, "scale": shift.scale, "swapped": swapped.shift}
        return {"layer": shift.layer, **{name: float(f"{value:.6g}") for name, value in numbers.items()}}
    if model.num_classes == 0 or model.new_head:
        return {}
    others = {
        name: InputTransform(replace(model.input, mean=mean, std=std)).to(images.device)
        for name, (mean, std) in OTHER_STATISTICS.items()
    }
    transforms: dict[str, nn.Module] = {"own": _transform(model).to(images.device), **others}
    found = confidence_under(model.module, images, transforms)
    return {"confidence": {name: float(f"{value:.6g}") for name, value in found.items()}}


def _transform(model: Model) -> InputTransform:
    device = next((p.device for p in model.module.parameters()), torch.device("cpu"))
    return InputTransform(model.input).to(device)
