"""What a table is: rows, pairs of models at three scales, claims, and what was printed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from limbeck.recipes.published import named
from limbeck.recipes.recipe import DEFAULTS, Recipe, without_unread

Scale = Literal["tiny", "small", "full"]
Changes = Mapping[str, object]

BASES: dict[Scale, Changes] = {
    "tiny": {"data": "digits", "augmentation": "none", "batch_size": 64, "epochs": 10, "teacher_epochs": 30},
    "small": {
        "data": "fashion-mnist",
        "batch_size": 64,
        "lr": 0.05,
        "warmup_epochs": 0.5,
        "epochs": 10,
        "teacher_epochs": 20,
    },
    "full": {},
}
"""What the runs of a scale share: the digits that are a part of scikit-learn; Fashion-MNIST or a folder of the user's;
the paper's own recipe."""

ALONE: Changes = {"method": "alone"}
KD: Changes = {"method": "kd"}
MSE: Changes = {"method": "projector", "feature_loss": "mean_squared_error", "feature_weight": 2.0}
LOG_SUM: Changes = {"method": "projector", "feature_loss": "log_sum"}
STAGES: Changes = {
    "method": "stages",
    "feature_loss": "log_correlation",
    "feature_weight": 8.0,
}
"""Projectors at every stage: 2 for each of four layers."""
STAGES_KD: Changes = {**STAGES, "method": "stages+kd", "logit_weight": 4.0}
FACTORS = (0.25, 1.0, 4.0)
CORRELATION: Changes = {"method": "projector", "feature_loss": "correlation_power", "feature_weight": 0.02}


@dataclass(frozen=True)
class Claim:
    """That one row is above another.

    Attributes:
        better: The row that is said to be above.
        worse: The other one.
        words: As the paper has it.
        measure: One of the table's; its figure by default.
    """

    better: str
    worse: str
    words: str
    measure: str = ""


@dataclass(frozen=True)
class Curve:
    """A curve for each row, out of the probes of its runs.

    Attributes:
        title: What is drawn.
        y: Path of a list in the last probe or, of a curve over the steps, of a number in each.
        x: Path of the list of its places in the same probe; empty for the steps.
        x_title: What those are.
        log: Whether the vertical axis is logarithmic.
    """

    title: str
    y: str
    x: str = ""
    x_title: str = "step"
    log: bool = False


@dataclass(frozen=True)
class Table:
    """One table, or a figure, whose numbers are those of the probes. Paths in a probe are names with points between.

    Attributes:
        title: What it is about.
        source: Where it is printed.
        rows: Name to what it changes in the recipe of its pair.
        claims: What the paper concludes.
        pairs: Scale to the pairs of models, by name, each with what it changes; of full scale, the name of the recipe
            and what it changes in that. ``student_alone`` is the student that learns without a teacher, where that
            has one head fewer.
        printed: Pair of full scale to row to the printed figure.
        notes: What is not stated, or not as printed.
        metric: What the figures are; in percent, unless they are a probe's.
        probe: Path of a number in the last probe of a run, or of several, whose mean is then the figure.
        measures: Name to the path of further ones.
        curves: What is drawn of them.
        factors: On each row's weight; the best is taken, a single one as it is.
    """

    title: str
    source: str
    rows: Mapping[str, Changes]
    claims: tuple[Claim, ...]
    pairs: Mapping[Scale, Mapping[str, Changes]]
    printed: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    notes: str = ""
    metric: str = "top-1"
    probe: str = ""
    measures: Mapping[str, str] = field(default_factory=dict[str, str])
    curves: tuple[Curve, ...] = ()
    factors: tuple[float, ...] = FACTORS

    @property
    def scale(self) -> float:
        """What figures of a run are multiplied by."""
        return 1.0 if self.probe else 100.0

    @property
    def digits(self) -> int:
        """Behind the point of a figure."""
        return 3 if self.probe else 2

    @property
    def unit(self) -> str:
        """The metric, and whether it is in percent."""
        return self.metric if self.probe else f"{self.metric} in percent"

    def recipe(self, scale: Scale, pair: str, row: str, changes: Changes) -> Recipe:
        """The recipe of one row and pair.

        Args:
            scale: Of the models and the data.
            pair: One of the scale's.
            row: One of the table's.
            changes: What the user sets.

        Raises:
            UserError: If they contradict each other.
        """
        ours = {"name": pair, "fit_teacher": True, **BASES[scale], **self.pairs[scale][pair]}
        base = named(str(ours.pop("recipe"))) if "recipe" in ours else None
        alone = ours.pop("student_alone", None)
        settings = {**ours, **changes, **self.rows[row]}
        if alone is not None and settings.get("method") == "alone":
            settings["student"] = alone
        values = DEFAULTS if base is None else base.model_dump()
        return Recipe(**without_unread({**values, **settings}, given=self.rows[row]))
