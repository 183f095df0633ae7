"""Images of one's own, and sets that are small: what this library is tried on first."""

from collections.abc import Callable

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
    Ours: 5 seeds, last epoch: teacher 98.8; alone 80.6, KD 90.2, projector 85.6, stages + KD 90.0; docs/results.md.
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

    Paper: none; the paper's linear projector with batch norm and LogSum, at every stage, and logits: our default.
    Row: none.
    Expect: depends on the images; compare against --methods alone.
    Command: limbeck compare --recipe folder --data FOLDER
    Cost: that of the two models; --dry-run prints their FLOPs.
    Ours: not run by us yet.
    Differences: not applicable.
    """
    return Recipe(name="folder", teacher="timm/resnet34", student="timm/resnet18", data=NO_FOLDER)


SMALL: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "digits-few-labels": digits_few_labels,
    "fashion-mnist": fashion_mnist,
    "folder": folder,
}
"""Name to recipe."""
