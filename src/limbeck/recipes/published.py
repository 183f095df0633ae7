"""The recipes that have a name, one function each; its docstring is the recipe's record.

A record says where the recipe comes from, the number to expect, the command, what it costs, what we got, and each
difference to its source. "The paper" is Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge
Distillation", AAAI 2024 (arXiv 2303.11098); its table numbers are those of the AAAI version. "The published code" is
github.com/roymiles/Simple-Recipe-Distillation at 31e8477 (2024-02-13). "CRD protocol" is the training of Tian et al.,
"Contrastive Representation Distillation", ICLR 2020 (github.com/HobbitLong/RepDistiller).
"""

from collections.abc import Callable

from limbeck.errors import UserError, did_you_mean
from limbeck.recipes.published_detection import (
    coco_fasterrcnn_r50_mv2,
    coco_fasterrcnn_r101_r18,
    coco_fasterrcnn_r101_r50,
    small_boxes,
)
from limbeck.recipes.recipe import Recipe

NO_FOLDER = "FOLDER"
"""Stands for a place that only the user knows, in the recipes without images of their own; they need ``--data``."""


def digits() -> Recipe:
    """Real 8x8 images of handwritten digits, embedded: a CNN of width 32 teaches one of width 2 in seconds.

    Paper: none; the demonstration of this library.
    Row: none.
    Expect: in a rough trial (3 seeds), teacher 99.0; student alone 79.1, KD 90.6, projector 89.3.
    Command: limbeck compare --recipe digits
    Cost: about 5 seconds a run on one CPU core.
    Ours: 5 seeds, last epoch: teacher 98.8; alone 80.6, KD 91.2, projector 85.0, projector + KD 90.6; docs/results.md.
    Differences: not applicable.
    """
    return Recipe(
        name="digits",
        teacher="small/cnn-32",
        student="small/cnn-2",
        data="digits",
        teacher_epochs=30,
        epochs=30,
        batch_size=64,
        augmentation="none",
        method="projector",
        probe=100,  # more than 1% of runs that last seconds, but there is something to look at
    )


def digits_few_labels() -> Recipe:
    """The digits with 200 labelled training images: what a teacher is worth when labels are few.

    Paper: none; section 5 of the paper asks the question on shares of ImageNet.
    Row: none.
    Expect: in a rough trial (3 seeds), student alone 78.8, KD 84.5, projector 87.9.
    Command: limbeck compare --recipe digits-few-labels
    Cost: about 5 seconds a run on two CPU cores.
    Ours: not run by us yet.
    Differences: not applicable.
    """
    return digits().changed({"name": "digits-few-labels", "train_limit": 200, "epochs": 120, "teacher_epochs": 120})


def fashion_mnist() -> Recipe:
    """Fashion-MNIST, clothes in 28x28 grey pixels: ResNet32 teaches ResNet8.

    Paper: none; a step between the digits and CIFAR.
    Row: none.
    Expect: nothing published for this pair.
    Command: limbeck compare --recipe fashion-mnist
    Cost: not measured yet.
    Ours: not run by us yet.
    Differences: not applicable.
    """
    return Recipe(
        name="fashion-mnist",
        teacher="cifar/resnet32",
        student="cifar/resnet8",
        data="fashion-mnist",
        teacher_epochs=20,
        epochs=20,
        batch_size=128,
    )


def folder() -> Recipe:
    """Your own images, a folder of one folder per class: ResNet34 teaches ResNet18.

    Paper: none; the paper's linear projector with batch norm and LogSum in the defaults of this library.
    Row: none.
    Expect: depends on the images; compare against --methods alone.
    Command: limbeck compare --recipe folder --data FOLDER
    Cost: that of the two models; --dry-run prints their FLOPs.
    Ours: not run by us yet.
    Differences: not applicable.
    """
    return Recipe(name="folder", teacher="timm/resnet34", student="timm/resnet18", data=NO_FOLDER)


def cifar100_resnet32x4_resnet8x4() -> Recipe:
    """CIFAR-100 in the CRD protocol, ResNet32x4 to ResNet8x4: the pair that most papers report.

    Paper: 76.55 in the setting of CRD on the authors' AAAI poster (table 3), whose augmentation is not stated; table 5
        has 76.44 (RandAugment) and 78.37 (SSKD rotations), both with pairs of augmented views.
    Row: ResNet32x4 -> ResNet8x4.
    Expect: teacher 79.42, student alone 72.50, KD 73.33, CRD 75.51, DKD 76.32, projector 76.55 (all on the poster).
    Command: limbeck compare --recipe cifar100-resnet32x4-resnet8x4 --methods alone kd projector
    Cost: 240 epochs a run; a GPU is needed in practice. Not measured yet.
    Ours: not run by us yet.
    Differences: plain crop and flip, not pairs of augmented views. The paper does not state form, alpha and weight of
        the feature loss for CIFAR: elementwise LogSum, 4 and 2.0 are those of its ImageNet code. The layout of its
        mlp (hidden width 1024) is not stated either. The teacher is trained by the same protocol, not downloaded.
    """
    return _crd("resnet32x4", "resnet8x4")


def cifar100_resnet56_resnet20() -> Recipe:
    """CIFAR-100 in the CRD protocol, ResNet56 to ResNet20: the smallest pair of the literature.

    Paper: table 5, 71.75 (RandAugment) and 72.25 (SSKD rotations), both with pairs of augmented views.
    Row: R56 -> R20.
    Expect: teacher 73.44, student alone 69.63, KD 70.66 (table 5); nothing by the paper in this plain setting.
    Command: limbeck compare --recipe cifar100-resnet56-resnet20 --methods alone kd projector
    Cost: 240 epochs a run; the cheapest of the protocol's pairs. Not measured yet.
    Ours: not run by us yet.
    Differences: as for cifar100-resnet32x4-resnet8x4.
    """
    return _crd("resnet56", "resnet20")


def imagenet_resnet34_resnet18() -> Recipe:
    """ImageNet-1K, ResNet34 to ResNet18, as the published code does it: elementwise LogSum and KL.

    Paper: table 6 (71.63 top-1); thesis and poster 71.87, which is the published checkpoint.
    Row: R34 -> R18, ours.
    Expect: teacher 73.31, student alone 69.75, projector+kd 71.87 (published code), 71.92 (torchdistill's own run).
    Command: limbeck distill --recipe imagenet-resnet34-resnet18 --data imagenet:FOLDER
    Cost: torchdistill reports 38 h 48 min on one GPU without mixed precision.
    Ours: not run by us yet.
    Differences: to the text, which has neither the weight 2.0 nor the KL term (temperature 1): both are the published
        code's (losses/single.py lines 159-182). To the code: the projector has no bias, which batch norm cancels; an
        eps inside of the logarithm; the teacher is in eval mode throughout.
    """
    return Recipe(
        name="imagenet-resnet34-resnet18",
        teacher="torchvision/resnet34",
        teacher_tap="layer4",
        teacher_pool="spatial_mean",
        student="torchvision/resnet18",
        student_tap="layer4",
        student_pool="spatial_mean",
        data=f"imagenet:{NO_FOLDER}",
        size=224,
        method="projector+kd",
        feature_loss="log_sum",
        alpha=4.0,
        feature_weight=2.0,
        logit_weight=1.0,
        temperature=1.0,
        epochs=100,
        batch_size=256,
        lr=0.1,
        weight_decay=1e-4,
        schedule="step",
        milestones=(30, 60, 90),
    )


def imagenet_deit_ti() -> Recipe:
    """ImageNet-1K, RegNetY-160 to a plain DeiT-Ti: the paper's data-efficient transformer.

    Paper: table 4, 77.2 top-1.
    Row: DeiT-Ti, ours.
    Expect: teacher 82.6, DeiT-Ti alone 72.2, DeiT-Ti distilled 74.5, the paper 77.2 with another student (see below).
    Command: limbeck distill --recipe imagenet-deit-ti --data imagenet:FOLDER
    Cost: 300 epochs with a teacher of 84 million parameters; several GPU-days. Not measured yet.
    Ours: not run by us yet.
    Differences: THE STUDENT IS NOT THE PAPER'S. Its released model has a convolutional stem, a distillation token that
        is the mean of the patches, and averages two heads; this is timm's plain DeiT-Ti with one head, so 77.2 is not
        the number to expect. KL (temperature 1) acts on that one head. Gradients are not clipped: the published code
        clips at 15 before unscaling, which is another threshold at every loss scale. Learning rate 5e-4 at batch 512,
        no stochastic depth and no repeated augmentation, as the published code has it. The cosine ends at zero, not at
        5e-6, and the warm-up starts at a hundredth of the peak, not at 5e-7.
    """
    return Recipe(
        name="imagenet-deit-ti",
        teacher="timm/regnety_160.deit_in1k",
        student="timm/deit_tiny_patch16_224",
        student_tap="norm",
        student_pool="token_mean",
        data=f"imagenet:{NO_FOLDER}",
        size=224,
        augmentation="strong",
        method="projector+kd",
        feature_loss="log_correlation",
        feature_weight=1.0,
        logit_weight=1.0,
        temperature=1.0,
        label_smoothing=0.1,
        epochs=300,
        batch_size=512,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=20,
    )


def _crd(teacher: str, student: str) -> Recipe:
    """The CRD protocol, and what the paper says of its CIFAR runs: an mlp projector, no KL."""
    return Recipe(
        name=f"cifar100-{teacher}-{student}",
        teacher=f"cifar/{teacher}",
        student=f"cifar/{student}",
        data="cifar100",
        method="projector",
        feature_loss="log_sum",
        projector="mlp",
        projector_hidden=1024,
        feature_weight=2.0,
        temperature=4.0,
        epochs=240,
        batch_size=64,
        lr=0.05,
        weight_decay=5e-4,
        schedule="step",
        milestones=(150, 180, 210),
    )


NAMED: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "digits-few-labels": digits_few_labels,
    "fashion-mnist": fashion_mnist,
    "folder": folder,
    "cifar100-resnet32x4-resnet8x4": cifar100_resnet32x4_resnet8x4,
    "cifar100-resnet56-resnet20": cifar100_resnet56_resnet20,
    "imagenet-resnet34-resnet18": imagenet_resnet34_resnet18,
    "imagenet-deit-ti": imagenet_deit_ti,
    "small-boxes": small_boxes,
    "coco-fasterrcnn-r50-mv2": coco_fasterrcnn_r50_mv2,
    "coco-fasterrcnn-r101-r18": coco_fasterrcnn_r101_r18,
    "coco-fasterrcnn-r101-r50": coco_fasterrcnn_r101_r50,
}
"""The one table of names: what ``--recipe NAME`` and ``limbeck recipes`` know."""


def named(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UserError: There is none.

    Example:
        >>> named("digits").student
        'small/cnn-2'
    """
    if name not in NAMED:
        hint = did_you_mean(name, NAMED)
        raise UserError(f"no recipe {name!r}{hint}; `limbeck recipes` lists them, and FILE.yaml is read as one")
    return NAMED[name]()
