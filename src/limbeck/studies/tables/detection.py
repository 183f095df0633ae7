"""The paper's table of detectors."""

from limbeck.recipes.published.small import NO_FOLDER
from limbeck.studies.tables.pairs import ADAMW
from limbeck.studies.tables.table import ALONE, Changes, Claim, Table

SMALL_BOXES: Changes = {
    "task": "detection",
    "data": f"coco:{NO_FOLDER}",
    "size": 64,
    "batch_size": 16,
    "clip": 10.0,
    "warmup_epochs": 0.25,
    **ADAMW,
}

DETECTION: dict[str, Table] = {
    "coco": Table(
        title="Detectors on COCO, against other methods",
        source="table 8",
        metric="AP",
        rows={
            "student": ALONE,
            "KD": {"method": "kd"},
            "FitNet": {"method": "fitnet", "rival_weight": 0.1},
            "FPGI": {
                "method": "projector",
                "feature_loss": "mean_squared_error",
                "student_norm": "none",
                "teacher_norm": "none",
                "background": 0.0,
                "feature_weight": 0.1,
            },
            "ReviewKD": {"method": "review"},
            "PKD": {"method": "pkd"},
            "FGD": {"method": "fgd"},
            "ours": {"method": "projector"},
        },
        claims=(
            Claim("ours", "student", "distillation helps"),
            Claim("ours", "KD", "the projector is above KD"),
            Claim("ours", "FitNet", "the projector is above FitNet"),
            Claim("ReviewKD", "ours", "ReviewKD is above the projector"),
        ),
        pairs={
            "small": {
                "wrn_16_2-resnet8": {
                    "teacher": "fcos-32/cifar/wrn_16_2",
                    "student": "fcos-32/cifar/resnet8",
                    **SMALL_BOXES,
                },
                "resnet20-resnet8": {
                    "teacher": "fcos-32/cifar/resnet20",
                    "student": "fcos-32/cifar/resnet8",
                    **SMALL_BOXES,
                },
            },
            "full": {
                "R50-MV2": {"recipe": "coco-fasterrcnn-r50-mv2"},
                "R101-R18": {"recipe": "coco-fasterrcnn-r101-r18"},
                "R101-R50": {"recipe": "coco-fasterrcnn-r101-r50"},
            },
        },
        printed={
            "R50-MV2": {
                "student": 29.47,
                "KD": 30.13,
                "FitNet": 30.20,
                "FPGI": 31.16,
                "ReviewKD": 33.71,
                "ours": 32.92,
            }
        },
        notes="The paper's YOLOv5 is not here. FPGI is the squared error after a linear map at the places in boxes, "
        "not near anchors; ours is the correlation form of each level of the pyramid; the paper has no PKD and FGD.",
    ),
}
"""Name to table."""
