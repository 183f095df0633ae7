"""The named recipes of detection; their records are written as `limbeck.recipes.published` says.

"ReviewKD's configuration" is github.com/dvlab-research/ReviewKD, Detection/configs, on which the paper's runs on COCO
are built: 180,000 steps of 8 images, learning rate 0.01, a tenth of it from step 120,000 and again from 160,000,
shorter side 640 to 800, detectron2's SGD (momentum 0.9, weight decay 1e-4, 1,000 steps of warm-up).
"""

from collections.abc import Callable

from limbeck.recipes.published.small import NO_FOLDER
from limbeck.recipes.recipe import Recipe

COCO_IMAGES = 118_287
"""Training images of COCO 2017, those without a box included."""

STEPS, DECAYS, WARMUP, BATCH = 180_000, (120_000, 160_000), 1_000, 8


def coco_fasterrcnn_r50_mv2() -> Recipe:
    """COCO 2017, Faster R-CNN with ResNet50 to one with MobileNetV2: the paper's detection table.

    Paper: table 8 (6.8 of the thesis), Faster R-CNN.
    Row: ours, 32.92 AP (52.96 AP50).
    Expect: teacher 40.22, student alone 29.47, KD 30.13, FitNet 30.20, FPGI 31.16, the paper 32.92, ReviewKD 33.71.
    Command: limbeck distill --recipe coco-fasterrcnn-r50-mv2 --data coco:FOLDER
    Cost: 177,000 steps of 8 images of 800 pixels; a step takes 1.44 times one of the student alone, and an image 4.7 s
        on two threads of an AMD EPYC (docs/results.md).
    Ours: built and stepped at its true shapes, not trained by us.
    Differences: the paper says neither where its projector sits ("backbone output features") nor with what weight; here
        each level of the pyramid has a linear one, over all places, by the correlation form. Epochs in the place of
        steps: 12 and not 12.2, images without boxes included. Torchvision's models: no pooled level in ReviewKD's
        fusion, 2,000 proposals in training and not 1,000. The teacher is trained here first, unless --teacher-weights
        names one for these 80 classes.
    """
    return _coco("coco-fasterrcnn-r50-mv2", "resnet50", "mobilenet_v2")


def coco_fasterrcnn_r101_r18() -> Recipe:
    """COCO 2017, Faster R-CNN with ResNet101 to one with ResNet18: ReviewKD's pair.

    Paper: none of this pair; ReviewKD (CVPR 2021), table of COCO.
    Row: none.
    Expect: nothing that we can cite from a file that was read.
    Command: limbeck distill --recipe coco-fasterrcnn-r101-r18 --data coco:FOLDER
    Cost: a step takes 1.63 times one of the student alone, and an image 4.9 s on two threads of an AMD EPYC
        (docs/results.md).
    Ours: built and stepped at its true shapes, not trained by us.
    Differences: as coco-fasterrcnn-r50-mv2. The review weight of that pair is 1.2 (--rival-weight).
    """
    return _coco("coco-fasterrcnn-r101-r18", "resnet101", "resnet18")


def coco_fasterrcnn_r101_r50() -> Recipe:
    """COCO 2017, Faster R-CNN with ResNet101 to one with ResNet50: ReviewKD's other pair.

    Paper: none of this pair; ReviewKD (CVPR 2021), table of COCO.
    Row: none.
    Expect: nothing that we can cite from a file that was read.
    Command: limbeck distill --recipe coco-fasterrcnn-r101-r50 --data coco:FOLDER
    Cost: a step takes 1.34 times one of the student alone, and an image 5.3 s on two threads of an AMD EPYC
        (docs/results.md).
    Ours: built and stepped at its true shapes, not trained by us.
    Differences: as coco-fasterrcnn-r50-mv2. The review weight of that pair is 1.0 (--rival-weight).
    """
    return _coco("coco-fasterrcnn-r101-r50", "resnet101", "resnet50")


def small_boxes() -> Recipe:
    """A COCO file of small images (64 pixels), on a CPU: FCOS on ResNet20 to FCOS on ResNet8, narrow pyramids.

    Paper: none; detection at a size that two cores train.
    Row: none.
    Expect: nothing published.
    Command: limbeck compare --recipe small-boxes --data coco:FOLDER --methods alone projector fitnet review
    Cost: not measured yet.
    Ours: not run by us yet.
    Differences: not applicable.
    """
    return Recipe(
        name="small-boxes",
        task="detection",
        teacher="fcos-64/cifar/resnet20",
        student="fcos-32/cifar/resnet8",
        data=f"coco:{NO_FOLDER}",
        size=64,
        method="projector",
        feature_weight=0.5,
        epochs=20,
        batch_size=16,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.05,
        clip=10.0,
    )


def _coco(name: str, teacher: str, student: str) -> Recipe:
    """ReviewKD's schedule in epochs, and torchvision's detectors."""
    per_epoch = COCO_IMAGES / BATCH
    epochs = int(STEPS / per_epoch)
    scale = epochs / STEPS
    return Recipe(
        name=name,
        task="detection",
        teacher=f"fasterrcnn/torchvision/{teacher}",
        student=f"fasterrcnn/torchvision/{student}",
        pretrained=True,
        frozen_norms=True,
        data=f"coco:{NO_FOLDER}",
        size=800,
        longest=1333,
        scales=(0.8, 1.0),
        on_bad_annotations="skip",
        method="projector",
        epochs=epochs,
        batch_size=BATCH,
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        milestones=tuple(round(step * scale, 2) for step in DECAYS),
        warmup_epochs=round(WARMUP / per_epoch, 3),
    )


DETECTION: dict[str, Callable[[], Recipe]] = {
    "small-boxes": small_boxes,
    "coco-fasterrcnn-r50-mv2": coco_fasterrcnn_r50_mv2,
    "coco-fasterrcnn-r101-r18": coco_fasterrcnn_r101_r18,
    "coco-fasterrcnn-r101-r50": coco_fasterrcnn_r101_r50,
}
"""Name to recipe."""
