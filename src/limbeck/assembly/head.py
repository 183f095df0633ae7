"""A new head on a trunk that has weights: it learns from the trunk's features before anything else is trained."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from limbeck.assembly.build import batch_size_of
from limbeck.assembly.tasks import Parts
from limbeck.distiller import evaluating
from limbeck.distributed import collectives
from limbeck.features.taps import INPUT_SUFFIX, Taps
from limbeck.tasks import Classification
from limbeck.training.evaluation import arriving, evaluate

LEAST, MOST = 2_000, 20_000  # views of training images: a small set is seen in several, of a large one a part is enough
DECAY = 0.1  # of the weights, times features an image: the more there are to choose from, the easier chance fits
STEPS = 50


def fit_head(parts: Parts, device: torch.device) -> dict[str, float]:
    """Fit the student's new classifier to the features of its frozen trunk: a linear probe that becomes its head.

    W, b minimise ``mean cross_entropy(W z + b, y) + DECAY d / (2 n) |W|^2`` over standardized penultimate features z of
    width d, those of n training images as training sees them, by L-BFGS. The features are computed once. A random head
    would send noise through the trunk in the first epochs, and small sets do not make good what that destroys.

    Args:
        parts: What the run is made of, on the device.
        device: Where it is.

    Returns:
        The validation scores with that head. Empty, and nothing is changed, unless the student has a new head, which is
        one linear layer, and labels to learn from.
    """
    student, task = parts.student, parts.distiller.task
    layer = student.module.get_submodule(student.penultimate.removesuffix(INPUT_SUFFIX)) if student.new_head else None
    if not isinstance(layer, nn.Linear) or not isinstance(task, Classification):
        return {}
    with evaluating(student.module):
        features, targets = _features(parts, task, device)
    if features.ndim != 2 or not bool(features.isfinite().all()):  # what is not finite, the checks of a run report
        return {}
    images = min(parts.data.train_count, len(targets))  # not views, which say little new of an image
    weight, bias = logistic_regression(features, targets, layer.out_features, images=images)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
    collectives.copy_from_first(layer.parameters())
    if not parts.data.val_count:
        return {}
    loader = parts.data.val_loader(batch_size=parts.recipe.batch_size)
    return evaluate(student.module, task, loader.to(device), device)


def _features(parts: Parts, task: Classification, device: torch.device) -> tuple[Tensor, Tensor]:
    """Penultimate features ``(n, d)`` and targets of training images, those of all processes on each."""
    data, recipe, tap = parts.data, parts.recipe, parts.student.penultimate
    taps = Taps(parts.student.module, [tap])
    loader = data.train_loader(batch_size=batch_size_of(recipe, data), seed=recipe.seed).to(device)
    loader: Any = loader.shard(collectives.rank(), collectives.world_size())
    wanted = min(max(data.train_count, LEAST), MOST)
    features: list[Tensor] = []
    targets: list[Tensor] = []
    rows = 0
    for epoch in range(math.ceil(wanted / max(data.train_count, 1))):
        loader.set_epoch(epoch)
        for batch in arriving(loader, device):
            features.append(collectives.gather_rows(taps(task.student_input(batch)).features[tap].float()))
            targets.append(collectives.gather_rows(task.target(batch)))
            rows += len(targets[-1])
            if rows >= wanted:
                break
    return torch.cat(features), torch.cat(targets)


def logistic_regression(
    features: Tensor, targets: Tensor, classes: int, *, images: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weights ``(classes, d)`` and bias ``(classes,)`` of a linear classifier on features ``(n, d)``, by L-BFGS.

    Minimises the regularized cross entropy of `fit_head`; the weights apply to the features as they are. ``images`` is
    how many images the rows are views of, by default one each.
    """
    mean, scale = features.mean(0), features.std(0) + 1e-6
    rows = (features - mean) / scale
    decay = DECAY * rows.shape[1] / (len(rows) if images is None else images)
    weight = torch.zeros(classes, rows.shape[1], device=rows.device, requires_grad=True)
    bias = torch.zeros(classes, device=rows.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = cross_entropy(rows @ weight.T + bias, targets) + decay / 2 * weight.square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    weight = weight.detach() / scale
    return weight, bias.detach() - weight @ mean
