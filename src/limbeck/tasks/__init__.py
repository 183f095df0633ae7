"""Tasks: what a batch, a task loss and a metric are for one kind of model."""

from limbeck.tasks.classification import Classification
from limbeck.tasks.label_free import LabelFree

__all__ = ["Classification", "LabelFree"]
