"""Without labels: what a foundation model has learned, in a small model's features."""

from collections.abc import Callable

from limbeck.recipes.published.small import NO_FOLDER
from limbeck.recipes.recipe import Recipe


def dinov2_resnet18() -> Recipe:
    """Any images without labels, DINOv2 ViT-S/14 to a headless ResNet18: a small CNN with the features of a large one.

    Paper: none; its method without the task loss.
    Row: none.
    Expect: nothing published for this pair. The student has no head; judge it by what is trained on its features.
    Command: limbeck distill --recipe label-free-dinov2-resnet18 --data FOLDER
    Cost: that of the two models; --dry-run prints their FLOPs.
    Ours: not run by us yet.
    Differences: not applicable. DINOv2 runs at 224 pixels here, 16x16 patches, where its own size is 518.
    """
    return Recipe(
        name="label-free-dinov2-resnet18",
        teacher="timm/vit_small_patch14_dinov2.lvd142m",
        teacher_size=224,
        student="timm/resnet18",
        data=NO_FOLDER,
        size=224,
        labels=False,
        method="projector",
        feature_loss="log_correlation",
        epochs=100,
        batch_size=256,
        lr=0.1,
        weight_decay=1e-4,
        warmup_epochs=5,
    )


def dinov3_deit_ti() -> Recipe:
    """Any images without labels, DINOv3 ViT-S/16 to a headless DeiT-Ti: the class token of one for that of the other.

    Paper: none; its method without the task loss.
    Row: none.
    Expect: nothing published for this pair. The student has no head; judge it by what is trained on its features.
    Command: limbeck distill --recipe label-free-dinov3-deit-ti --data FOLDER
    Cost: that of the two models; --dry-run prints their FLOPs.
    Ours: not run by us yet.
    Differences: not applicable. AdamW as in the paper's DeiT recipe, at half of its batch and learning rate.
    """
    return Recipe(
        name="label-free-dinov3-deit-ti",
        teacher="timm/vit_small_patch16_dinov3.lvd1689m",
        teacher_size=224,
        student="timm/deit_tiny_patch16_224",
        data=NO_FOLDER,
        size=224,
        labels=False,
        method="projector",
        feature_loss="log_correlation",
        epochs=100,
        batch_size=256,
        optimizer="adamw",
        lr=2.5e-4,
        weight_decay=0.05,
        warmup_epochs=5,
    )


LABEL_FREE: dict[str, Callable[[], Recipe]] = {
    "label-free-dinov2-resnet18": dinov2_resnet18,
    "label-free-dinov3-deit-ti": dinov3_deit_ti,
}
"""Name to recipe."""
