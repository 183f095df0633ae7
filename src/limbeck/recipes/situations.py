"""Defaults by situation: what teaches a student, and how a model is trained, where nothing is named.

Nothing in this file imports torch.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from limbeck.recipes.values import STAGE_METHODS, Method


class Situation(NamedTuple):
    """One row: what a run in this situation does by default.

    Attributes:
        name: The situation in words.
        method: What teaches the student.
        optimizer: How it is trained.
        lr: Peak learning rate.
        weight_decay: Weight decay.
        warmup: Share of the epochs that is a linear warm-up, one epoch at most.
        frozen_norms: Whether batch norms keep the statistics that they have.
        why: The run that the row rests on.
    """

    name: str
    method: Method
    optimizer: Literal["sgd", "adamw"]
    lr: float
    weight_decay: float
    warmup: float
    frozen_norms: bool
    why: str

    @property
    def training(self) -> dict[str, Any]:
        """Its settings of the optimizer."""
        names = ("optimizer", "lr", "weight_decay", "frozen_norms")
        return {name: getattr(self, name) for name in names}


SCRATCH = Situation("training from scratch", "stages+kd", "sgd", 0.05, 5e-4, 0.0, False, "docs/results.md")
TUNED = Situation("fine-tuning", "stages+kd", "adamw", 3e-4, 0.05, 0.1, True, "docs/results.md, fine-tuning")
UNLABELLED = Situation(
    "training without labels", "projector", "sgd", 0.05, 5e-4, 0.0, False, "a teacher may have no head"
)
TUNED_UNLABELLED = UNLABELLED._replace(name="fine-tuning without labels", **TUNED.training, warmup=TUNED.warmup)
DETECTOR = Situation("detection", "projector", "sgd", 0.05, 5e-4, 0.0, False, "docs/results/detection.md")
SEGMENTER = Situation("segmentation", "kd", "sgd", 0.05, 5e-4, 0.0, False, "docs/guide.md: not decided")

OTHER = {"sgd": {"lr": 0.01, "weight_decay": 5e-4}, "adamw": {"lr": 5e-4, "weight_decay": 0.05}}
"""With the optimizer that is not the row's, where somebody names it."""

CHOSEN = ("method", "optimizer", "lr", "weight_decay", "warmup_epochs", "frozen_norms")
"""Settings whose default depends on the others: None stands for it until the recipe is made."""


def situation_of(values: Mapping[str, Any]) -> Situation:
    """The situation of a run, by its settings.

    Example:
        >>> situation_of({"pretrained": True, "labels": True}).optimizer
        'adamw'
    """
    if (row := {"detection": DETECTOR, "segmentation": SEGMENTER}.get(str(values.get("task")))) is not None:
        return row
    tuned = values.get("student_weights") is not None or not _is_off(values.get("pretrained", False))
    if _is_off(values.get("labels", True)):
        return TUNED_UNLABELLED if tuned else UNLABELLED
    return TUNED if tuned else SCRATCH


def chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `CHOSEN` that are None, by the situation.

    Args:
        values: Settings as somebody gave them; those that are missing are at their defaults.

    Example:
        >>> chosen({"method": "kd", "lr": 0.1, "weight_decay": None})
        {'optimizer': 'sgd', 'weight_decay': 0.0005, 'frozen_norms': False, 'warmup_epochs': 0.0}
    """
    row = situation_of(values)
    method = row.method
    # Of stages+kd the part with one layer: where taps are named, and where outputs are kept, since maps are too large.
    one_layer = any(values.get(name) is not None for name in ("student_tap", "teacher_tap", "cache_views"))
    if one_layer and method in STAGE_METHODS:
        method = "projector+kd"
    return {
        name: value for name, value in ({"method": method} | by_row(row, values)).items() if values.get(name) is None
    }


def by_row(row: Situation, values: Mapping[str, Any]) -> dict[str, Any]:
    """How a model is trained by a row: with the optimizer that the values name, and a warm-up that fits the epochs."""
    optimizer, epochs = values.get("optimizer"), values.get("epochs", 100)
    other = OTHER.get(str(optimizer), {}) if optimizer != row.optimizer else {}
    is_number = isinstance(epochs, int | float) and epochs > 0  # anything else is refused behind this
    return row.training | other | {"warmup_epochs": round(min(1.0, row.warmup * epochs), 6) if is_number else 0.0}


def training_in_words(values: Mapping[str, Any]) -> str:
    """How a run trains, and whether that is the default of its situation.

    Example:
        >>> training = {
        ...     "optimizer": "sgd",
        ...     "lr": 0.1,
        ...     "weight_decay": 0.0005,
        ...     "warmup_epochs": 0,
        ...     "frozen_norms": False,
        ...     "epochs": 9,
        ... }
        >>> training_in_words(training)
        'sgd, learning rate 0.1, weight decay 0.0005, warm-up 0 of 9 epochs; not the defaults for training from scratch'
    """
    row = situation_of(values)
    is_default = all(values[name] == value for name, value in by_row(row, values).items())
    words = (
        str(values["optimizer"]),
        f"learning rate {values['lr']:g}",
        f"weight decay {values['weight_decay']:g}",
        f"warm-up {values['warmup_epochs']:g} of {values['epochs']} epochs",
        *(("batch norms frozen",) if values["frozen_norms"] else ()),
    )
    return f"{', '.join(words)}; {'' if is_default else 'not '}the defaults for {row.name}"


def _is_off(value: object) -> bool:
    """Whether a switch, as YAML or a command line has it, is off: pydantic takes 0, "no" and "False" for it, too."""
    return str(value).strip().lower() in ("false", "0", "0.0", "no", "off", "n", "f")
