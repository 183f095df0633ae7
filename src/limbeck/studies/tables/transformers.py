"""Tables of transformers taught by a CNN: what they reach, and whether their features move along with the image."""

from limbeck.studies.tables.pairs import ADAMW, stem
from limbeck.studies.tables.table import ALONE, KD, STAGES_KD, Changes, Claim, Scale, Table

TRANSFORMER_ROWS: dict[str, Changes] = {
    "student": ALONE,
    "KL": KD,
    "ours": {"method": "projector+kd", "feature_loss": "log_correlation"},
    "stages": STAGES_KD,
}
DEIT_PAIRS: dict[Scale, dict[str, Changes]] = {
    "tiny": {
        "stem": {"teacher": "small/cnn-32", "size": 16, **stem("test"), **ADAMW},
        "plain": {"teacher": "small/cnn-32", "size": 16, "student": "small/vit-32", **ADAMW},
    },
    "small": {
        "stem": {"teacher": "cifar/wrn_16_2", **stem("mini"), **ADAMW},
        "plain": {"teacher": "cifar/wrn_16_2", "student": "small/vit-64", **ADAMW},
    },
    "full": {
        "Ti-stem": {"recipe": "imagenet-deit-ti", "student_alone": "deit/conv_stem_tiny"},
        "Ti-plain": {"recipe": "imagenet-deit-ti-plain"},
        "S-stem": {"recipe": "imagenet-deit-s", "student_alone": "deit/conv_stem_small"},
        "S-plain": {"recipe": "imagenet-deit-s-plain"},
    },
}

TRANSFORMERS: dict[str, Table] = {
    "deit": Table(
        title="Data-efficient transformers from a CNN, with the control that the paper lacks",
        source="table 4",
        rows=TRANSFORMER_ROWS,
        claims=(
            Claim("KL", "student", "a CNN's logits help a transformer"),
            Claim("ours", "student", "distillation helps"),
            Claim("ours", "KL", "the projector adds to KL with the same student (not in the paper)"),
            Claim("stages", "ours", "and gains from more layers than the last (not in the paper)"),
        ),
        pairs=DEIT_PAIRS,
        printed={
            "Ti-stem": {"ours": 77.2},
            "Ti-plain": {"student": 72.2},
            "S-stem": {"ours": 82.1},
            "S-plain": {"student": 79.8},
        },
        notes="The paper compares its student, which has a convolutional stem and a second head, with plain DeiT; what "
        "the stem gives and what the projector gives are not told apart. Between the pairs of this table is the stem.",
    ),
    "equivariance": Table(
        title="Whether a transformer's features move along with the image",
        source="table 7",
        metric="translation error",
        probe="equivariance",
        rows=TRANSFORMER_ROWS,
        claims=(
            Claim("student", "ours", "taught by a CNN's features, a transformer has the smaller error"),
            Claim("KL", "ours", "smaller than by its logits alone"),
        ),
        pairs={
            "tiny": {"plain": DEIT_PAIRS["tiny"]["plain"]},
            "small": DEIT_PAIRS["small"],
            "full": {name: pair for name, pair in DEIT_PAIRS["full"].items() if name.startswith("S-")},
        },
        printed={"S-plain": {"student": 1.52}, "S-stem": {"ours": 0.04}},
        notes="0: they move along exactly. The runs are those of table 4; the figure is the mean of four blocks at the "
        "end. The paper has the squared error itself, which depends on the scale of the features, and does not say by "
        "how much images were shifted; its third row, 0.13, is a model of others.",
    ),
}
"""Name to table."""
