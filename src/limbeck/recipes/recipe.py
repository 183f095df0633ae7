"""The recipe: everything that defines a run, in one flat, checked, frozen record.

Its fields are the command line's flags (``batch_size`` is ``--batch-size``), the lines of a run's ``recipe.yaml``, and
the arguments from which `limbeck.recipes.build` makes models, data, terms and optimiser. Words choose code here and
nowhere below. Nothing in this file imports torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from limbeck.errors import UserError
from limbeck.recipes.reading import explain, load_mapping, read_text
from limbeck.recipes.shards import check_shards

TaskName = Literal["classification", "detection"]
Rival = Literal["fitnet", "at", "nst", "sp", "rkd", "pkt", "cc", "vid", "crd", "review", "dkd", "dist", "fgd", "pkd"]
Method = Literal["alone", "kd", "projector", "projector+kd", "projector+dkd", Rival]
LOGIT_METHODS: tuple[Method, ...] = ("kd", "projector+kd", "projector+dkd", "dkd", "dist")
"""Those that compare logits, so that the teacher's head has to fit."""

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


def _no_switch(value: object) -> object:
    """YAML reads a bare on or off as true or false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


_Number = BeforeValidator(_no_bool)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Line = Annotated[str, Field(pattern=r"^[^\p{Cc}]+$")]
Count = Annotated[int, Field(ge=1), _Number]
Amount = Annotated[int, Field(ge=0), _Number]
Side = Annotated[int, Field(ge=4, le=4096), _Number]
Weight = Annotated[float, Field(ge=0), _Number]
Positive = Annotated[float, Field(gt=0), _Number]
Fraction = Annotated[float, Field(ge=0, lt=1), _Number]
Share = Annotated[float, Field(gt=0, le=1), _Number]
Part = Annotated[float, Field(ge=0, le=1), _Number]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), _Number]
Open = Annotated[float, Field(gt=0, lt=1), _Number]


ARCHITECTURES = ("fasterrcnn", "retinanet", "fcos", "ssdlite", "rtdetr")
"""First words of the names of detectors; `limbeck.models.detectors`, which imports torch, has the same."""


class Recipe(BaseModel):
    """One run: which models, which images, what is minimised, and how. Checked when it is made, then frozen.

    Methods: ``alone`` minimises the task loss; ``kd`` adds the logit loss; ``projector`` adds the feature loss between
    the projected student feature and the teacher's; ``projector+kd`` adds both; the others add the loss of a published
    rival (`limbeck.recipes.rivals`), ``projector+dkd`` to the feature loss. Without labels the task loss is absent.

    Raises:
        UserError: A setting is unknown, has a value it cannot have, or contradicts another one (one line).

    Example:
        >>> recipe = Recipe(data="digits", student="small/cnn-2", teacher="small/cnn-32", epochs=30)
        >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
        True
        >>> recipe.difference(recipe.changed({"epochs": 40}))
        ['epochs: 30 -> 40']
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    name: Name = Field(default="distill", description="Name of the recipe; part of the default run folder.")
    task: TaskName = Field(
        default="classification",
        description="classification, or detection of objects in boxes, whose models and data are others.",
    )

    teacher: Line | None = Field(
        default=None,
        description="Teacher: timm/NAME, torchvision/NAME, hub/REPO, cifar/NAME, small/NAME or module:function.",
    )
    teacher_weights: Line | None = Field(
        default=None,
        description="Teacher's weights: a file or a run folder. Without it: the hub, else trained here first.",
    )
    teacher_epochs: Count | None = Field(
        default=None,
        description="Epochs for which a teacher without fitting weights is trained; None: as many as --epochs.",
    )
    teacher_lr: Positive | None = Field(
        default=None, description="Learning rate at which such a teacher is trained; None: as --lr."
    )
    fit_teacher: bool = Field(
        default=False, description="Fine-tune a teacher whose head does not fit, also where only features are used."
    )
    teacher_size: Side | None = Field(
        default=None, description="Side of the teacher's input in pixels; None: as --size."
    )
    teacher_tap: Line | None = Field(
        default=None, description="Teacher's module whose output is distilled; None: the pooled penultimate feature."
    )
    teacher_pool: Pool = Field(
        default="automatic", description="How the teacher's feature becomes vectors; by its shape."
    )
    student: Line | None = Field(default=None, description="The model to train; named as the teacher is. Required.")
    student_weights: Line | None = Field(
        default=None, description="Weights that the student starts from: a file or a run folder; None: random."
    )
    pretrained: bool = Field(default=False, description="Start the student from the hub's weights (fine-tuning).")
    student_tap: Line | None = Field(
        default=None, description="Student's module whose output is projected; None: the pooled penultimate feature."
    )
    student_pool: Pool = Field(
        default="automatic", description="How the student's feature becomes vectors; by its shape."
    )
    student_logit_tap: Line | None = Field(
        default=None,
        description="Student's module whose output the logit loss reads (a second head); None: what it returns.",
    )
    frozen_norms: bool = Field(
        default=False, description="Detection: fix the batch norms of the student's trunk (usual if it was pretrained)."
    )

    data: Line = Field(
        description="A folder, digits, fashion-mnist, cifar10, cifar100, imagenet:FOLDER, hf/NAME, shards:PATTERN;"
        " for detection coco:FILE, yolo:FOLDER, voc:FOLDER."
    )
    val: Line | None = Field(
        default=None, description="Validation images, as --data; None: the source's own, or a share."
    )
    val_share: Open = Field(
        default=0.1, description="Share held out for validation, only where the source has no such part. Chosen."
    )
    size: Side | None = Field(
        default=None, description="Side of the training images in pixels; None: the source's own."
    )
    longest: Side | None = Field(
        default=None, description="Detection: --size is the shorter side, this the longest; None: a square frame."
    )
    scales: Annotated[tuple[Positive, ...], Field(max_length=2)] = Field(
        default=(), description="Detection: smallest and largest factor on --size in training; by default 0.8 to 1.25."
    )
    classes: tuple[Line, ...] = Field(
        default=(), description="Detection: use these classes alone, in this order; by default all."
    )
    on_bad_boxes: Literal["refuse", "skip"] = Field(
        default="refuse", description="Detection: refuse annotations with faults, or skip what is faulty; both list it."
    )
    augmentation: Literal["none", "standard", "randaugment", "strong"] = Field(
        default="standard",
        description="standard: crop, flip; randaugment: RandAugment, too; strong: also mixup, cutmix, erasing (DeiT).",
    )
    flip: bool | None = Field(
        default=None, description="Mirror images in augmentation; None: yes, but for sources with digits or letters."
    )
    subset: Share = Field(
        default=1.0, description="Fixed share of each class's training images, the same for every seed."
    )
    train_limit: Count | None = Field(
        default=None, description="Use this many training images, evenly over the classes."
    )
    labels: bool = Field(
        default=True, description="Use the labels; without them only the teacher teaches (no task loss)."
    )
    skip_bad_images: Amount = Field(
        default=0, description="Unreadable images to tolerate, listed; one more stops the run."
    )
    workers: Amount | None = Field(default=None, description="Workers that read and decode images; None: one a core.")

    method: Method = Field(default="projector", description="What teaches the student besides the labels.")
    levels: Literal["pyramid", "trunk"] = Field(
        default="pyramid", description="Detection: distil the levels of the pyramid, or the trunk's stages below it."
    )
    background: Part = Field(
        default=1.0, description="Detection: weight of places in no box; 1: all places count alike, as one batch."
    )
    feature_loss: FeatureLoss = Field(
        default="log_correlation", description="Distance of features. Published DeiT code; chosen, see docs/results.md."
    )
    alpha: Annotated[float, Field(ge=1), _Number] = Field(
        default=4.0, description="Exponent of both LogSum forms and of correlation_power (paper: 4 to 5 are best)."
    )
    feature_weight: Weight = Field(default=2.0, description="Weight of the feature loss (published ImageNet code).")
    projector: Projector = Field(
        default="linear", description="Maps student features to the teacher's width (paper: linear; mlp on CIFAR-100)."
    )
    inverted: bool = Field(
        default=False, description="Project the teacher's feature to the student's width instead (cross-task paper)."
    )
    projector_hidden: Count = Field(
        default=1024, description="Hidden width of the mlp projector (paper's CIFAR-100 runs)."
    )
    projector_count: Count = Field(default=3, description="Projectors of an ensemble (PEFD: 3).")
    projector_rank: Count = Field(default=64, description="Rank of the low_rank projector. Chosen.")
    input_norm: Norm = Field(
        default="none",
        description="Normalization in front of the projector; zca whitens, as the paper's theory has it.",
    )
    student_norm: Norm = Field(
        default="batch", description="Normalization of the projected student feature (paper: batch)."
    )
    teacher_norm: Norm = Field(default="batch", description="Normalization of the teacher's feature (paper: batch).")
    logit_loss: LogitLoss = Field(
        default="kl",
        description="Distance of the outputs: soft targets, the same standardized, DKD, NKD, DIST or MLKD.",
    )
    logit_weight: Weight = Field(default=4.0, description="Weight of the logit loss; 4 beat 1, docs/results.md.")
    temperature: Positive = Field(default=4.0, description="Temperature of the logit loss (4 in the CIFAR literature).")
    rival_weight: Weight | None = Field(
        default=None, description="Weight of a rival's loss; None: the published one (CRD protocol, or its own code)."
    )
    rival_warmup: Weight = Field(
        default=0.0, description="Epochs over which the weight of dkd or review rises (their code: 20 on CIFAR-100)."
    )
    dkd_beta: Weight = Field(
        default=8.0, description="Weight in DKD of the classes other than the label (its code: 2 to 8 by the pair)."
    )
    review_weight: Weight = Field(
        default=1.0, description="Weight of review, if not --rival-weight (its code: 0.6 to 8 by the pair)."
    )
    task_weight: Weight = Field(default=1.0, description="Weight of the task loss on the labels (published code).")
    label_smoothing: Fraction = Field(
        default=0.0, description="Label smoothing of the task loss (paper's DeiT recipe: 0.1)."
    )

    epochs: Count = Field(default=100, description="Passes over the training images (paper's ImageNet recipe: 100).")
    batch_size: Count = Field(default=128, description="Images of one batch, over all devices together. Chosen.")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="SGD with momentum, or AdamW (paper: for ViTs)."
    )
    lr: Positive = Field(default=0.05, description="Peak learning rate (paper's CIFAR-100 recipe: 0.05).")
    momentum: Fraction = Field(
        default=0.9, description="Momentum of SGD (paper); AdamW has betas of its own, 0.9 and 0.999."
    )
    weight_decay: Weight = Field(
        default=5e-4, description="Weight decay, projector included (paper's CIFAR-100 recipe)."
    )
    schedule: Literal["cosine", "step", "constant"] = Field(
        default="cosine",
        description="Learning rate after the warm-up: cosine to zero, steps at --milestones, or constant.",
    )
    warmup_epochs: Weight = Field(
        default=0.0, description="Epochs of linear warm-up (paper: none, but 20 for its DeiT)."
    )
    milestones: tuple[Positive, ...] = Field(
        default=(), description="Epochs after which schedule step multiplies by --gamma."
    )
    gamma: Share = Field(default=0.1, description="Factor at each milestone (paper: 0.1).")
    clip: Positive | None = Field(
        default=None, description="Largest gradient norm, after unscaling; None: no clipping."
    )
    accumulate: Count = Field(
        default=1, description="Batches that count as one for a step of the optimizer, in the terms too."
    )
    sync_batch_norm: bool = Field(
        default=False, description="Several processes: the student's own batch norms see the global batch."
    )
    ema: Open | None = Field(
        default=None, description="Decay of the moving average of the student's weights; None: none."
    )

    on_bad_numbers: Literal["stop", "skip", "lower"] = Field(
        default="stop",
        description="At a step whose loss or gradient is not finite: stop, skip it, or skip it and halve the rate.",
    )
    bad_number_limit: Count | None = Field(
        default=None, description="Steps that skip and lower may leave out, one more stops the run; None: 10. Chosen."
    )

    cache_views: Count | None = Field(
        default=None,
        description="Keep the teacher's outputs for so many augmented views on disk, reuse them; None: it runs live.",
    )
    cache_seed: Seed | None = Field(
        default=None, description="Seed of the views, so that runs of other seeds share a cache; None: as --seed."
    )
    cache_top_k: Count | None = Field(
        default=None, description="Keep an image's largest logits and the sum of the others; None: all logits."
    )
    cache_precision: Literal["half", "exact"] = Field(
        default="half", description="half: float32 outputs are rounded to float16; exact: nothing is rounded."
    )
    cache_limit: Positive = Field(default=20.0, description="GiB that a cache may take. Chosen.")
    cache_folder: Line | None = Field(
        default=None, description="Where the cache is; None: caches/ beside the run, named by what decides its content."
    )

    probe: Annotated[Literal["auto", "off"] | Count, BeforeValidator(_no_switch)] = Field(
        default="auto",
        description="Measure what the projector learns: auto (in at most 1% of the time), off, or every so many steps.",
    )
    probe_images: Annotated[int, Field(ge=4), _Number] = Field(
        default=128, description="Held-back images that are measured on. Chosen: correlations to within 0.09."
    )
    loggers: tuple[LoggerName, ...] = Field(
        default=(),
        description="Loggers that get the numbers, too: tensorboard, wandb, mlflow, trackio; by default none.",
    )

    seed: Seed = Field(default=0, description="Seed of initial weights, order and augmentation.")
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        default="auto",
        description="Arithmetic of the models; auto: bf16 where the device has it and was measured to be quicker.",
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = Field(
        default="auto",
        description="Layout of images in memory; auto: what was measured to be quicker.",
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_no_switch)] = Field(
        default="auto",
        description="torch.compile of models and terms; auto: on a GPU, where it is won back within the run.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="Where to train; auto: the fastest here."
    )
    shard: bool = Field(
        default=False,
        description="Several processes: each holds a share of student, terms, optimizer and teacher (FSDP2).",
    )
    checkpoint_every: Annotated[int, Field(ge=0), _Number] = Field(
        default=0, description="Steps after which a checkpoint is written within an epoch, too; 0: at its end only."
    )
    process_timeout: Count = Field(
        default=1800, description="Seconds after which one of several processes gives up waiting for another (torch)."
    )

    if not TYPE_CHECKING:  # a type checker keeps the signature with the fields, which this line would hide

        def __init__(self, /, **values: object) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise UserError(explain(error, type(self).model_fields)) from None

    @model_validator(mode="after")
    def _agree(self) -> "Recipe":
        for check in (_check_models, _check_terms, _check_data, _check_schedule, _check_task, check_shards):
            if (problem := check(self)) is not None:
                raise ValueError(problem)
        return self

    @property
    def uses_features(self) -> bool:
        """Whether the method has a feature term (projector)."""
        return self.method in ("projector", "projector+kd", "projector+dkd")

    @property
    def detects(self) -> bool:
        """Whether the task is detection."""
        return self.task == "detection"

    @property
    def rival(self) -> Rival | None:
        """The method, or its second half, where it is a rival of the projector."""
        if self.method == "projector+dkd":
            return "dkd"
        return self.method if self.method in get_args(Rival) else None  # pyright: ignore[reportReturnType]

    @property
    def probes(self) -> bool:
        """Whether a run looks at its models: it does not where no process has them whole."""
        return self.probe != "off" and not self.shard

    @property
    def uses_logits(self) -> bool:
        """Whether the method compares logits."""
        return self.method in LOGIT_METHODS

    @property
    def has_logit_term(self) -> bool:
        """Whether the method has the term of ``logit_loss`` (KD)."""
        return self.method in ("kd", "projector+kd")

    def changed(self, changes: Mapping[str, object]) -> "Recipe":
        """A checked copy with some settings changed; pydantic's own ``model_copy`` does not check.

        Raises:
            UserError: A change is unknown, or contradicts the rest.
        """
        values: dict[str, Any] = {**self.model_dump(), **changes}
        return Recipe(**values)

    def difference(self, other: "Recipe") -> list[str]:
        """What is not the same in another recipe, as lines ``field: this -> other``; empty when they are equal."""
        mine, theirs = self.model_dump(), other.model_dump()
        changed = [name for name in mine if mine[name] != theirs[name]]
        return [f"{name}: {_plain(mine[name])} -> {_plain(theirs[name])}" for name in changed]

    def to_yaml(self) -> str:
        """Every setting, grouped, as YAML from which `from_yaml` makes an equal recipe again."""
        values = self.model_dump(mode="json")
        parts = (
            f"# {group}\n"
            + yaml.safe_dump({name: values[name] for name in names}, allow_unicode=True, sort_keys=False, width=10_000)
            for group, names in GROUPS.items()
        )
        return "\n".join(parts)

    @classmethod
    def from_yaml(cls, source: str | Path, *, called: str = "recipe") -> "Recipe":
        """Read a recipe by the safe loader; settings that are not in it have their defaults.

        Args:
            source: A ``Path`` is a file to read, a ``str`` is the YAML itself.
            called: What a text is called in an error's line; a file is called by its name.

        Raises:
            UserError: The file cannot be read, or is not the YAML of a recipe.
        """
        text = source
        if isinstance(source, Path):
            text, called = read_text(source), str(source)
        values = load_mapping(str(text), called)
        try:
            return Recipe(**values)
        except UserError as error:
            raise UserError(f"{called}: {error}") from None


def _groups() -> dict[str, tuple[str, ...]]:
    first = {"name": "models", "data": "data", "method": "method", "epochs": "optimization"}
    first |= {"cache_views": "cache", "probe": "diagnostics", "seed": "machine"}
    groups: dict[str, tuple[str, ...]] = {}
    group = ""
    for name in Recipe.model_fields:
        group = first.get(name, group)
        groups[group] = (*groups.get(group, ()), name)
    return groups


GROUPS = _groups()
"""Group -> its settings, in the order of the fields above; the YAML and the help show them so."""

CACHE_SETTINGS = ("cache_views", "cache_seed", "cache_top_k", "cache_folder")
"""What there is none of where the teacher runs live, or where there is no teacher."""

TEACHER_SETTINGS = (
    "teacher", "teacher_weights", "teacher_epochs", "teacher_lr", "teacher_size", "teacher_tap", "student_logit_tap",
    *CACHE_SETTINGS,
)  # fmt: skip
"""What a model that is trained alone has none of: all of these are None."""


def _plain(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return " ".join(item if isinstance(item, str) else f"{item:g}" for item in value) or "()"


def _check_models(recipe: Recipe) -> str | None:
    if recipe.student is None:
        return "student: missing; name the model to train, for example timm/resnet18"
    if recipe.method == "alone" and recipe.teacher is not None:
        return f"method: alone uses no teacher, got teacher {recipe.teacher!r}; `limbeck train` trains a model alone"
    if recipe.method != "alone" and recipe.teacher is None:
        return f"teacher: missing; method {recipe.method} needs one (method alone does not)"
    if recipe.pretrained and recipe.student_weights is not None:
        return (
            f"pretrained: the student starts from student_weights {recipe.student_weights!r} or from the hub, not both"
        )
    for name in TEACHER_SETTINGS:
        if recipe.teacher is None and getattr(recipe, name) is not None:
            return f"{name}: given without a teacher"
    for name in CACHE_SETTINGS:
        if recipe.cache_views is None and getattr(recipe, name) is not None:
            return f"{name}: given without cache_views, the number of views that are kept"
    return None


def _check_terms(recipe: Recipe) -> str | None:
    norms = {"student_norm": recipe.student_norm, "teacher_norm": recipe.teacher_norm}
    if recipe.uses_features and recipe.feature_loss in ("log_correlation", "correlation_power"):
        for name, norm in norms.items():
            if norm != "batch":
                return (
                    f"{name}: feature_loss {recipe.feature_loss} is defined on batch norm on both sides, got {norm!r}"
                )
    if recipe.has_logit_term and recipe.logit_loss in ("dkd", "nkd") and not recipe.labels:
        return f"logit_loss: {recipe.logit_loss} needs labels (it treats the true class apart); kl does without"
    if recipe.rival == "dkd" and not recipe.labels:
        return "labels: method dkd treats the true class apart, so it needs them; kd and dist do without"
    if recipe.student_logit_tap is not None and not recipe.uses_logits:
        return f"student_logit_tap: method {recipe.method} compares no logits, got {recipe.student_logit_tap!r}"
    if recipe.uses_features and recipe.feature_loss == "gaussian_wasserstein":
        for name, pool in {"student_pool": recipe.student_pool, "teacher_pool": recipe.teacher_pool}.items():
            if pool not in ("spatial_positions", "token_positions"):
                return (
                    f"{name}: feature_loss gaussian_wasserstein compares positions; use spatial_positions, got {pool!r}"
                )
    if recipe.method == "alone" and not recipe.labels:
        return "labels: method alone learns from the labels only; without them choose kd or projector"
    if not recipe.labels and recipe.label_smoothing > 0:
        return f"label_smoothing: smooths labels, and there are none (labels false), got {recipe.label_smoothing}"
    weights = {
        "task_weight": recipe.task_weight if recipe.labels else 0.0,
        "feature_weight": recipe.feature_weight if recipe.uses_features else 0.0,
        "logit_weight": recipe.logit_weight if recipe.has_logit_term else 0.0,
        "rival_weight": (1.0 if recipe.rival_weight is None else recipe.rival_weight) if recipe.rival else 0.0,
    }
    if not any(weights.values()):
        return f"method: every weight of {recipe.method} is zero, so nothing would be learned"
    return None


def _check_data(recipe: Recipe) -> str | None:
    if recipe.train_limit is not None and recipe.subset < 1:
        return f"train_limit: give either train_limit ({recipe.train_limit}) or subset ({recipe.subset}), not both"
    if recipe.precision == "fp16" and recipe.device == "cpu":
        return "precision: fp16 is for a GPU, got device cpu; expected auto, bf16 or float32"
    if len(set(recipe.loggers)) < len(recipe.loggers):
        return f"loggers: expected each once, got {_plain(recipe.loggers)}"
    return None


def _check_schedule(recipe: Recipe) -> str | None:
    marks = recipe.milestones
    if recipe.bad_number_limit is not None and recipe.on_bad_numbers == "stop":
        return "bad_number_limit: on_bad_numbers stop leaves out no step; expected skip or lower"
    if recipe.schedule == "step" and not marks:
        return "milestones: schedule step needs the epochs of its steps, for example 30 60 90"
    if recipe.schedule != "step" and marks:
        return f"milestones: only for schedule step, got schedule {recipe.schedule} with milestones {_plain(marks)}"
    if list(marks) != sorted(set(marks)) or (marks and marks[-1] >= recipe.epochs):
        return f"milestones: expected rising epochs below epochs ({recipe.epochs}), got {_plain(marks)}"
    if recipe.warmup_epochs >= recipe.epochs:
        return f"warmup_epochs: expected less than epochs ({recipe.epochs}), got {recipe.warmup_epochs:g}"
    return None


DETECTION_METHODS = ("alone", "kd", "projector", "projector+kd", "fitnet", "review", "fgd", "pkd")
DETECTION_SETTINGS = ("frozen_norms", "longest", "scales", "classes", "on_bad_boxes", "levels", "background")
CLASSIFICATION_SETTINGS = (
    "teacher_size",
    "teacher_pool",
    "student_pool",
    "labels",
    "label_smoothing",
    "cache_views",
    "logit_loss",
)
"""What one of the tasks knows, and the other has at its default."""


def _check_task(recipe: Recipe) -> str | None:
    detectors = [name for name in ("student", "teacher") if _names_detector(getattr(recipe, name))]
    if not recipe.detects:
        if detectors:
            return f"task: {detectors[0]} {getattr(recipe, detectors[0])!r} is a detector; expected task detection"
        if recipe.method in ("fgd", "pkd"):
            return f"method: {recipe.method} compares the pyramids of detectors; expected task detection"
        return _not_default(recipe)
    for name in ("student", "teacher"):
        if getattr(recipe, name) is not None and name not in detectors:
            return (
                f"{name}: expected a detector, ARCHITECTURE/FAMILY/MODEL as in fcos/timm/resnet18, "
                f"got {getattr(recipe, name)!r}"
            )
    if recipe.method not in DETECTION_METHODS:
        return f"method: for detection expected one of {', '.join(DETECTION_METHODS)}, got {recipe.method}"
    if recipe.augmentation == "strong":
        return "augmentation: for detection expected none or standard, got strong"
    if (recipe.student_tap is None) != (recipe.teacher_tap is None) and recipe.teacher is not None:
        return "student_tap: for detection give both taps or none, then all levels are paired by their strides"
    if len(recipe.scales) == 1 or list(recipe.scales) != sorted(recipe.scales):
        return f"scales: expected a smallest and a largest factor, got {_plain(recipe.scales)}"
    if recipe.longest is not None and (recipe.size is None or recipe.longest < recipe.size):
        return f"longest: expected at least size, the shorter side, got {recipe.longest} and size {recipe.size}"
    if recipe.background < 1 and not recipe.uses_features:
        return f"background: belongs to the feature loss, which method {recipe.method} has not"
    if recipe.accumulate > 1 and recipe.method != "alone":
        return "accumulate: with a teacher, detection takes one batch a step (its second stage and frames differ)"
    return _not_default(recipe)


def _not_default(recipe: Recipe) -> str | None:
    """The first setting that the recipe's task has no use for and that is not at its default."""
    for name in CLASSIFICATION_SETTINGS if recipe.detects else DETECTION_SETTINGS:
        if getattr(recipe, name) != Recipe.model_fields[name].default:
            return f"{name}: has no meaning for task {recipe.task}, got {_plain(getattr(recipe, name))}"
    return None


def _names_detector(name: str | None) -> bool:
    return name is not None and name.partition("/")[0].lower().partition("-")[0] in ARCHITECTURES
