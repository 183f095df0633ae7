"""The settings of a recipe, one field each, with its role beside it: what it decides, whose it is, when it is read.

A new setting is declared here and nowhere else. Nothing in this file imports torch.
"""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from limbeck.recipes.roles import (
    ARITHMETIC,
    BOOKKEEPING,
    DATA,
    FAULTS,
    MACHINE,
    NUMBER,
    SEED,
    SHARED,
    STUDENT,
    TEACHER,
    Read,
)
from limbeck.recipes.values import (
    CACHED_METHODS,
    FEATURE_METHODS,
    KD_METHODS,
    LOGIT_METHODS,
    RIVAL_METHODS,
    STAGE_METHODS,
    TAPPED_METHODS,
    TAUGHT_METHODS,
    Amount,
    Count,
    Exponent,
    Factor,
    FeatureLoss,
    Few,
    Fraction,
    Function,
    Line,
    LoggerName,
    LogitLoss,
    Method,
    Name,
    Norm,
    Number,
    OneIsAList,
    Open,
    Part,
    Pool,
    Positive,
    Projector,
    Rival,
    Seconds,
    Seed,
    Share,
    Side,
    TaskName,
    Temperature,
    Void,
    Weight,
    Width,
    Workers,
    no_switch,
)

CLASSES = Read(task=("classification",))
BOXES = Read(task=("detection",))
MASKS = Read(task=("segmentation",))
ANNOTATED = Read(task=("detection", "segmentation"))
TAUGHT = Read(method=TAUGHT_METHODS)
TAPPED = Read(method=TAPPED_METHODS)
FEATURES = Read(method=FEATURE_METHODS)
CACHED = Read(cache_views=(NUMBER,))
STEPS = Read(schedule=("step",))
POWER = Read(feature_loss=("log_sum", "log_correlation", "correlation_power"))
MLP, ENSEMBLE, LOW_RANK = Read(projector=("mlp",)), Read(projector=("ensemble",)), Read(projector=("low_rank",))
SOFT_KD = Read(method=KD_METHODS, logit_loss=("kl", "standardized_kl", "dkd", "nkd", "dist"))
OTHER_KD = Read(task=("detection", "segmentation"), method=KD_METHODS)
SOFT_RIVAL = Read(method=("dkd", "dist", "projector+dkd", "cwd"))
SOFT_FEATURE = Read(feature_loss=("feature_kl",))
RISING = Read(task=("classification",), method=("dkd", "review", "projector+dkd"))
REVIEW = Read(task=("classification",), method=("review",), rival_weight=(None,))


class Settings(BaseModel):
    """Every setting of a run, with its default; :class:`limbeck.recipes.recipe.Recipe` checks that they agree."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    name: Annotated[Name, BOOKKEEPING] = Field(
        default="distill", description="Name of the recipe; part of the default run folder."
    )
    task: Annotated[TaskName, DATA] = Field(
        default="classification",
        description="classification, detection (needs boxes) or segmentation (needs masks).",
    )

    teacher: Annotated[Line | None, TEACHER, TAUGHT] = Field(
        default=None,
        description="Teacher: timm/NAME, torchvision/NAME, hub/REPO, cifar/NAME, small/NAME or module:function.",
    )
    teacher_weights: Annotated[Line | None, TEACHER, TAUGHT] = Field(
        default=None,
        description="Teacher's weights: a file or a run folder. Without it: the hub, else trained here first.",
    )
    teacher_epochs: Annotated[Count | None, TEACHER, TAUGHT] = Field(
        default=None,
        description="Epochs to train a teacher whose weights do not fit. Default: --epochs, at least 30; "
        "10 if it has weights and only its head does not fit (fine-tuning).",
    )
    teacher_lr: Annotated[Positive | None, TEACHER, TAUGHT] = Field(
        default=None,
        description="Learning rate of such a teacher. Default: --lr from scratch, else 0.0003.",
    )
    teacher_settings: Annotated[tuple[Line, ...] | None, OneIsAList, TEACHER, TAUGHT] = Field(
        default=None,
        description="Other settings of its training, as batch_size=64 optimizer=adamw. Default: the student's "
        "from scratch, else those of fine-tuning. A sweep adds its recipe's, as student.lr=0.05, so that all trials "
        "have one teacher.",
    )
    fit_teacher: Annotated[bool, TEACHER, TAUGHT] = Field(
        default=False, description="Fine-tune a teacher whose head does not fit, also where only features are used."
    )
    teacher_size: Annotated[Side | None, TEACHER, Read(task=("classification",), method=TAUGHT_METHODS)] = Field(
        default=None, description="Side of the teacher's input in pixels. Default: --size."
    )
    teacher_tap: Annotated[Line | None, STUDENT, TAPPED] = Field(
        default=None, description="Teacher's module whose output is distilled. Default: the pooled penultimate feature."
    )
    teacher_pool: Annotated[Pool, STUDENT, Read(task=("classification",), method=FEATURE_METHODS)] = Field(
        default="automatic", description="How the teacher's feature becomes vectors; by its shape."
    )
    student: Annotated[Line | None, STUDENT] = Field(
        default=None, description="The model to train; named as the teacher is. Required."
    )
    student_weights: Annotated[Line | None, STUDENT] = Field(
        default=None, description="Weights that the student starts from: a file or a run folder. Default: random."
    )
    pretrained: Annotated[bool, STUDENT] = Field(
        default=False, description="Start the student from the hub's weights (fine-tuning)."
    )
    student_tap: Annotated[Line | None, STUDENT, TAPPED] = Field(
        default=None, description="Student's module whose output is projected. Default: the pooled penultimate feature."
    )
    student_pool: Annotated[Pool, STUDENT, Read(task=("classification",), method=FEATURE_METHODS)] = Field(
        default="automatic", description="How the student's feature becomes vectors; by its shape."
    )
    student_logit_tap: Annotated[Line | None, STUDENT, Read(task=("classification",), method=LOGIT_METHODS)] = Field(
        default=None,
        description="Student's module whose output the logit loss reads (a second head). Default: its output.",
    )
    frozen_norms: Annotated[bool, SHARED] = Field(
        default=None,
        description="Keep the statistics of the student's batch norms; of a detector those of the trunk, and their "
        "parameters. Default: yes for a classifier that starts from weights.",
    )  # pyright: ignore[reportAssignmentType]

    data: Annotated[Line, DATA] = Field(
        description="A folder, digits, fashion-mnist, cifar10, cifar100, imagenet:FOLDER, hf/NAME, shards:PATTERN;"
        " for detection coco:FILE, yolo:FOLDER, voc:FOLDER; for segmentation a folder of images and masks."
    )
    val: Annotated[Line | None, DATA] = Field(
        default=None,
        description="Validation images, as --data. Default: the source's own, or a share.",
    )
    val_share: Annotated[Open, DATA] = Field(
        default=0.1, description="Share held out for validation, only where the source has no such part. Chosen."
    )
    size: Annotated[Side | None, SHARED] = Field(
        default=None, description="Side of the training images in pixels. Default: the source's own."
    )
    longest: Annotated[Side | None, SHARED, BOXES] = Field(
        default=None, description="Detection: --size is the shorter side, this the longest. Default: a square frame."
    )
    shorter: Annotated[Side | None, SHARED, MASKS] = Field(
        default=None, description="Segmentation: resize images to this shorter side; crops of --size are cut from them."
    )
    scales: Annotated[tuple[Factor, ...], Field(max_length=2), OneIsAList, SHARED, ANNOTATED] = Field(
        default=(),
        description="Smallest and largest factor on images in training. Default: 0.8 to 1.25; of masks 0.5 to 2.",
    )
    classes: Annotated[tuple[Line, ...], OneIsAList, DATA, ANNOTATED] = Field(
        default=(), description="Detection, segmentation: use these classes alone, in this order; by default all."
    )
    void: Annotated[tuple[Void, ...], OneIsAList, DATA, MASKS] = Field(
        default=(), description="Segmentation: numbers in masks that are no class, besides 255; by default none."
    )
    on_bad_annotations: Annotated[Literal["refuse", "skip"], FAULTS, ANNOTATED] = Field(
        default="refuse", description="Boxes or masks with faults: refuse them, or skip the images that have them."
    )
    augmentation: Annotated[Literal["none", "standard", "randaugment", "strong"] | Function, SHARED] = Field(
        default="standard",
        description="standard: crop, flip; randaugment: RandAugment, too; strong: also mixup, cutmix, erasing (DeiT); "
        "or MODULE:FUNCTION of your own.",
    )
    flip: Annotated[bool | None, SHARED, Read(augmentation=("standard", "randaugment", "strong"))] = Field(
        default=None, description="Mirror images in augmentation. Default: yes, except for digits and letters."
    )
    subset: Annotated[Share, SHARED] = Field(
        default=1.0, description="Fixed share of each class's training images, the same for every seed."
    )
    train_limit: Annotated[Count | None, STUDENT] = Field(
        default=None, description="Use this many training images, evenly over the classes."
    )
    labels: Annotated[bool, DATA, CLASSES] = Field(
        default=True, description="Use the labels; without them only the teacher teaches (no task loss)."
    )
    label_file: Annotated[Line | None, DATA, CLASSES] = Field(
        default=None,
        description="CSV file with a row for each image of the folder --data: FILE,CLASS. Also --labels FILE.",
    )
    on_missing_classes: Annotated[Literal["refuse", "skip"], DATA, CLASSES] = Field(
        default="refuse",
        description="Empty class folders, and validation images of other classes than train: refuse, or skip them.",
    )
    skip_bad_images: Annotated[Amount, FAULTS] = Field(
        default=0, description="Unreadable images to tolerate, listed; one more stops the run."
    )
    workers: Annotated[Workers | None, MACHINE] = Field(
        default=None, description="Workers that read and decode images. Default: one a core."
    )

    method: Annotated[Method, STUDENT] = Field(
        default=None,
        description="The distillation method. Default: stages+kd, the best of docs/results.md; "
        "projector+kd with your own taps or a teacher cache; projector for detectors and without labels; kd for masks.",
    )  # pyright: ignore[reportAssignmentType]
    levels: Annotated[Literal["pyramid", "trunk"], STUDENT, Read(task=("detection",), method=TAPPED_METHODS)] = Field(
        default="pyramid", description="Detection: distil the levels of the pyramid, or the trunk's stages below it."
    )
    background: Annotated[Part, STUDENT, Read(task=("detection",), method=FEATURE_METHODS)] = Field(
        default=1.0, description="Detection: weight of places in no box; 1: all places count alike, as one batch."
    )
    feature_loss: Annotated[FeatureLoss, STUDENT, FEATURES] = Field(
        default="log_correlation", description="Distance of features. Published DeiT code; chosen, see docs/results.md."
    )
    alpha: Annotated[Exponent, STUDENT, POWER] = Field(
        default=4.0, description="Exponent of both LogSum forms and of correlation_power (paper: 4 to 5 are best)."
    )
    feature_weight: Annotated[Weight | None, STUDENT, FEATURES] = Field(
        default=None,
        description="Weight of the feature loss, divided among its layers. Default: 2 (published ImageNet code); "
        "32 at every stage of a classifier or detector (docs/results.md).",
    )
    projector: Annotated[Projector, STUDENT, FEATURES] = Field(
        default="linear", description="Maps student features to the teacher's width (paper: linear; mlp on CIFAR-100)."
    )
    inverted: Annotated[bool, STUDENT, FEATURES] = Field(
        default=False, description="Project the teacher's feature to the student's width instead (cross-task paper)."
    )
    projector_hidden: Annotated[Width, STUDENT, MLP] = Field(
        default=1024, description="Hidden width of the mlp projector (paper's CIFAR-100 runs)."
    )
    projector_count: Annotated[Few, STUDENT, ENSEMBLE] = Field(
        default=3, description="Projectors of an ensemble (PEFD: 3)."
    )
    projector_rank: Annotated[Width, STUDENT, LOW_RANK] = Field(
        default=64, description="Rank of the low_rank projector. Chosen."
    )
    input_norm: Annotated[Norm, STUDENT, FEATURES] = Field(
        default="none",
        description="Normalization before the projector; zca whitens, as the paper's theory has it.",
    )
    student_norm: Annotated[Norm, STUDENT, FEATURES] = Field(
        default="batch", description="Normalization of the projected student feature (paper: batch)."
    )
    teacher_norm: Annotated[Norm, STUDENT, FEATURES] = Field(
        default="batch", description="Normalization of the teacher's feature (paper: batch)."
    )
    logit_loss: Annotated[LogitLoss, STUDENT, Read(task=("classification",), method=KD_METHODS)] = Field(
        default="kl",
        description="Distance of the outputs: soft targets, the same standardized, DKD, NKD, DIST or MLKD.",
    )
    logit_weight: Annotated[Weight | None, STUDENT, Read(method=KD_METHODS)] = Field(
        default=None,
        description="Weight of the logit loss. Default: 4, which beat 1; stages+kd 16 (docs/results.md); masks 1.",
    )
    temperature: Annotated[Temperature, STUDENT, SOFT_KD, OTHER_KD, SOFT_RIVAL, SOFT_FEATURE] = Field(
        default=4.0, description="Temperature of the logit loss (4 in the CIFAR literature)."
    )
    rival_weight: Annotated[Weight | None, STUDENT, Read(method=RIVAL_METHODS)] = Field(
        default=None,
        description="Weight of a rival's loss. Default: as published (CRD protocol, or its own code).",
    )
    rival_warmup: Annotated[Weight, STUDENT, RISING] = Field(
        default=0.0, description="Epochs over which the weight of dkd or review rises (their code: 20 on CIFAR-100)."
    )
    dkd_beta: Annotated[Weight, STUDENT, Read(method=("dkd", "projector+dkd")), Read(logit_loss=("dkd",))] = Field(
        default=8.0, description="Weight in DKD of the classes other than the label (its code: 2 to 8 by the pair)."
    )
    review_weight: Annotated[Weight, STUDENT, REVIEW] = Field(
        default=1.0, description="Weight of review, if not --rival-weight (its code: 0.6 to 8 by the pair)."
    )
    task_weight: Annotated[Weight, STUDENT, BOXES, Read(labels=(True,))] = Field(
        default=1.0, description="Weight of the task loss on the labels (published code)."
    )
    label_smoothing: Annotated[Fraction, SHARED, Read(task=("classification",), labels=(True,))] = Field(
        default=0.0, description="Label smoothing of the task loss (paper's DeiT recipe: 0.1)."
    )

    epochs: Annotated[Count, SHARED] = Field(
        default=100, description="Passes over the training images (paper's ImageNet recipe: 100)."
    )
    batch_size: Annotated[Count, SHARED] = Field(
        default=128, description="Images of one batch, over all devices together. Chosen."
    )
    optimizer: Annotated[Literal["sgd", "adamw"], SHARED] = Field(
        default=None,
        description="SGD with momentum, or AdamW. Default: sgd from scratch, adamw for a student with weights.",
    )  # pyright: ignore[reportAssignmentType]
    lr: Annotated[Positive, SHARED] = Field(
        default=None,
        description="Peak learning rate. Default: 0.05 from scratch (paper's CIFAR-100 recipe); 0.0003 with weights.",
    )  # pyright: ignore[reportAssignmentType]
    momentum: Annotated[Fraction, SHARED, Read(optimizer=("sgd",))] = Field(
        default=0.9, description="Momentum of SGD (paper); AdamW has its own betas, 0.9 and 0.999."
    )
    weight_decay: Annotated[Weight, SHARED] = Field(
        default=None,
        description="Weight decay, projector included. Default: 0.0005 from scratch (paper's CIFAR-100 recipe); "
        "0.05 with weights.",
    )  # pyright: ignore[reportAssignmentType]
    schedule: Annotated[Literal["cosine", "step", "constant"], SHARED] = Field(
        default="cosine",
        description="Learning rate after the warm-up: cosine to zero, steps at --milestones, or constant.",
    )
    warmup_epochs: Annotated[Weight, SHARED] = Field(
        default=None,
        description="Epochs of linear warm-up (paper: none, but 20 for its DeiT). Default: none from scratch; "
        "with weights a tenth of --epochs, at most one.",
    )  # pyright: ignore[reportAssignmentType]
    milestones: Annotated[tuple[Positive, ...], OneIsAList, SHARED, STEPS] = Field(
        default=(), description="Epochs after which schedule step multiplies by --gamma."
    )
    gamma: Annotated[Share, SHARED, STEPS] = Field(default=0.1, description="Factor at each milestone (paper: 0.1).")
    clip: Annotated[Positive | None, SHARED] = Field(
        default=None, description="Largest gradient norm, after unscaling. Default: no clipping."
    )
    accumulate: Annotated[Count, SHARED] = Field(
        default=1, description="Batches that count as one for a step of the optimizer, in the terms too."
    )
    sync_batch_norm: Annotated[bool, SHARED] = Field(
        default=False, description="Several processes: the student's own batch norms see the global batch."
    )
    ema: Annotated[Open | None, STUDENT] = Field(
        default=None, description="Decay of the moving average of the student's weights. Default: no average."
    )

    on_bad_numbers: Annotated[Literal["stop", "skip", "lower"], FAULTS] = Field(
        default="stop",
        description="At a step whose loss or gradient is not finite: stop, skip it, or skip it and halve the rate.",
    )
    bad_number_limit: Annotated[Count | None, FAULTS, Read(on_bad_numbers=("skip", "lower"))] = Field(
        default=None, description="Steps that skip and lower may skip; one more stops the run. Default: 10. Chosen."
    )

    cache_views: Annotated[Count | None, STUDENT, Read(task=("classification",), method=CACHED_METHODS)] = Field(
        default=None,
        description="Keep the teacher's outputs for so many augmented views on disk. Default: it runs in every step.",
    )
    cache_seed: Annotated[Seed | None, STUDENT, CACHED] = Field(
        default=None, description="Seed of the views, so that runs of other seeds share a cache. Default: --seed."
    )
    cache_top_k: Annotated[Count | None, STUDENT, CACHED] = Field(
        default=None, description="Keep an image's largest logits and the sum of the others. Default: all logits."
    )
    cache_precision: Annotated[Literal["half", "exact"], STUDENT, CACHED] = Field(
        default="half", description="half: float32 outputs are rounded to float16; exact: nothing is rounded."
    )
    cache_limit: Annotated[Positive, BOOKKEEPING, CACHED] = Field(
        default=20.0, description="GiB that a cache may take. Chosen."
    )
    cache_folder: Annotated[Line | None, BOOKKEEPING, CACHED] = Field(
        default=None,
        description="Folder of the cache. Default: caches/ beside the run, named by its contents.",
    )

    probe: Annotated[Literal["auto", "off"] | Count, BeforeValidator(no_switch), BOOKKEEPING] = Field(
        default="auto",
        description="Measure what the projector learns: auto (in about 2% of the time), off, or every so many steps.",
    )
    probe_images: Annotated[int, Field(ge=4, le=10**6), Number, BOOKKEEPING, Read(probe=("auto", NUMBER))] = Field(
        default=128, description="Held-back images that are measured on. Chosen: correlations to within 0.09."
    )
    loggers: Annotated[tuple[LoggerName, ...], OneIsAList, BOOKKEEPING] = Field(
        default=(),
        description="Loggers that get the numbers, too: tensorboard, wandb, mlflow, trackio; by default none.",
    )

    seed: Annotated[Seed, SEED] = Field(default=0, description="Seed of initial weights, order and augmentation.")
    precision: Annotated[Literal["auto", "float32", "bf16", "fp16"], ARITHMETIC] = Field(
        default="auto",
        description="Arithmetic of the models; auto: bf16 where the device has it and was measured to be quicker.",
    )
    memory_format: Annotated[Literal["auto", "contiguous", "channels_last"], ARITHMETIC] = Field(
        default="auto",
        description="Layout of images in memory; auto: what was measured to be quicker.",
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(no_switch), ARITHMETIC] = Field(
        default="auto",
        description="torch.compile of models and terms; auto: on a GPU, where it is won back within the run.",
    )
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], MACHINE] = Field(
        default="auto", description="Where to train; auto: the fastest here."
    )
    shard: Annotated[bool, MACHINE] = Field(
        default=False,
        description="Several processes: each holds a share of student, terms, optimizer and teacher (FSDP2).",
    )
    checkpoint_every: Annotated[Amount, MACHINE] = Field(
        default=0, description="Steps after which a checkpoint is written within an epoch, too; 0: at its end only."
    )
    process_timeout: Annotated[Seconds, MACHINE] = Field(
        default=1800, description="Seconds after which one of several processes gives up waiting for another (torch)."
    )

    @property
    def uses_features(self) -> bool:
        """Whether the method has a feature term (projector)."""
        return self.method in FEATURE_METHODS

    @property
    def uses_stages(self) -> bool:
        """Whether the method has a feature term at the end of every stage."""
        return self.method in STAGE_METHODS

    @property
    def full_feature_weight(self) -> float:
        """The weight of all feature terms together."""
        chosen = 32.0 if self.uses_stages and self.task != "segmentation" else 2.0
        return chosen if self.feature_weight is None else self.feature_weight

    @property
    def full_logit_weight(self) -> float:
        """The weight of the logit term."""
        chosen = 1.0 if self.task == "segmentation" else 16.0 if self.method == "stages+kd" else 4.0
        return chosen if self.logit_weight is None else self.logit_weight

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
        return self.method in ("kd", "projector+kd", "stages+kd")
