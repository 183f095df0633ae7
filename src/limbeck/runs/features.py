"""Judge a student by its features, with its classifier cut off: nearest neighbours and a linear probe."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from limbeck.assembly.build import CARD, build_data, load_student
from limbeck.assembly.head import logistic_regression
from limbeck.assembly.tasks import kind_of
from limbeck.data import Data
from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.models import InputTransform
from limbeck.recipes.recipe import Recipe
from limbeck.runs.inspection import recipe_of
from limbeck.runs.run import device_of
from limbeck.storage.untrusted import read_object
from limbeck.training.evaluation import arriving

Judge = Literal["knn", "linear"]
NEIGHBOURS = 20
TEMPERATURE = 0.07
OWN = ("data", "val", "val_share", "label_file", "workers", "skip_bad_images")  # settings that say which images
ROWS = 512  # validation images whose distances to all training images are held at once


def judge_features(
    folder: Path,
    judges: Sequence[Judge],
    *,
    data: str | None = None,
    label_file: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, float]:
    """Top-1 accuracy of classifiers on the frozen features of a run's student; the student is not trained.

    Both learn from the labelled training images and are scored on the validation images, neither augmented.

    - knn: the 20 training images of the largest cosine similarity s vote for their classes with weights exp(s / 0.07).
    - linear: logistic regression on standardized features (`limbeck.assembly.head.logistic_regression`).

    Source: Wu et al. 2018 (arXiv 1805.01978) for the votes, with the 20 neighbours of DINO (arXiv 2104.14294).

    Args:
        folder: The run; one without labels as well.
        judges: Which of the two.
        data: Labelled images with a training part. Default: the run's own.
        label_file: A CSV file with the classes of its images.
        say: Receives how many images are used.

    Returns:
        The accuracy of each, as a share.

    Raises:
        UserError: The folder holds no student of classification, or the images have no labels or no two parts.
    """
    card = read_object(folder / CARD, "model") if (folder / CARD).is_file() else {}
    if kind_of(task := str(card.get("task"))) is not kind_of("classification"):
        raise UserError(f"--probe: {folder} holds a student of {task}; expected one of classification")
    student = load_student(folder, headless=True)
    own = recipe_of(folder, card, data, label_file)
    settings: dict[str, Any] = {"data": data, "label_file": label_file}
    if data is None:
        settings = {name: getattr(own, name) for name in OWN}
    size = student.input.size
    recipe = Recipe.model_validate(
        {**settings, "student": student.name, "method": "alone", "size": size, "augmentation": "none"}
    )
    opened = build_data(recipe)
    assert isinstance(opened, Data)
    if not opened.classes:
        raise UserError(f"{opened.name} has no labels to judge features by; give --data LABELLED")
    if not opened.val_count:
        raise UserError(f"{opened.name} has no validation images to score on; give --data with a validation part")
    say(f"images of {opened.name}: {opened.train_count} to learn from, {opened.val_count} to score on")
    device = device_of(recipe)
    module = nn.Sequential(InputTransform(student.input), student.module).to(device)
    train, targets = _features(module, opened.train_in_order(batch_size=64).to(device), device)
    val, truth = _features(module, opened.val_loader(batch_size=64).to(device), device)
    found: dict[str, float] = {}
    for judge in judges:
        if judge == "knn":
            votes = _votes(train, targets, val, len(opened.classes))
        else:
            weight, bias = logistic_regression(train, targets, len(opened.classes))
            votes = val @ weight.T + bias
        found[judge] = float((votes.argmax(1) == truth).float().mean())
    return found


def _features(module: nn.Module, loader: Iterable[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Features ``(n, d)`` in float32, and labels ``(n,)``, on the device."""
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(module):
        for batch in arriving(loader, device):
            features.append(module(batch[0]).float().flatten(1))
            labels.append(batch[1])
    return torch.cat(features), torch.cat(labels)


def _votes(train: Tensor, targets: Tensor, val: Tensor, classes: int) -> Tensor:
    """What the nearest training images say of each validation image, by class ``(n, classes)``."""
    train, val = normalize(train, dim=1), normalize(val, dim=1)
    found: list[Tensor] = []
    for rows in val.split(ROWS):
        similar, nearest = (rows @ train.T).topk(min(NEIGHBOURS, len(train)), dim=1)
        weights = ((similar - 1) / TEMPERATURE).exp()  # of 1: the same votes, and no overflow
        found.append(weights.new_zeros(len(rows), classes).scatter_add_(1, targets[nearest], weights))
    return torch.cat(found)
