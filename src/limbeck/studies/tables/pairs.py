"""The pairs of models that several tables share."""

from limbeck.studies.tables.table import Changes


def pair(teacher: str, student: str, **more: object) -> dict[str, Changes]:
    """A pair of models under both their names."""
    names = [name.partition("/")[2] for name in (teacher, student)]
    return {f"{names[0]}-{names[1]}": {"teacher": teacher, "student": student, **more}}


def stem(name: str) -> dict[str, object]:
    """The paper's student: a stem, and a second head that learns from the teacher."""
    return {
        "student": f"deit/conv_stem_{name}_distilled",
        "student_alone": f"deit/conv_stem_{name}",
        "student_tap": "patches",
        "student_logit_tap": "head_conv",
    }


ADAMW: Changes = {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05}
TINY = pair("small/cnn-32", "small/cnn-4")
SMALL = {
    **pair("cifar/wrn_16_2", "cifar/resnet8"),
    **pair("cifar/vgg8", "cifar/resnet8"),
    **pair("cifar/wrn_16_2", "cifar/mobilenetv2", lr=0.01),
}
RESNETS: dict[str, Changes] = {
    "R34-R18": {"recipe": "imagenet-resnet34-resnet18", "method": "projector"},
    "R50-R18": {"recipe": "imagenet-resnet50-resnet18", "method": "projector"},
}
FIFTH: dict[str, Changes] = {
    "RegNetY-MobileNetV2": {"recipe": "imagenet20-regnety-mobilenetv2"},
    "ViT-MobileNetV3": {"recipe": "imagenet20-vit-mobilenetv3"},
    "ConvNeXt-EfficientNet": {"recipe": "imagenet20-convnext-efficientnet"},
}
FIFTH_R50: dict[str, Changes] = {"R50-R18": {"recipe": "imagenet20-resnet50-resnet18"}}
CIFAR = {
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
"""The paper's ten of CIFAR-100."""
CIFAR_ROWS = ("student", "KD", "FitNet", "AT", "CRD", "ours")
CIFAR_PRINTED = {  # the upper box, RandAugment
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
