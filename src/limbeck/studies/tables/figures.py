"""Figures of the paper: what norms leave of a projector's singular values, and what projectors decorrelate."""

from limbeck.studies.tables.pairs import RESNETS, TINY, pair
from limbeck.studies.tables.table import LOG_SUM, Changes, Claim, Curve, Scale, Table

LOOKS: Changes = {"probe": 40, "probe_images": 512}
PAIRS: dict[Scale, dict[str, Changes]] = {
    "tiny": {name: {**each, **LOOKS} for name, each in TINY.items()},
    "small": pair("cifar/wrn_16_2", "cifar/resnet8", **LOOKS),
    "full": {"R50-R18": RESNETS["R50-R18"]},
}
TERM = "terms.feature"
EQUAL_WEIGHTS = (1.0,)  # a weight of its own for each row would be in the spectrum, too

FIGURES: dict[str, Table] = {
    "spectrum": Table(
        title="What norms leave of a projector's singular values",
        source="figure 2",
        metric="share of singular values below their first ones",
        probe=f"{TERM}.spectrum.below_initial",
        rows={
            "none": {**LOG_SUM, "student_norm": "none", "teacher_norm": "none"},
            "L2": {**LOG_SUM, "student_norm": "l2", "teacher_norm": "l2"},
            "BatchNorm": LOG_SUM,
        },
        claims=(
            Claim("none", "L2", "without a norm more singular values shrink than with L2"),
            Claim("none", "BatchNorm", "without a norm more shrink than with batch norm"),
            Claim("L2", "BatchNorm", "batch norm shrinks fewest"),
            Claim("BatchNorm", "none", "batch norm keeps more of the rank than no norm", "stable rank"),
            Claim("BatchNorm", "L2", "batch norm keeps more of the rank than L2", "stable rank"),
            Claim("BatchNorm", "none", "batch norm keeps more of the rank than no norm", "effective rank"),
            Claim("BatchNorm", "L2", "batch norm keeps more of the rank than L2", "effective rank"),
        ),
        measures={
            "stable rank": f"{TERM}.spectrum.stable_rank",
            "effective rank": f"{TERM}.spectrum.effective_rank",
            "participation ratio": f"{TERM}.spectrum.participation_ratio",
            "below a tenth of the largest": f"{TERM}.spectrum.below_tenth",
            "norm": f"{TERM}.spectrum.norm",
            "below first, unit columns": f"{TERM}.spectrum_normalized.below_initial",
            "stable rank, unit columns": f"{TERM}.spectrum_normalized.stable_rank",
            "effective rank, unit columns": f"{TERM}.spectrum_normalized.effective_rank",
        },
        curves=tuple(
            Curve(title, f"{TERM}.{name}.values", f"{TERM}.{name}.index", "index of the singular value", log=True)
            for title, name in (("W as it is", "spectrum"), ("Columns of W at unit norm", "spectrum_normalized"))
        ),
        factors=EQUAL_WEIGHTS,
        pairs=PAIRS,
        printed={"R50-R18": {"none": 0.72, "L2": 0.49, "BatchNorm": 0.44}},
        notes="Elementwise LogSum in all rows, whose gradient ignores the scale that a norm leaves; the rows of a seed "
        "start from the same W. Printed are counts of the drawn curves, of 512. Columns at unit norm take out the "
        "growth that a norm allows.",
    ),
    "decorrelation": Table(
        title="What wider projectors decorrelate",
        source="figure 3",
        metric="mean absolute correlation of the projector's input with its output",
        probe=f"{TERM}.decorrelation.input_output",
        rows={
            "linear": LOG_SUM,
            **{f"MLP {width}": {**LOG_SUM, "projector": "mlp", "projector_hidden": width} for width in (64, 512, 2048)},
        },
        claims=(
            Claim("MLP 64", "MLP 2048", "wider projectors decorrelate more (text; the figure has the opposite order)"),
            *(
                Claim("linear", f"MLP {width}", "an MLP decorrelates more than a linear projector")
                for width in (64, 512, 2048)
            ),
        ),
        measures={
            "student channels": f"{TERM}.decorrelation.student",
            "projected": f"{TERM}.decorrelation.projected",
            "CKA with teacher": f"{TERM}.fit.cka_before",
        },
        curves=(Curve("Correlation of input and output", f"{TERM}.decorrelation.input_output"),),
        factors=EQUAL_WEIGHTS,
        pairs=PAIRS,
        printed={"R50-R18": {"linear": 0.363, "MLP 64": 0.320, "MLP 512": 0.345, "MLP 2048": 0.352}},
        notes="Batch norm on both sides, elementwise LogSum. The paper names neither its pair nor how it takes the "
        "mean; printed are the ends of the drawn curves.",
    ),
}
"""Name to figure."""
