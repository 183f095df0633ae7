"""The named recipes of segmentation; their records are written as `limbeck.recipes.published` says."""

from collections.abc import Callable

from limbeck.recipes.published.small import NO_FOLDER
from limbeck.recipes.recipe import Recipe


def camvid() -> Recipe:
    """CamVid at 240 x 180, on a CPU: DeepLabV3 on MobileNetV3-large to LR-ASPP on MobileNetV3-small.

    Paper: none; segmentation at a size that two cores train.
    Row: none.
    Expect: nothing published at this size.
    Command: limbeck compare --recipe camvid --data FOLDER --methods alone kd cwd projector stages+kd
    Cost: not measured yet.
    Ours: not run by us yet.
    Differences: not applicable.
    """
    return Recipe(
        name="camvid",
        task="segmentation",
        teacher="torchvision/deeplabv3_mobilenet_v3_large",
        student="torchvision/lraspp_mobilenet_v3_small",
        data=NO_FOLDER,
        size=192,
        scales=(0.75, 1.5),
        method="stages+kd",
        feature_weight=2.0,
        logit_weight=1.0,
        temperature=1.0,
        epochs=60,
        batch_size=16,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.01,
        warmup_epochs=2.0,
    )


SEGMENTATION: dict[str, Callable[[], Recipe]] = {"camvid": camvid}
