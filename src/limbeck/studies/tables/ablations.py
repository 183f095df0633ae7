"""Tables of what the parts of the loss are worth: norms, LogSum, its exponent, functions of the distance."""

from limbeck.studies.tables.pairs import FIFTH, FIFTH_R50, RESNETS, SMALL, TINY, pair
from limbeck.studies.tables.table import ALONE, CORRELATION, KD, LOG_SUM, MSE, Claim, Table

ABLATIONS: dict[str, Table] = {
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
        pairs={"tiny": TINY, "small": SMALL, "full": {**FIFTH}},
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
            "tiny": {**pair("small/cnn-8", "small/cnn-4"), **pair("small/cnn-32", "small/cnn-4")},
            "small": {
                **pair("cifar/resnet20", "cifar/resnet8"),
                **pair("cifar/wrn_16_2", "cifar/resnet8"),
                **pair("cifar/vgg8", "cifar/resnet8"),
            },
            "full": {
                "ViT-MobileNetV3": FIFTH["ViT-MobileNetV3"],
                "ConvNeXt-EfficientNet": FIFTH["ConvNeXt-EfficientNet"],
                "R50-R18": RESNETS["R50-R18"],
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
            "tiny": TINY,
            "small": {name: pair for name, pair in SMALL.items() if name != "vgg8-resnet8"},
            "full": {**FIFTH_R50, "ConvNeXt-EfficientNet": FIFTH["ConvNeXt-EfficientNet"]},
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
            "tiny": pair("small/cnn-8", "small/cnn-8"),
            "small": pair("cifar/resnet20", "cifar/resnet8"),
            "full": {"R34-R18": RESNETS["R34-R18"]},
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
}
"""Name to table."""
