"""What a kind of task answers, and where its answers are: `limbeck.recipes.values.TASKS` is the one list of them."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from limbeck.diagnostics import Probe
from limbeck.distiller import Distiller, Task
from limbeck.logs.runlog import RunLog
from limbeck.models import Model
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.values import TASKS
from limbeck.terms import Term
from limbeck.training.loading import ShardedLoader


@runtime_checkable
class AnyLoader(ShardedLoader, Protocol):
    """A loader that gives its batches on a device."""

    def to(self, device: torch.device) -> "AnyLoader":
        """The same loader, its batches on that device."""
        ...


@runtime_checkable
class AnyData(Protocol):
    """Opened images of any task, as far as runs use them."""

    @property
    def name(self) -> str:
        """A short name for tables."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; empty without labels."""
        ...

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        ...

    @property
    def bits(self) -> int:
        """How many bits the values of 16-bit greyscale images use."""
        ...

    @property
    def cropped(self) -> str | None:
        """What random crops are taken out of; None where none are taken."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal if another run had the same images in the same parts."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen and why, for the log."""
        ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Unreadable images met so far, each with the reason."""
        ...

    @property
    def train_count(self) -> int:
        """Training images."""
        ...

    @property
    def val_count(self) -> int:
        """Validation images."""
        ...

    def content(self) -> str | None:
        """A digest of the bytes of all images; None where they are not kept."""
        ...

    def train_loader(self, *, batch_size: int, seed: int) -> AnyLoader:
        """Shuffled, augmented batches; the last short one is dropped."""
        ...

    def val_loader(self, *, batch_size: int) -> AnyLoader:
        """All validation images in their order, not augmented."""
        ...


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of.

    Attributes:
        recipe: The recipe that it was made from.
        data: The images.
        student: The student with its input statistics.
        teacher: The teacher, or None for a model that learns alone.
        distiller: Both with the terms between them.
    """

    recipe: Recipe
    data: AnyData
    student: Model
    teacher: Model | None
    distiller: Distiller


class Program(NamedTuple):
    """What is written of a student as a program.

    Attributes:
        module: From images ``(n, 3, size, size)`` to the outputs.
        outputs: Their names.
        note: What a user of the file has to know of them; begins with "; ", or is empty.
    """

    module: nn.Module
    outputs: tuple[str, ...] = ("output",)
    note: str = ""


@runtime_checkable
class BuildModel(Protocol):
    """Builds a model by its name; see `limbeck.models.build`."""

    def __call__(
        self,
        name: str,
        *,
        num_classes: int,
        size: int | None,
        weights: str | None = None,
        pretrained: bool = False,
        allow_new_head: bool = False,
        frozen_norms: bool = False,
    ) -> Model:
        """Build it; ``frozen_norms``: fix the trunk's batch norms, of a detector."""
        ...


Samples = Callable[[nn.Module], dict[str, Any] | None]
"""From the trained student, or its moving average, to what is kept to be shown; None on all processes but the first."""


@dataclass(frozen=True)
class Kind:
    """What assembly, runs and studies ask of a kind of task.

    Attributes:
        open_data: Opens the recipe's images, a part to train on and one to validate on.
        open_for_scoring: Opens all images of another source: the run's recipe, the source and its file of labels, then
            of the model that is scored: side and bits of its images, and its classes.
        build_model: Builds a student or a teacher.
        unused_parameters: Names of a student's parameters on which neither its output nor one of some taps depends.
        teaches_headless: Whether features are worth learning from when the head of their model is random.
        build_distiller: The terms between student and teacher and their weights. The data may be missing where no
            method looks at them.
        rival_weight: The weight of a rival's terms after any warm-up: the recipe's own or the published one.
        build_scorer: The task that scores a model by itself, with the model's own input statistics, on a device.
        judge_teacher: A teacher's scores in words, and what is wrong with them; empty when nothing is.
        describe_taps: What a term compares, in words.
        too_heavy: Ratio of a term's weighted gradient to the task's before training, above which a term may be too
            heavy.
        too_heavy_when_tuned: The same, of logits and a student that starts from weights.
        record_checks: Logs what can be seen of the images and of how they reach the models.
        build_probe: The probe of a run, or None.
        samples_file: Name of the file of validation images that are shown on the run's page.
        find_samples: Called while the teacher is there; all processes call what it returns with the student.
        program: A student as it is exported in a format that holds programs; UserError if that format cannot.
        random_batch: What the time of a step is measured on: noise with targets of the usual kind, by recipe, student,
            number and side of the images, and number of classes.
        few: Images of it on a CPU, where large ones take as long as they do one by one.
    """

    open_data: Callable[[Recipe], AnyData]
    open_for_scoring: Callable[[Recipe, str, str | None, int, int, tuple[str, ...]], AnyData]
    build_model: BuildModel
    unused_parameters: Callable[[Model, list[str]], list[str]]
    teaches_headless: bool
    build_distiller: Callable[[Recipe, Model, Model | None, AnyData | None], Distiller]
    rival_weight: Callable[[Recipe], float]
    build_scorer: Callable[[Model, torch.device], Task]
    judge_teacher: Callable[[Mapping[str, float], AnyData], tuple[str, str]]
    describe_taps: Callable[[Term, Model, Model], str]
    too_heavy: float
    too_heavy_when_tuned: float
    record_checks: Callable[[Recipe, Parts, RunLog, torch.device], None]
    build_probe: Callable[[Recipe, Parts, Optimizer, RunLog, float, float], Probe | None]
    samples_file: str
    find_samples: Callable[[Recipe, Parts, torch.device], Samples]
    program: Callable[[Model, str], Program]
    random_batch: Callable[[Recipe, Model, int, int, int], Any]
    few: int


def kind_of(task: str) -> Kind:
    """The kind of a task; of a name that is not in the list, as a card that others wrote may have it, classification.

    Its module is loaded here, since it may lie above this room.
    """
    kind = importlib.import_module(TASKS.get(task, TASKS["classification"]).kind).KIND
    assert isinstance(kind, Kind)
    return kind
