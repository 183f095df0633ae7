"""Types of the recipe's settings: the words that each may be, and the numbers that are allowed."""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field

TaskName = Literal["classification", "detection", "segmentation"]


class Place(NamedTuple):
    """Where a task is.

    Attributes:
        kind: The module whose ``KIND`` answers what assembly and runs ask of it (`limbeck.assembly.tasks.Kind`).
        headline: The metric that its runs are judged by, the higher the better.
        page: The module whose ``sections`` are its part of a run's page, if it has one: from what is recorded of the
            run, and a function that makes a section, to sections.
    """

    kind: str
    headline: str
    page: str | None = None


TASKS: Mapping[str, Place] = {
    "classification": Place("limbeck.assembly.classification", "top1"),
    "detection": Place("limbeck.detection.kind", "ap", "limbeck.detection.page"),
    "segmentation": Place("limbeck.segmentation.kind", "miou", "limbeck.segmentation.page"),
}
"""The one list of tasks; each is in a folder of its own, whose modules are loaded when they are asked for."""

Rival = Literal[
    "fitnet", "at", "nst", "sp", "rkd", "pkt", "cc", "vid", "crd", "review", "dkd", "dist", "fgd", "pkd", "cwd"
]  # fmt: skip
Method = Literal["alone", "kd", "projector", "projector+kd", "projector+dkd", "stages", "stages+kd", Rival]
STAGE_METHODS: tuple[Method, ...] = ("stages", "stages+kd")
"""Those with a projector at the end of every stage."""

FEATURE_METHODS: tuple[Method, ...] = ("projector", "projector+kd", "projector+dkd", *STAGE_METHODS)
"""Those that have a feature term."""

LOGIT_METHODS: tuple[Method, ...] = ("kd", "projector+kd", "projector+dkd", "stages+kd", "dkd", "dist")
"""Those that compare logits, so that the teacher's head has to fit."""

KD_METHODS: tuple[Method, ...] = ("kd", "projector+kd", "stages+kd")
"""Those with the term of ``logit_loss``."""

RIVAL_METHODS: tuple[Method, ...] = ("projector+dkd", *get_args(Rival))
"""Those with the term of a rival."""

TAUGHT_METHODS: tuple[Method, ...] = ("kd", *FEATURE_METHODS, *get_args(Rival))
"""Those with a teacher: all but ``alone``."""

CACHED_METHODS: tuple[Method, ...] = tuple(name for name in TAUGHT_METHODS if name not in STAGE_METHODS)
"""Those whose teacher's outputs can be kept."""

TAPPED_METHODS: tuple[Method, ...] = tuple(name for name in CACHED_METHODS if name not in ("kd", "dkd", "dist", "cwd"))
"""Those that compare features at taps that a recipe may name."""

FeatureLoss = Literal[
    "log_sum",
    "log_correlation",
    "correlation_power",
    "squared_error",
    "mean_squared_error",
    "l1",
    "smooth_l1",
    "cosine",
    "feature_kl",
    "gaussian_wasserstein",
]
LoggerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Projector = Literal["identity", "linear", "mlp", "orthogonal", "ensemble", "low_rank", "ridge"]
LogitLoss = Literal["kl", "standardized_kl", "dkd", "nkd", "dist", "mlkd"]
Norm = Literal["batch", "layer", "group", "l2", "zca", "cholesky", "none"]
Pool = Literal[
    "automatic",
    "vector",
    "spatial_mean",
    "spatial_mean_nhwc",
    "token_mean",
    "class_token",
    "spatial_positions",
    "token_positions",
]


def _no_bool(value: object) -> object:
    """True would pass for 1: a slip such as ``epochs: yes`` must not train one epoch."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


def no_switch(value: object) -> object:
    """YAML reads a bare on or off as true or false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _one_is_a_list(value: object) -> object:
    """A single word or number in YAML, as in ``loggers: wandb``, is a list of one."""
    return (value,) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value


Number = BeforeValidator(_no_bool)
OneIsAList = BeforeValidator(_one_is_a_list)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Function = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
Line = Annotated[str, Field(pattern=r"^[^\p{Cc}]+$")]
Count = Annotated[int, Field(ge=1, le=10**9), Number]
Amount = Annotated[int, Field(ge=0, le=10**9), Number]
Workers = Annotated[int, Field(ge=0, le=1024), Number]
Seconds = Annotated[int, Field(ge=1, le=10**7), Number]
Width = Annotated[int, Field(ge=1, le=10**6), Number]
Few = Annotated[int, Field(ge=1, le=1000), Number]
Side = Annotated[int, Field(ge=4, le=4096), Number]
Weight = Annotated[float, Field(ge=0, le=1e30), Number]
Positive = Annotated[float, Field(gt=0, le=1e30), Number]
Temperature = Annotated[float, Field(ge=1e-3, le=1e6), Number]
Exponent = Annotated[float, Field(ge=1, le=1000), Number]
Factor = Annotated[float, Field(ge=0.05, le=20), Number]
Fraction = Annotated[float, Field(ge=0, lt=1), Number]
Share = Annotated[float, Field(gt=0, le=1), Number]
Part = Annotated[float, Field(ge=0, le=1), Number]
Void = Annotated[int, Field(ge=0, le=65535), Number]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Number]
Open = Annotated[float, Field(gt=0, lt=1), Number]
