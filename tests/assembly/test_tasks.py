"""Each task of the list answers what is asked of a kind."""

import math

import pytest

from limbeck.assembly.classification import KIND
from limbeck.assembly.tasks import kind_of
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.values import TASKS

MODELS = {"classification": "small/cnn-2", "detection": "fcos-32/cifar/resnet8", "segmentation": "small/fcn-8s-4"}
OUTPUTS = {"classification": ("output",), "detection": ("boxes", "scores"), "segmentation": ("logits",)}


@pytest.mark.parametrize("task", TASKS)
def test_a_drawn_batch_makes_a_step(task: str) -> None:
    recipe = Recipe.model_validate({"data": "x", "task": task, "student": MODELS[task], "method": "alone"})
    kind = kind_of(task)
    student = kind.build_model(MODELS[task], num_classes=3, size=64)
    distiller = kind.build_distiller(recipe, student, None, None)
    assert math.isfinite(float(distiller(kind.random_batch(recipe, student, 2, 64, 3)).loss.detach()))
    assert kind.program(student, "onnx").outputs == OUTPUTS[task]


def test_a_card_of_a_task_that_is_not_known_is_of_classification() -> None:
    assert kind_of("None") is KIND
