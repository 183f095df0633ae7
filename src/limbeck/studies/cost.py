"""What a table will cost on this machine, from steps that are timed on random images."""

import time
from dataclasses import dataclass
from functools import partial

import torch

from limbeck.assembly.build import build_data, build_optimizer
from limbeck.assembly.tasks import kind_of
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs.run import device_of
from limbeck.runs.summary import device_name
from limbeck.studies.reproduce import Plan
from limbeck.training.evaluation import to_device

STEPS = 3  # that are timed, behind one that is not
SMALL = 64  # pixels up to which a CPU, too, gets whole batches
SIZES = {"imagenet": (1_281_167, 1000, 224), "cifar10": (50_000, 10, 32), "cifar100": (50_000, 100, 32)}
"""Training images, classes and pixels of sources that need not be there for an estimate."""
SIZES |= {"fashion-mnist": (60_000, 10, 28)}


@dataclass(frozen=True)
class Cost:
    """Of one pair.

    Attributes:
        pair: The pair.
        taught: Milliseconds an image with the teacher.
        alone: Milliseconds an image without.
        runs: How many runs there are, those that choose weights included.
        hours: Of all of them on one device; teachers that are trained first are not counted.
    """

    pair: str
    taught: float
    alone: float
    runs: int
    hours: float


def cost(plan: Plan) -> tuple[list[Cost], str]:
    """The cost of each pair, and the device that it was timed on.

    The step is that of ``kd`` for every row with a teacher, in float32 as torch has it: settings that would be measured
    in the run, a cache, compiling, loading of images and validation are not in it.

    Raises:
        UserError: If the models or the images cannot be had.
    """
    found: list[Cost] = []
    device = torch.device("cpu")
    for pair in plan.pairs:
        recipes = {row: plan.recipe(pair, row, seed=plan.seeds[0], factor=1.0) for row in plan.rows}
        first = next(iter(recipes.values()))
        device = device_of(first)
        images, classes, side = _sizes(first)
        taught = next((recipe for recipe in recipes.values() if recipe.method != "alone"), None)
        with_teacher = 0.0 if taught is None else _seconds(taught.changed({"method": "kd"}), classes, side, device)
        alone = first.changed({"method": "alone"})
        without = _seconds(alone, classes, side, device)
        runs, seconds = 0, 0.0
        for row, recipe in recipes.items():
            count = len(plan.seeds) + (len(plan.factors) if plan.is_tuned(pair, row) else 0)
            runs += count
            seconds += count * recipe.epochs * images * (without if recipe.method == "alone" else with_teacher)
        found.append(Cost(pair, 1000 * with_teacher, 1000 * without, runs, seconds / 3600))
    return found, device_name(device)


def _sizes(recipe: Recipe) -> tuple[int, int, int]:
    """Training images of an epoch, classes, and the side of an image."""
    kind = recipe.data.partition(":")[0]
    if kind in SIZES:
        count, classes, side = SIZES[kind]
        count = round(count * recipe.subset)
    else:
        data = build_data(recipe)
        count, classes, side = data.train_count, len(data.classes), data.size
    return min(count, recipe.train_limit or count), classes, recipe.size or side


def _seconds(recipe: Recipe, classes: int, side: int, device: torch.device) -> float:
    """Seconds of a training step, for each of its images."""
    if recipe.student is None:
        raise UserError("a table needs a student")
    kind = kind_of(recipe.task)
    build = partial(kind.build_model, num_classes=classes, frozen_norms=recipe.frozen_norms)
    student = build(recipe.student, size=side)
    teacher = build(recipe.teacher, size=recipe.teacher_size or side) if recipe.teacher is not None else None
    count = min(recipe.batch_size, kind.few) if device.type == "cpu" and side > SMALL else recipe.batch_size
    distiller = kind.build_distiller(recipe, student, teacher, None).to(device).train()
    optimizer = build_optimizer(recipe, distiller)
    batch = to_device(kind.random_batch(recipe, student, count, side, classes), device)
    began = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            began = _now(device)
        loss: torch.Tensor = distiller(batch).loss
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (_now(device) - began) / STEPS / count


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
