"""The tables of the paper that `limbeck reproduce` makes again: their rows, what was printed, and what is claimed.

"The paper" is Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024
(arXiv 2303.11098); tables have the numbers of the AAAI version. Printed figures are top-1 in percent, of single runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from limbeck.errors import UserError, did_you_mean
from limbeck.recipes.published import named
from limbeck.recipes.recipe import TEACHER_SETTINGS, Recipe

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

ALONE: Changes = {"method": "alone", **dict.fromkeys(TEACHER_SETTINGS), "fit_teacher": False}
KD: Changes = {"method": "kd"}
MSE: Changes = {"method": "projector", "feature_loss": "mean_squared_error", "feature_weight": 2.0}
LOG_SUM: Changes = {"method": "projector", "feature_loss": "log_sum"}
CORRELATION: Changes = {"method": "projector", "feature_loss": "correlation_power", "feature_weight": 0.02}


@dataclass(frozen=True)
class Claim:
    """That one row is above another.

    Attributes:
        better: The row that is said to be above.
        worse: The other one.
        words: As the paper has it.
    """

    better: str
    worse: str
    words: str


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: What it is about.
        source: Where it is printed.
        rows: Name to what it changes in the recipe of its pair.
        claims: What the paper concludes.
        pairs: Scale to the pairs of models, by name, each with what it changes; of full scale, the name of the recipe
            and what it changes in that.
        printed: Pair of full scale to row to top-1 in percent.
        notes: What is not stated, or not as printed.
    """

    title: str
    source: str
    rows: Mapping[str, Changes]
    claims: tuple[Claim, ...]
    pairs: Mapping[Scale, Mapping[str, Changes]]
    printed: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    notes: str = ""

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
        settings = {**ours, **changes, **self.rows[row]}
        return base.changed(settings) if base is not None else Recipe(**settings)  # pyright: ignore[reportArgumentType]


def _pair(teacher: str, student: str, **more: object) -> dict[str, Changes]:
    names = [name.partition("/")[2] for name in (teacher, student)]
    return {f"{names[0]}-{names[1]}": {"teacher": teacher, "student": student, **more}}


_TINY = _pair("small/cnn-32", "small/cnn-4")
_SMALL = {
    **_pair("cifar/wrn_16_2", "cifar/resnet8"),
    **_pair("cifar/vgg8", "cifar/resnet8"),
    **_pair("cifar/wrn_16_2", "cifar/mobilenetv2", lr=0.01),
}
_RESNETS: dict[str, Changes] = {
    "R34-R18": {"recipe": "imagenet-resnet34-resnet18", "method": "projector", "logit_weight": 1.0},
    "R50-R18": {"recipe": "imagenet-resnet50-resnet18", "method": "projector"},
}
_FIFTH: dict[str, Changes] = {
    "RegNetY-MobileNetV2": {"recipe": "imagenet20-regnety-mobilenetv2"},
    "ViT-MobileNetV3": {"recipe": "imagenet20-vit-mobilenetv3"},
    "ConvNeXt-EfficientNet": {"recipe": "imagenet20-convnext-efficientnet"},
}
_FIFTH_R50: dict[str, Changes] = {"R50-R18": {"recipe": "imagenet20-resnet50-resnet18"}}
_CIFAR = {
    name: {"recipe": f"cifar100-{name}"}
    for name in (
        "wrn-40-2-wrn-16-2",
        "wrn-40-2-wrn-40-1",
        "resnet56-resnet20",
        "resnet32x4-resnet8x4",
        "vgg13-mobilenetv2",
        "resnet50-mobilenetv2",
        "resnet50-vgg8",
        "resnet32x4-shufflenetv1",
        "resnet32x4-shufflenetv2",
        "wrn-40-2-shufflenetv1",
    )
}
_CIFAR_ROWS = ("student", "KD", "FitNet", "AT", "CRD", "ours")
_CIFAR_PRINTED = {  # the upper box, RandAugment
    "wrn-40-2-wrn-16-2": (73.64, 74.92, 75.75, 75.28, 76.04, 76.14),
    "wrn-40-2-wrn-40-1": (72.24, 73.54, 74.12, 74.45, 75.52, 75.42),
    "resnet56-resnet20": (69.63, 70.66, 71.60, 71.78, 71.68, 71.75),
    "resnet32x4-resnet8x4": (72.51, 73.33, 74.31, 74.26, 75.90, 76.44),
    "vgg13-mobilenetv2": (65.79, 67.37, 68.58, 69.34, 68.49, 71.47),
    "resnet50-mobilenetv2": (65.79, 67.35, 68.54, 69.28, 70.32, 72.81),
    "resnet50-vgg8": (70.68, 73.81, 73.84, 73.45, 74.42, 76.20),
    "resnet32x4-shufflenetv1": (70.77, 74.07, 74.82, 74.76, 75.46, 77.32),
    "resnet32x4-shufflenetv2": (73.12, 74.45, 75.11, 75.30, 75.72, 79.06),
    "wrn-40-2-shufflenetv1": (70.77, 74.83, 75.55, 75.61, 75.96, 79.22),
}

TABLES: dict[str, Table] = {
    "normalization": Table(
        title="Normalization on both sides, without LogSum",
        source="table 1",
        rows={
            "no distillation": ALONE,
            "none": {**MSE, "student_norm": "none", "teacher_norm": "none"},
            "L2": {**MSE, "feature_loss": "cosine", "student_norm": "none", "teacher_norm": "none"},
            "GroupNorm": {**MSE, "student_norm": "group", "teacher_norm": "group"},
            "BatchNorm": MSE,
        },
        claims=(
            Claim("BatchNorm", "no distillation", "distillation helps"),
            Claim("BatchNorm", "L2", "batch norm is above L2"),
            Claim("BatchNorm", "GroupNorm", "batch norm is above group norm"),
            Claim("BatchNorm", "none", "normalization helps"),
        ),
        pairs={"tiny": _TINY, "small": _SMALL, "full": {**_FIFTH}},
        printed={
            "RegNetY-MobileNetV2": {"no distillation": 50.89, "L2": 52.91, "GroupNorm": 55.63, "BatchNorm": 56.09},
            "ViT-MobileNetV3": {"no distillation": 54.13, "L2": 54.65, "GroupNorm": 59.08, "BatchNorm": 59.28},
            "ConvNeXt-EfficientNet": {"no distillation": 64.48, "L2": 64.23, "GroupNorm": 65.52, "BatchNorm": 67.95},
        },
        notes="The row without normalization is ours; the paper has none. L2 is the cosine, half of the squared "
        "distance of unit vectors. The paper's pairs are on a fifth of ImageNet, with models that it does not name.",
    ),
    "logsum": Table(
        title="With and without LogSum, as the capacity gap grows",
        source="table 2",
        rows={"no distillation": ALONE, "without LogSum": MSE, "with LogSum": LOG_SUM},
        claims=(Claim("with LogSum", "without LogSum", "LogSum helps, and more so where the teacher is larger"),),
        pairs={
            "tiny": {**_pair("small/cnn-8", "small/cnn-4"), **_pair("small/cnn-32", "small/cnn-4")},
            "small": {
                **_pair("cifar/resnet20", "cifar/resnet8"),
                **_pair("cifar/wrn_16_2", "cifar/resnet8"),
                **_pair("cifar/vgg8", "cifar/resnet8"),
            },
            "full": {
                "ViT-MobileNetV3": _FIFTH["ViT-MobileNetV3"],
                "ConvNeXt-EfficientNet": _FIFTH["ConvNeXt-EfficientNet"],
                "R50-R18": _RESNETS["R50-R18"],
            },
        },
        printed={
            "ViT-MobileNetV3": {"no distillation": 54.13, "without LogSum": 59.28, "with LogSum": 59.80},
            "ConvNeXt-EfficientNet": {"no distillation": 64.48, "without LogSum": 67.95, "with LogSum": 68.51},
            "R50-R18": {"without LogSum": 70.03, "with LogSum": 71.29},
        },
    ),
    "alpha": Table(
        title="The exponent of LogSum",
        source="table 3",
        rows={f"alpha {alpha:g}": {**LOG_SUM, "alpha": alpha} for alpha in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)},
        claims=(
            Claim("alpha 4", "alpha 1", "large exponents are above small ones"),
            Claim("alpha 4", "alpha 2", "4 is above 2"),
            Claim("alpha 5", "alpha 1", "5 is above 1"),
        ),
        pairs={
            "tiny": _TINY,
            "small": {name: pair for name, pair in _SMALL.items() if name != "vgg8-resnet8"},
            "full": {**_FIFTH_R50, "ConvNeXt-EfficientNet": _FIFTH["ConvNeXt-EfficientNet"]},
        },
        printed={
            "ConvNeXt-EfficientNet": {
                "alpha 1": 65.52,
                "alpha 1.5": 66.69,
                "alpha 2": 66.61,
                "alpha 2.5": 67.10,
                "alpha 3": 67.72,
                "alpha 4": 68.51,
                "alpha 5": 67.69,
            },
            "R50-R18": {
                "alpha 1": 61.74,
                "alpha 1.5": 62.18,
                "alpha 2": 62.23,
                "alpha 2.5": 62.84,
                "alpha 3": 63.10,
                "alpha 4": 63.32,
                "alpha 5": 63.40,
            },
        },
        notes="The paper does not say on which part of ImageNet; by the size of the figures it is a fifth.",
    ),
    "cifar100": Table(
        title="Ten pairs on CIFAR-100, against other methods",
        source="table 5",
        rows={
            "student": ALONE,
            "KD": KD,
            "FitNet": {"method": "fitnet"},
            "AT": {"method": "at"},
            "CRD": {"method": "crd"},
            "DKD": {"method": "dkd"},
            "DIST": {"method": "dist"},
            "ours": {"method": "projector", "feature_loss": "log_sum"},
            "ours + DKD": {"method": "projector+dkd", "feature_loss": "log_sum"},
        },
        claims=(
            Claim("ours", "student", "distillation helps"),
            Claim("ours", "KD", "the projector is above KD"),
            Claim("ours", "CRD", "the projector is above CRD"),
            Claim("ours + DKD", "ours", "DKD adds to the projector (poster)"),
        ),
        pairs={
            "tiny": _TINY,
            "small": {
                **_SMALL,
                **_pair("cifar/resnet20", "cifar/resnet8"),
                **_pair("cifar/vgg8", "cifar/mobilenetv2", lr=0.01),
            },
            "full": _CIFAR,
        },
        printed={name: dict(zip(_CIFAR_ROWS, figures, strict=True)) for name, figures in _CIFAR_PRINTED.items()},
        notes="Printed are the figures with RandAugment; the paper's runs see pairs of augmented views, ours one view. "
        "Its KD row belongs to other teachers. DKD and DIST are not in its upper box.",
    ),
    "metrics": Table(
        title="Functions of the distance, equal widths",
        source="table 9 (supplement)",
        rows={
            "KL": KD,
            "MSE, no projection": {**MSE, "projector": "identity", "student_norm": "none", "teacher_norm": "none"},
            "MSE + projection": {**MSE, "student_norm": "none", "teacher_norm": "none"},
            "BN MSE": MSE,
            "correlation^2": {**CORRELATION, "alpha": 2.0},
            "correlation^4": {**CORRELATION, "alpha": 4.0},
            "log sum correlation^4": {"method": "projector", "feature_loss": "log_correlation", "alpha": 4.0},
        },
        claims=(
            Claim("MSE + projection", "MSE, no projection", "a projector helps, also between equal widths"),
            Claim("BN MSE", "MSE + projection", "batch norm helps (in print it is 0.19 below)"),
            Claim("log sum correlation^4", "correlation^4", "the logarithm helps"),
            Claim("log sum correlation^4", "KL", "features are above logits"),
        ),
        pairs={
            "tiny": _pair("small/cnn-8", "small/cnn-8"),
            "small": _pair("cifar/resnet20", "cifar/resnet8"),
            "full": {"R34-R18": _RESNETS["R34-R18"]},
        },
        printed={
            "R34-R18": {
                "KL": 71.37,
                "MSE, no projection": 71.08,
                "MSE + projection": 71.53,
                "BN MSE": 71.34,
                "correlation^2": 71.35,
                "correlation^4": 71.31,
                "log sum correlation^4": 71.63,
            }
        },
        notes="KL and MSE without projection equal figures that torchdistill published, digit for digit.",
    ),
    "imagenet": Table(
        title="ResNet34 to ResNet18 on ImageNet, against other methods",
        source="table 6",
        rows={
            "student": ALONE,
            "AT": {"method": "at"},
            "KD": KD,
            "CC": {"method": "cc"},
            "CRD": {"method": "crd"},
            "ReviewKD": {"method": "review"},
            "ours": {"method": "projector+kd", "feature_loss": "log_sum"},
        },
        claims=(
            Claim("ours", "student", "distillation helps"),
            Claim("ours", "KD", "the projector is above KD"),
            Claim("ours", "CRD", "the projector is above CRD"),
            Claim("ours", "ReviewKD", "the projector is above ReviewKD"),
        ),
        pairs={
            "tiny": _TINY,
            "small": _pair("cifar/wrn_16_2", "cifar/resnet8"),
            "full": {"R34-R18": {"recipe": "imagenet-resnet34-resnet18"}},
        },
        printed={
            "R34-R18": {
                "student": 69.75,
                "AT": 70.70,
                "KD": 70.66,
                "CC": 69.96,
                "CRD": 71.38,
                "ReviewKD": 71.61,
                "ours": 71.63,
            }
        },
        notes="The thesis has 71.87 for ours, which is the published checkpoint (elementwise LogSum and KL).",
    ),
}
"""Name to table: what ``limbeck reproduce`` knows."""


def table(name: str) -> Table:
    """The table of this name.

    Raises:
        UserError: There is none.

    Example:
        >>> table("alpha").source
        'table 3'
    """
    if name not in TABLES:
        raise UserError(f"no table {name!r}{did_you_mean(name, TABLES)}; `limbeck reproduce` lists them")
    return TABLES[name]
